use super::*;
use crate::decimal::Decimal;
use proptest::prelude::*;

fn path(text: &str) -> Vec<PathStep> {
    text.split('.')
        .map(|step| {
            step.parse()
                .map_or_else(|_| PathStep::Field(step.to_string()), PathStep::Element)
        })
        .collect()
}

/// Decodes `json` and shows each path's field.
fn decoded(json: &str, paths: &[&str]) -> Result<Vec<String>, DecodeError> {
    let mut projection = Projection::default();
    let slots: Vec<usize> = paths
        .iter()
        .map(|text| projection.slot(&path(text)))
        .collect();
    let mut row = Row::new();
    projection.decode(
        RecordInput {
            value: Some(json.as_bytes()),
            ..RecordInput::default()
        },
        &mut row,
    )?;
    Ok(slots
        .into_iter()
        .map(|slot| match row.field(slot) {
            Field::Value(value) => value.to_json(),
            other => format!("{other:?}"),
        })
        .collect())
}

#[test]
fn asked_fields_are_found_at_any_depth_and_order() {
    let json = r#" {"x":[1,{"y":[]}],"customer":{"country":"DE","id":7}, "amount":12.50 ,"items":[{"p":1},{"p":2}],"ok":true} "#;
    assert_eq!(
        decoded(
            json,
            &[
                "amount",
                "customer.country",
                "items.2.p",
                "ok",
                "nothing.at.all",
                "customer.id"
            ]
        )
        .unwrap(),
        ["12.5", "\"DE\"", "2", "true", "null", "7"]
    );
}

