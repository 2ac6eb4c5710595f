//! Results as lines for people: when the window ended, which topic, whose, what.
//!
//! ```text
//! 12:00:05  revenue-live       shop=amber                 orders=12  revenue=341.20
//! ```

use serde_json::{Map, Value};

use crate::client::ConsumedRecord;

/// Side topics' records are shown this often; the others are counted.
const SIDE_INTERVAL_MS: i64 = 2_000;
const RAW_CHARACTERS_MAX: usize = 90;
const REASON_HEADER: &[u8] = b"streamgauge.reason";

/// Turns records into lines.
#[derive(Debug)]
pub(super) struct Screen {
    derived: Vec<String>,
    side_shown_at_ms: i64,
    side_hidden: usize,
}

impl Screen {
    /// Records of `derived` topics are results; others are of side topics.
    pub fn new(derived: Vec<String>) -> Screen {
        Screen {
            derived,
            side_shown_at_ms: i64::MIN / 2,
            side_hidden: 0,
        }
    }

    pub fn lines(&mut self, records: &[ConsumedRecord], now_ms: i64) -> String {
        let mut lines = Vec::with_capacity(records.len());
        for record in records {
            if self.derived.contains(&record.topic) {
                lines.push(result_line(record));
                continue;
            }
            if now_ms - self.side_shown_at_ms < SIDE_INTERVAL_MS {
                self.side_hidden += 1;
                continue;
            }
            lines.push(side_line(
                record,
                std::mem::take(&mut self.side_hidden),
                now_ms,
            ));
            self.side_shown_at_ms = now_ms;
        }
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

fn result_line(record: &ConsumedRecord) -> String {
    let object = |bytes: &Option<bytes::Bytes>| -> Map<String, Value> {
        let bytes = bytes.as_deref().unwrap_or_default();
        serde_json::from_slice(bytes).unwrap_or_default()
    };
    let (key, value) = (object(&record.key), object(&record.value));
    let group = pairs(key.iter());
    let columns = value
        .iter()
        .filter(|(name, _)| !key.contains_key(*name) && !name.starts_with("window_"));
    // A result's timestamp is its window's last millisecond.
    let time = time_of_day(record.timestamp + 1);
    format!(
        "{time}  {:<18} {group:<28} {}",
        record.topic,
        pairs(columns)
    )
}

fn side_line(record: &ConsumedRecord, hidden: usize, now_ms: i64) -> String {
    let reason = record
        .headers
        .iter()
        .find(|header| header.key == REASON_HEADER);
    let reason = reason.and_then(|header| header.value.as_deref());
    let reason = String::from_utf8_lossy(reason.unwrap_or_default());
    let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
    let mut raw: String = value.chars().take(RAW_CHARACTERS_MAX).collect();
    if raw.len() < value.len() {
        raw.push('…');
    }
    let before = match hidden {
        0 => String::new(),
        hidden => format!("  (and {hidden} before it)"),
    };
    let time = time_of_day(now_ms);
    format!("{time}  {:<18} {reason}: {raw}{before}", record.topic)
}

fn pairs<'a>(fields: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let pairs: Vec<String> = fields
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name}={text}"),
            Value::Number(number) => format!("{name}={}", rounded(&number.to_string())),
            other => format!("{name}={other}"),
        })
        .collect();
    pairs.join("  ")
}

/// At most four digits after the point: means have many.
fn rounded(number: &str) -> String {
    match number.parse::<f64>() {
        Ok(value) if number.contains('.') && !number.contains(['e', 'E']) => {
            let decimals = number.len() - number.find('.').unwrap_or(0) - 1;
            format!("{value:.*}", decimals.min(4))
        }
        _ => number.to_owned(),
    }
}

/// UTC, `HH:MM:SS`.
fn time_of_day(milliseconds: i64) -> String {
    let second = milliseconds.div_euclid(1000).rem_euclid(24 * 60 * 60);
    format!(
        "{:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamgauge_protocol::batch::HeaderView;

    fn record(topic: &str, key: &str, value: &str) -> ConsumedRecord {
        ConsumedRecord {
            topic: topic.to_owned(),
            partition: 0,
            offset: 0,
            timestamp: 1_767_268_804_999,
            key: Some(key.to_owned().into()),
            value: Some(value.to_owned().into()),
            headers: vec![HeaderView {
                key: "streamgauge.reason".into(),
                value: Some("late".into()),
            }],
        }
    }

    #[test]
    fn a_result_shows_when_its_window_ended_its_group_and_its_columns() {
        let mut screen = Screen::new(vec!["revenue-live".to_owned()]);
        let result = record(
            "revenue-live",
            r#"{"shop":"amber"}"#,
            r#"{"window_start":"a","window_end":"b","shop":"amber","orders":12,"revenue":341.2,"mean":1.23456789}"#,
        );
        assert_eq!(
            screen.lines(&[result], 0),
            "12:00:05  revenue-live       shop=amber                   orders=12  revenue=341.2  mean=1.2346\n"
        );
    }

    #[test]
    fn side_records_are_thinned_out_and_counted() {
        let mut screen = Screen::new(Vec::new());
        let late = record("orders-late", "k", "{}");
        let lines = screen.lines(&[late.clone(), late.clone(), late.clone()], 10_000);
        assert_eq!(lines, "00:00:10  orders-late        late: {}\n");
        let lines = screen.lines(&[late], 12_000);
        assert_eq!(
            lines,
            "00:00:12  orders-late        late: {}  (and 2 before it)\n"
        );
    }
}
