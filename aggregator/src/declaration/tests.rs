use super::*;

const GOOD: &str = "\
topic: orders-per-minute
partitions: 4
from: { topic: orders, format: json }
time: { field: order_time, max_out_of_orderness: 5s, idle_timeout: 10s }
where: status = 'paid'
group_by: [shop, country: customer.country]
window: { tumbling: 1m }
aggregate:
  orders: count(*)
  revenue: sum(amount)
late: { topic: orders-late }
";

fn mistakes(text: &str) -> Vec<String> {
    Declaration::parse_all(text, "f.yaml")
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_example_is_read_as_written() {
    let declarations = Declaration::parse_all(GOOD, "f.yaml").unwrap();
    let [declaration] = declarations.as_slice() else {
        panic!()
    };
    assert_eq!(declaration.text, GOOD);
    assert_eq!(declaration.partitions, Some(4));
    assert_eq!(declaration.time.max_out_of_orderness_ms, 5000);
    assert_eq!(declaration.time.idle_timeout_ms, Some(10_000));
    assert_eq!(
        declaration.window,
        Window {
            tumbling_ms: 60_000,
            offset_ms: 0
        }
    );
    let columns: Vec<_> = declaration
        .group_by
        .iter()
        .map(|column| (&*column.name, &*column.expression.text))
        .collect();
    assert_eq!(columns, [("shop", "shop"), ("country", "customer.country")]);
    assert_eq!(declaration.late.as_ref().unwrap().topic, "orders-late");
}

#[test]
fn several_documents_keep_their_own_text() {
    let second = GOOD.replace("orders-per-minute", "other");
    let declarations = Declaration::parse_all(&format!("{GOOD}---\n{second}"), "f.yaml").unwrap();
    assert_eq!(declarations[0].text, GOOD);
    for declaration in declarations {
        assert_eq!(
            Declaration::parse_all(&declaration.text, "again").unwrap()[0].topic,
            declaration.topic
        );
    }
    assert!(mistakes(&format!("{GOOD}---\n{GOOD}"))[0].contains("declared twice"));
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let text = "\
topic: bad name
frm: { topic: orders }
from: { topic: orders, format: xml }
time: { feild: t, max_out_of_orderness: 5 }
where: status == = 1
group_by: [shop, window_end: x]
window: { tumbling: 1m, offset: 2m }
aggregate: { a: summ(x), shop: count(*) }
";
    let found = mistakes(text);
    for part in [
        "f.yaml:1:8: topic: 'bad name' is no topic name",
        "f.yaml:2:1: frm: unknown field (did you mean 'from'?)",
        "from.format: 'xml' is none of json",
        "f.yaml:4:9: time.feild: unknown field (did you mean 'field'?)",
        "time.max_out_of_orderness: '5' is no duration (write a number with its unit",
        "group_by.window_end: is the name of a column that every result has",
        "window.offset: must be smaller than the window",
        "aggregate.shop: the column 'shop' is named twice",
        "f.yaml:8:17: aggregate.a: unknown aggregate function 'summ' (did you mean 'sum'?)",
    ] {
        assert!(
            found.iter().any(|mistake| mistake.contains(part)),
            "{part}\n{found:#?}"
        );
    }
}

#[test]
fn mistakes_in_expressions_have_their_place_in_the_file() {
    let found = mistakes(
        &GOOD
            .replace("status = 'paid'", "a AND lowr(b) = 'c'")
            .replace("sum(amount)", "summ(amount)")
            .replace("shop,", "x + 'a',"),
    );
    assert!(
        found.iter().any(|m| m
            .starts_with("f.yaml:5:14: where: unknown function 'lowr' (did you mean 'lower'?)")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|m| m.contains(
            "aggregate.revenue: unknown aggregate function 'summ' (did you mean 'sum'?)"
        )),
        "{found:#?}"
    );
    let found = mistakes(&GOOD.replace("status = 'paid'", "1 + 1"));
    assert!(
        found[0].contains("where: must be a condition, but is a number"),
        "{found:#?}"
    );
}

#[test]
fn missing_parts_and_zero_sizes_are_refused() {
    let found = mistakes("topic: t\n");
    for field in ["from", "time", "window", "aggregate"] {
        assert!(
            found
                .iter()
                .any(|mistake| mistake.contains(&format!("{field}: is missing"))),
            "{found:#?}"
        );
    }
    assert!(mistakes(&GOOD.replace("1m", "0s"))[0].contains("greater than 0"));
    assert!(mistakes(&GOOD.replace("orders-late", "orders"))[0].contains("already the source"));
    assert!(mistakes("")[0].contains("no declaration"));
    assert!(mistakes("a: [")[0].contains("not YAML"));
    assert!(mistakes("a: &x 1\nb: *x")[0].contains("aliases"));
}

#[test]
fn hostile_yaml_is_refused_within_bounds() {
    for text in [
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "a: 1\n".repeat(40_000),
        "x".repeat(DECLARATION_BYTES_MAX + 1),
    ] {
        assert!(Declaration::parse_all(&text, "f").is_err());
    }
}

#[test]
fn the_schema_knows_the_same_fields_as_the_reader_and_documents_each() {
    let schema = json_schema();
    let properties = schema["properties"].as_object().unwrap();
    let mut named: Vec<&str> = properties.keys().map(String::as_str).collect();
    let mut known = read::FIELDS.to_vec();
    named.sort_unstable();
    known.sort_unstable();
    assert_eq!(named, known);
    for (name, property) in properties {
        assert!(property["description"].is_string(), "{name}");
    }
    assert_eq!(schema["additionalProperties"], false);
}