#[test]
fn of_duplicate_keys_the_last_wins() {
    let paths = ["a", "c.x", "c.y"];
    assert_eq!(
        decoded(r#"{"a":1,"c":{"x":1,"y":2},"a":2,"c":{"x":3}}"#, &paths).unwrap(),
        ["2", "3", "null"]
    );
}

#[test]
fn null_and_missing_are_null_but_a_path_through_a_scalar_is_an_error_at_use() {
    assert_eq!(
        decoded(r#"{"c":null}"#, &["c", "c.x"]).unwrap(),
        ["null", "null"]
    );
    assert_eq!(
        decoded(r#"{"c":5}"#, &["c", "c.x"]).unwrap(),
        ["5", "NoContainer(\"a number\")"]
    );
    assert_eq!(
        decoded(r#"{"c":{}}"#, &["c", "c.1"]).unwrap(),
        ["Object", "NoContainer(\"an object\")"]
    );
}

#[test]
fn escapes_are_resolved_in_names_and_values() {
    assert_eq!(
        decoded(r#"{"sh\u006fp":"a\"\u20ac\ud83d\ude00"}"#, &["shop"]).unwrap(),
        ["\"a\\\"€😀\""]
    );
}

#[test]
fn long_numbers_stay_exact_and_too_long_ones_are_kept_as_such() {
    let json = r#"{"a":9223372036854775807,"b":9223372036854775808,"c":0.30000000000000004,"d":1e400,"e":-1.5e2}"#;
    let fields = decoded(json, &["a", "b", "c", "d", "e"]).unwrap();
    assert_eq!(
        fields[..3],
        [
            "9223372036854775807",
            "9223372036854775808",
            "0.30000000000000004"
        ]
    );
    assert_eq!(fields[3..], ["NumberOutOfRange(\"1e400\")", "-150"]);
}

#[test]
fn malformed_values_are_refused_even_where_nothing_is_read() {
    for json in [
        "",
        "{",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":tru}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":[1,]}",
        "{} {}",
        "{\"a\":nan}",
        "{\"a\":\"x",
        "{'a':1}",
        "{\"a\":-}",
        "{\"\\q\":1}",
    ] {
        assert!(
            matches!(decoded(json, &[]), Err(DecodeError::Malformed { .. })),
            "{json}"
        );
    }
    assert_eq!(
        decoded("[1]", &["a"]).unwrap_err(),
        DecodeError::NotAnObject
    );
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(decoded(&deep, &[]).unwrap_err(), DecodeError::TooDeep);
    let mut row = Row::new();
    assert_eq!(
        Projection::default().decode(RecordInput::default(), &mut row),
        Err(DecodeError::NoValue)
    );
    let record = RecordInput {
        value: Some(b"{\"a\":\"\xff\"}"),
        ..RecordInput::default()
    };
    assert_eq!(
        Projection::default().decode(record, &mut row),
        Err(DecodeError::NotUtf8 { position: 6 })
    );
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "[a-c\\\\\"\n\u{e9}\u{1f600}]{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec(("[abc]", inner), 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc12]", 1..4).prop_map(|steps| steps.join("."))
}

/// What serde_json's document says a path holds.
fn expected(document: &serde_json::Value, text: &str) -> String {
    let mut at = document;
    for step in path(text) {
        let next = match (&step, at) {
            (_, serde_json::Value::Null) => None,
            (PathStep::Field(name), serde_json::Value::Object(members)) => members.get(name),
            (PathStep::Element(index), serde_json::Value::Array(elements)) => {
                elements.get(*index as usize - 1)
            }
            _ => return "no container".to_string(),
        };
        let Some(next) = next else {
            return "null".to_string();
        };
        at = next;
    }
    match at {
        serde_json::Value::Object(_) => "Object".to_string(),
        serde_json::Value::Array(_) => "Array".to_string(),
        scalar => scalar.to_string(),
    }
}

proptest! {
    #[test]
    fn decoding_agrees_with_serde_json(
        members in prop::collection::vec(("[abc]", any_json()), 0..4),
        paths in prop::collection::vec(any_path(), 0..5),
        pretty in any::<bool>(),
    ) {
        let document = serde_json::Value::Object(members.into_iter().collect());
        let json = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        for (shown, text) in decoded(&json, &paths).unwrap().iter().zip(&paths) {
            let shown = if shown.starts_with("NoContainer") { "no container" } else { shown };
            prop_assert_eq!(shown, expected(&document, text));
        }
    }

    #[test]
    fn a_damaged_text_is_accepted_exactly_if_serde_json_accepts_it(document in any_json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = serde_json::to_vec(&serde_json::json!({ "a": document, "b": -12.5e3 })).unwrap();
        let at = at.index(json.len());
        json[at] = byte;
        let mut row = Row::new();
        let ours = Projection::default().decode(RecordInput { value: Some(&json), ..RecordInput::default() }, &mut row);
        // serde_json as a parser into nothing takes numbers that overflow a double, as we do.
        let theirs = serde_json::from_slice::<serde::de::IgnoredAny>(&json);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok() && std::str::from_utf8(&json).is_ok(), "{:?} {:?}", ours, theirs);
    }

    #[test]
    fn numbers_are_read_as_the_decimal_parser_reads_them(text in "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?") {
        let shown = decoded(&format!("{{\"a\":{text}}}"), &["a"]).unwrap().remove(0);
        match Decimal::parse(&text) {
            Ok(decimal) => prop_assert_eq!(shown, decimal.to_string()),
            Err(_) => prop_assert!(shown.starts_with("NumberOutOfRange")),
        }
    }
}

/// Prints the rate; run with `cargo test --release -p streamgauge-aggregator decode_rate -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn decode_rate() {
    let json = r#"{"order_id":"f3a9c1d2-77aa","shop":"berlin","customer":{"id":48213,"country":"DE","tier":"gold"},"amount":149.95,"currency":"EUR","status":"paid","items":3,"order_time":1763800000123,"note":"gift wrap"}"#;
    let mut projection = Projection::default();
    for text in ["shop", "customer.country", "amount", "status", "order_time"] {
        projection.slot(&path(text));
    }
    let mut row = Row::new();
    let started = std::time::Instant::now();
    const RECORDS: u32 = 3_000_000;
    for _ in 0..RECORDS {
        let value = std::hint::black_box(json.as_bytes());
        projection
            .decode(
                RecordInput {
                    value: Some(value),
                    ..RecordInput::default()
                },
                &mut row,
            )
            .unwrap();
        std::hint::black_box(&row);
    }
    let rate = f64::from(RECORDS) / started.elapsed().as_secs_f64();
    println!("{} B records: {:.2} million/s", json.len(), rate / 1e6);
}
