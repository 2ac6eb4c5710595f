//! A record's event time, in milliseconds since the epoch.

use std::borrow::Cow;

use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};

use crate::declaration::Unit;
use crate::decode::Row;
use crate::expression::Expression;
use crate::value::Value;

/// 1980-01-01 and 2200-01-01 in milliseconds: an epoch number outside is in another unit than was declared. Seconds read as
/// milliseconds fall into January 1970, milliseconds read as seconds behind the year 50000.
const PLAUSIBLE_MS: std::ops::Range<i128> = 315_532_800_000..7_258_118_400_000;

/// Where event time comes from.
#[derive(Clone, Debug)]
pub enum EventTime {
    /// The Kafka record timestamp.
    Record,
    Field {
        expression: Expression,
        unit: Option<Unit>,
    },
}

impl EventTime {
    pub(super) fn text(&self) -> String {
        match self {
            EventTime::Record => "record".to_string(),
            EventTime::Field { expression, unit } => format!("{} {unit:?}", expression.text()),
        }
    }

    /// `Err` tells why the record is bad; the text does not hold record data, so that reasons can be counted.
    pub fn read(&self, row: &Row<'_>) -> Result<i64, Cow<'static, str>> {
        let (expression, unit) = match self {
            EventTime::Record if row.record().timestamp < 0 => {
                return Err("time: the record has no timestamp".into());
            }
            EventTime::Record => return Ok(row.record().timestamp),
            EventTime::Field { expression, unit } => (expression, unit),
        };
        let value = expression
            .evaluate(row)
            .map_err(|error| Cow::Owned(format!("time: {error}")))?;
        match &value {
            Value::String(text) => iso_8601(text).ok_or(Cow::Borrowed(
                "time: the text is not an ISO-8601 date and time",
            )),
            Value::Int(number) => {
                let unit = unit.ok_or(Cow::Borrowed(
                    "time: a number needs the declaration's time.unit",
                ))?;
                let number = i128::from(*number);
                let milliseconds = match unit {
                    Unit::S => number * 1000,
                    Unit::Ms => number,
                    Unit::Us => number.div_euclid(1000),
                    Unit::Ns => number.div_euclid(1_000_000),
                };
                plausible(milliseconds)
            }
            Value::Decimal(number) => {
                let unit = unit.ok_or(Cow::Borrowed(
                    "time: a number needs the declaration's time.unit",
                ))?;
                // Python writes epoch seconds with a fraction.
                let factor = match unit {
                    Unit::S => crate::decimal::Decimal::from(1000).checked_mul(*number),
                    Unit::Ms => Some(*number),
                    Unit::Us => number.checked_div(1000.into()),
                    Unit::Ns => number.checked_div(1_000_000.into()),
                };
                plausible(
                    factor
                        .and_then(|number| number.floor().to_i64())
                        .map_or(-1, i128::from),
                )
            }
            Value::Null => Err("time: the field is missing or null".into()),
            _ => Err("time: the field is neither text nor a number".into()),
        }
    }
}

fn plausible(milliseconds: i128) -> Result<i64, Cow<'static, str>> {
    if PLAUSIBLE_MS.contains(&milliseconds) {
        return Ok(milliseconds as i64);
    }
    Err("time: outside the years 1980 to 2199; is time.unit right?".into())
}

fn iso_8601(text: &str) -> Option<i64> {
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Some(timestamp.as_millisecond());
    }
    // Without a zone it is UTC. A text with a zone that failed above must not be read as if it had none.
    if text.ends_with(['Z', 'z']) || text.contains('[') {
        return None;
    }
    let civil = text.parse::<DateTime>().ok()?;
    let tail = text.get(10..).unwrap_or_default();
    if tail.contains(['+', '-']) {
        return None;
    }
    Some(
        civil
            .to_zoned(TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_millisecond(),
    )
}
