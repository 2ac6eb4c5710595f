use super::*;
use crate::accumulator::AggregateFunction;
use crate::decode::{Projection, RecordInput, Row};

const JSON: &[u8] = br#"{"status":"paid","amount":12.50,"n":5,"none":null,"ok":true,"customer":{"country":"DE"},"items":[{"p":1.5},{"p":2}],"_key":"inner"}"#;

fn evaluated(text: &str) -> Result<String, String> {
    let mut projection = Projection::default();
    let expression = compile(text, &mut projection)
        .map_err(|error| format!("{}:{}: {error}", error.line, error.column))?;
    let mut row = Row::new();
    let record = RecordInput {
        topic: "orders",
        partition: 3,
        offset: 9,
        timestamp: 1000,
        key: Some(b"k1"),
        value: Some(JSON),
        headers: &[("trace", Some(b"a")), ("trace", Some(b"b"))],
    };
    projection.decode(record, &mut row).unwrap();
    expression
        .evaluate(&row)
        .map(|value| value.to_json())
        .map_err(|error| error.to_string())
}

fn all(cases: &[(&str, &str)]) {
    for (text, wanted) in cases {
        assert_eq!(evaluated(text).as_deref(), Ok(*wanted), "{text}");
    }
}

#[test]
fn names_reach_fields_and_the_records_own_columns() {
    all(&[
        ("status", "\"paid\""),
        ("customer.country", "\"DE\""),
        ("items[2].p", "2"),
        ("customer['country']", "\"DE\""),
        ("_key", "\"k1\""),
        ("\"_key\"", "\"inner\""),
        ("_timestamp + _partition + _offset", "1012"),
        ("_topic", "\"orders\""),
        ("header('trace')", "\"b\""),
        ("header('nothing')", "null"),
    ]);
}

#[test]
fn logic_has_three_values() {
    all(&[
        ("status = 'paid' AND amount > 10", "true"),
        ("none = 1", "null"),
        ("none = 1 AND false", "false"),
        ("none = 1 OR ok", "true"),
        ("NOT (none = 1)", "null"),
        ("n IN (1, NULL)", "null"),
        ("n IN (5, NULL)", "true"),
        ("n NOT IN (1, 2)", "true"),
        (
            "none IS NULL AND missing IS NULL AND customer IS NOT NULL",
            "true",
        ),
        ("none IS DISTINCT FROM n", "true"),
        ("(none = 1) IS NOT TRUE", "true"),
        ("n BETWEEN 5 AND 6", "true"),
        ("n NOT BETWEEN 5 AND 6", "false"),
    ]);
}

#[test]
fn arithmetic_is_exact_and_checked() {
    all(&[
        ("0.1 + 0.2", "0.3"),
        ("5 / 2", "2.5"),
        ("7 % 3", "1"),
        ("-amount * 2", "-25"),
        ("9223372036854775807 + 1", "9223372036854775808"),
        ("none + 1", "null"),
        ("CAST(amount AS DOUBLE) / 3", "4.166666666666667"),
    ]);
    assert_eq!(evaluated("n / 0").unwrap_err(), "/: division by zero");
    assert!(
        evaluated("99999999999999999999999999999999999999 * 10")
            .unwrap_err()
            .contains("38 digits")
    );
}

#[test]
fn functions_and_case_do_what_sql_says() {
    all(&[
        ("upper(status) || '-' || n", "\"PAID-5\""),
        ("substring(status, 2, 2)", "\"ai\""),
        ("SUBSTRING(status FROM 0 FOR 2)", "\"p\""),
        ("coalesce(none, missing, n)", "5"),
        ("nullif(n, 5)", "null"),
        ("round(12.345, 2)", "12.35"),
        ("floor(-1.5) + ceil(1.2) + abs(-1)", "1"),
        ("length('héé')", "3"),
        ("CASE WHEN n > 3 THEN 'big' ELSE 'small' END", "\"big\""),
        ("CASE n WHEN 4 THEN 1 END", "null"),
        (
            "CAST('12' AS BIGINT) + CAST(amount AS DECIMAL(10, 0))",
            "25",
        ),
        ("TRY_CAST('x' AS BIGINT)", "null"),
        ("greatest(1, n, 2)", "5"),
        ("status LIKE 'p%d'", "true"),
        ("status NOT LIKE '_a__'", "false"),
        ("'50%' LIKE '50!%' ESCAPE '!'", "true"),
        ("'aaab' LIKE '%a%ab'", "true"),
        ("'abc' LIKE '%abcd%'", "false"),
    ]);
}

#[test]
fn wrong_types_at_run_time_name_the_field_and_the_reason() {
    for (text, reason) in [
        (
            "status > 5",
            "comparison: cannot compare a string with a number",
        ),
        (
            "customer = 'x'",
            "customer: is an object, not a single value",
        ),
        ("status.x", "status.x: the path leads through a string"),
        ("n AND true", "n: needs a boolean, got a number"),
        ("lower(n)", "LOWER: needs a string, got a number"),
    ] {
        assert_eq!(evaluated(text).unwrap_err(), reason, "{text}");
    }
}

#[test]
fn mistakes_are_found_before_any_record_and_have_a_place() {
    for (text, part) in [
        ("status =", "not an SQL expression"),
        ("status = 'a' extra", "unexpected 'extra'"),
        ("'a' = 1", "cannot compare"),
        (
            "n = 1 AND lowr(status) = 'a'",
            "1:11: unknown function 'lowr'",
        ),
        ("items[0]", "count from 1"),
        ("sum(n)", "aggregate function 'sum'"),
        ("(SELECT 1)", "not supported"),
        ("1 + 'a'", "needs a number"),
        ("CAST(n AS DATE)", "cannot cast"),
    ] {
        let error = evaluated(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(compile(&"(".repeat(3000), &mut Projection::default()).is_err());
    assert!(
        compile(
            &format!("a{}", " OR a".repeat(700)),
            &mut Projection::default()
        )
        .is_err()
    );
}

#[test]
fn aggregates_take_one_argument_and_may_filter() {
    let mut projection = Projection::default();
    let call = compile_aggregate("COUNT(*)", &mut projection).unwrap();
    assert!(call.function == AggregateFunction::Count && call.argument.is_none());
    let call =
        compile_aggregate("sum(amount) FILTER (WHERE status = 'x')", &mut projection).unwrap();
    let mut row = Row::new();
    projection
        .decode(
            RecordInput {
                value: Some(JSON),
                ..RecordInput::default()
            },
            &mut row,
        )
        .unwrap();
    assert!(call.argument.unwrap().evaluate(&row).unwrap().is_null());
    for text in [
        "sum(*)",
        "sum()",
        "sum(a, b)",
        "sum('x')",
        "count(DISTINCT a)",
        "median(a)",
        "amount",
        "sum(a) OVER ()",
        "sum(a) + 1",
    ] {
        assert!(compile_aggregate(text, &mut projection).is_err(), "{text}");
    }
}
