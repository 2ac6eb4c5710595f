//! Records as lines of text: plain, or one JSON object a line.
//!
//! ```text
//! {"topic":"t","partition":0,"offset":4,"timestamp":1767225600000,"key":"k","value":"v","headers":[{"key":"h","value":"x"}]}
//! ```
//!
//! Bytes that are no UTF-8 stand as `key_base64`, `value_base64`. On the way in only `value` is needed; a `value` that is not a string
//! is its JSON text, null is a tombstone.

use serde_json::{Map, Value, json};

use crate::client::ConsumedRecord;

/// A header's key and value.
pub(super) type ParsedHeader = (String, Option<Vec<u8>>);

/// A record read from a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ParsedRecord {
    pub partition: Option<i32>,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<ParsedHeader>,
}

/// A line without key is all value; with a separator what stands before it is the key.
pub(super) fn parse_plain(line: &[u8], separator: Option<&[u8]>) -> Result<ParsedRecord, String> {
    let Some(separator) = separator else {
        return Ok(ParsedRecord {
            value: Some(line.to_vec()),
            ..ParsedRecord::default()
        });
    };
    let at = line
        .windows(separator.len())
        .position(|window| window == separator);
    let Some(at) = at else {
        return Err("has no key separator".to_owned());
    };
    let (key, rest) = line.split_at(at);
    let value = rest.get(separator.len()..).unwrap_or_default();
    Ok(ParsedRecord {
        key: Some(key.to_vec()),
        value: Some(value.to_vec()),
        ..ParsedRecord::default()
    })
}

pub(super) fn parse_json(line: &[u8]) -> Result<ParsedRecord, String> {
    let object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| format!("is no JSON object: {error}"))?;
    let mut record = ParsedRecord::default();
    for (name, value) in object {
        match name.as_str() {
            "key" => record.key = bytes_of(value),
            "value" => record.value = bytes_of(value),
            "key_base64" => record.key = Some(from_base64(&name, &value)?),
            "value_base64" => record.value = Some(from_base64(&name, &value)?),
            "timestamp" => record.timestamp = Some(integer(&name, &value)?),
            "partition" => {
                let number = integer(&name, &value)?;
                let partition = i32::try_from(number).ok().filter(|number| *number >= 0);
                record.partition = Some(partition.ok_or("has no such partition")?);
            }
            "headers" => record.headers = headers(value)?,
            // What `consume` writes can be fed to `produce`.
            "topic" | "offset" => {}
            _ => {
                let known = [
                    "key",
                    "value",
                    "key_base64",
                    "value_base64",
                    "timestamp",
                    "partition",
                    "headers",
                ];
                let hint = streamgauge_aggregator::diagnostic::did_you_mean(&name, known);
                let hint = hint.map_or(String::new(), |hint| format!(" ({hint})"));
                return Err(format!("has an unknown field '{name}'{hint}"));
            }
        }
    }
    Ok(record)
}

pub(super) fn write_plain(out: &mut Vec<u8>, record: &ConsumedRecord, separator: Option<&[u8]>) {
    if let Some(separator) = separator {
        out.extend_from_slice(record.key.as_deref().unwrap_or_default());
        out.extend_from_slice(separator);
    }
    out.extend_from_slice(record.value.as_deref().unwrap_or_default());
    out.push(b'\n');
}

pub(super) fn write_json(out: &mut Vec<u8>, record: &ConsumedRecord) {
    let mut object = Map::new();
    object.insert("topic".to_owned(), json!(record.topic));
    object.insert("partition".to_owned(), json!(record.partition));
    object.insert("offset".to_owned(), json!(record.offset));
    object.insert("timestamp".to_owned(), json!(record.timestamp));
    insert_bytes(&mut object, "key", record.key.as_deref());
    insert_bytes(&mut object, "value", record.value.as_deref());
    let headers = record.headers.iter().map(|header| {
        let mut object = Map::new();
        let key = String::from_utf8_lossy(&header.key);
        object.insert("key".to_owned(), json!(key));
        insert_bytes(&mut object, "value", header.value.as_deref());
        Value::Object(object)
    });
    object.insert("headers".to_owned(), Value::Array(headers.collect()));
    out.extend_from_slice(Value::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => object.insert(name.to_owned(), Value::Null),
        Some((_, Ok(text))) => object.insert(name.to_owned(), json!(text)),
        Some((bytes, Err(_))) => object.insert(format!("{name}_base64"), json!(base64(bytes))),
    };
}

fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}

fn integer(name: &str, value: &Value) -> Result<i64, String> {
    value
        .as_i64()
        .ok_or_else(|| format!("has a {name} that is no integer"))
}

fn headers(value: Value) -> Result<Vec<ParsedHeader>, String> {
    let wrong = || {
        "has headers that are neither an object nor a list of {\"key\":…,\"value\":…}".to_owned()
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(object) => Ok(object
            .into_iter()
            .map(|(key, value)| (key, bytes_of(value)))
            .collect()),
        Value::Array(list) => {
            let mut headers = Vec::with_capacity(list.len());
            for header in list {
                let Value::Object(mut header) = header else {
                    return Err(wrong());
                };
                let Some(Value::String(key)) = header.remove("key") else {
                    return Err(wrong());
                };
                let value = match header.remove("value_base64") {
                    Some(value) => Some(from_base64("value_base64", &value)?),
                    None => header.remove("value").and_then(bytes_of),
                };
                headers.push((key, value));
            }
            Ok(headers)
        }
        _ => Err(wrong()),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() {
                digit as char
            } else {
                '='
            });
        }
    }
    text
}

fn from_base64(name: &str, value: &Value) -> Result<Vec<u8>, String> {
    let wrong = || format!("has a {name} that is no base64 text");
    let text = value.as_str().ok_or_else(wrong)?;
    if !text.len().is_multiple_of(4) {
        return Err(wrong());
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return Err(wrong());
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut word, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit);
        word = (word << 6) | value.ok_or_else(wrong)? as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
            word &= (1 << bits) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use streamgauge_protocol::batch::HeaderView;

    #[test]
    fn a_written_record_is_read_back_as_it_was_whatever_its_bytes() {
        for key in [
            &b"k"[..],
            b"",
            b"\xff",
            b"\xff\xfe",
            b"\xff\xfe\x00",
            b"\xfa\x80\0\x01",
        ] {
            let record = ConsumedRecord {
                topic: "t".to_owned(),
                partition: 3,
                offset: 9,
                timestamp: 17,
                key: Some(Bytes::copy_from_slice(key)),
                value: None,
                headers: vec![
                    HeaderView {
                        key: "h".into(),
                        value: Some("x".into()),
                    },
                    HeaderView {
                        key: "h".into(),
                        value: None,
                    },
                ],
            };
            let mut line = Vec::new();
            write_json(&mut line, &record);
            let parsed = parse_json(&line).unwrap();
            let expected = ParsedRecord {
                partition: Some(3),
                timestamp: Some(17),
                key: Some(key.to_vec()),
                value: None,
                headers: vec![
                    ("h".to_owned(), Some(b"x".to_vec())),
                    ("h".to_owned(), None),
                ],
            };
            assert_eq!(parsed, expected);
        }
    }

    #[test]
    fn values_may_be_json_themselves() {
        let parsed = parse_json(br#"{"value":{"a":1},"headers":{"h":"x"}}"#).unwrap();
        assert_eq!(parsed.value.unwrap(), br#"{"a":1}"#);
        assert_eq!(parsed.headers, [("h".to_owned(), Some(b"x".to_vec()))]);
    }

    #[test]
    fn wrong_lines_are_refused_with_the_reason() {
        let wrong = |line: &str| parse_json(line.as_bytes()).unwrap_err();
        assert!(wrong("[1]").contains("no JSON object"));
        assert!(wrong(r#"{"valeu":1}"#).contains("did you mean 'value'"));
        assert!(wrong(r#"{"value_base64":"a"}"#).contains("base64"));
        assert!(wrong(r#"{"timestamp":"now"}"#).contains("timestamp"));
        assert!(wrong(r#"{"headers":[1]}"#).contains("headers"));
        assert!(parse_plain(b"no separator", Some(b":")).is_err());
    }

    #[test]
    fn a_key_ends_at_the_first_separator() {
        let parsed = parse_plain(b"a::b::c", Some(b"::")).unwrap();
        assert_eq!(parsed.key.unwrap(), b"a");
        assert_eq!(parsed.value.unwrap(), b"b::c");
    }
}
