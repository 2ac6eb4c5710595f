use super::*;
use crate::decode::{RecordInput, Row};

fn plan(time: &str) -> Plan {
    let text = format!(
        "topic: t\nfrom: {{ topic: s }}\ntime: {time}\ngroup_by: [shop]\nwindow: {{ tumbling: 1m }}\naggregate: {{ n: count(*), m: max(x) }}\n"
    );
    Plan::compile(&Declaration::parse_all(&text, "t.yaml").unwrap()[0]).unwrap()
}

fn event_time(time: &str, json: &str) -> Result<i64, String> {
    let plan = plan(time);
    let mut row = Row::new();
    let record = RecordInput {
        value: Some(json.as_bytes()),
        timestamp: 77,
        ..RecordInput::default()
    };
    plan.projection.decode(record, &mut row).unwrap();
    plan.event_time
        .read(&row)
        .map_err(|reason| reason.into_owned())
}

#[test]
fn event_time_is_read_from_text_numbers_and_the_record() {
    let at = 1_763_805_600_123;
    assert_eq!(event_time("record", "{}"), Ok(77));
    for json in [
        r#"{"t":"2025-11-22T10:00:00.123Z"}"#,
        r#"{"t":"2025-11-22T11:00:00.123+01:00"}"#,
        r#"{"t":"2025-11-22T10:00:00.123"}"#,
        r#"{"t":"2025-11-22 10:00:00.123"}"#,
    ] {
        assert_eq!(event_time("{ field: t }", json), Ok(at), "{json}");
    }
    assert_eq!(
        event_time("{ field: t, unit: ms }", r#"{"t":1763805600123}"#),
        Ok(at)
    );
    assert_eq!(
        event_time("{ field: t, unit: s }", r#"{"t":1763805600.1239}"#),
        Ok(at)
    );
    assert_eq!(
        event_time("{ field: t, unit: us }", r#"{"t":1763805600123456}"#),
        Ok(at)
    );
    assert_eq!(
        event_time("{ field: t, unit: ns }", r#"{"t":1763805600123456789}"#),
        Ok(at)
    );
}

#[test]
fn implausible_times_are_refused() {
    for (time, json) in [
        ("{ field: t, unit: ms }", r#"{"t":1763805600}"#),
        ("{ field: t, unit: s }", r#"{"t":1763805600123}"#),
        ("{ field: t }", r#"{"t":1763805600123}"#),
        ("{ field: t }", r#"{"t":"yesterday"}"#),
        ("{ field: t }", r#"{"t":"2025-13-22T10:00:00Z"}"#),
        ("{ field: t }", "{}"),
        ("{ field: t }", r#"{"t":true}"#),
    ] {
        assert!(event_time(time, json).is_err(), "{json}");
    }
}

#[test]
fn the_fingerprint_follows_what_the_state_depends_on() {
    let record = plan("record").fingerprint();
    assert_eq!(record, plan("{ max_out_of_orderness: 9s }").fingerprint());
    assert_ne!(record, plan("{ field: t }").fingerprint());
}

#[test]
fn results_are_json_with_window_group_and_aggregates() {
    use crate::accumulator::Accumulator;
    use crate::job::Job;
    use crate::value::Value;
    use crate::window::Window;
    let plan = plan("record");
    let mut group = Vec::new();
    Value::String("a\"b".into()).encode(&mut group);
    assert_eq!(plan.result_key(&group), br#"{"shop":"a\"b"}"#);
    let accumulators: Vec<Accumulator> = plan
        .functions()
        .iter()
        .map(|function| Accumulator::new(*function))
        .collect();
    let value = plan
        .result_value(&group, Window::new(60_000, 120_000).unwrap(), &accumulators)
        .unwrap();
    assert_eq!(
        String::from_utf8(value).unwrap(),
        r#"{"window_start":"1970-01-01T00:01:00.000Z","window_end":"1970-01-01T00:02:00.000Z","shop":"a\"b","n":0,"m":null}"#
    );
}
