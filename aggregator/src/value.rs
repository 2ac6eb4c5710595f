//! What an expression yields: SQL values over JSON.
//!
//! Numbers are one SQL type, exact `NUMERIC`: [`Value::Int`] is the fast spelling of a whole number and
//! equals the [`Value::Decimal`] of the same worth. JSON makes no difference between `1` and `1.0`, so
//! neither do comparison, group keys and output. [`Value::Double`] comes only from `CAST(… AS DOUBLE)`.
//!
//! The canonical encoding is one tag byte and a payload (integers little-endian). Equal values have equal
//! bytes, so that encoded group keys can be hashed and compared as bytes:
//!
//! ```text
//!   0 NULL        3 whole number  i64                    6 string  length u32, UTF-8
//!   1 false       4 decimal       scale u8, mantissa i128, no trailing zero
//!   2 true        5 double        bits u64 (no decimal equals it)   7 bytes  length u32, bytes
//! ```

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

use crate::decimal::{Decimal, compare_with_double};

/// A value; strings and bytes borrow from the record where they can.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Decimal(Decimal),
    Double(f64),
    String(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
}

/// Bytes that are no encoded value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueCodecError {
    #[error("encoded value is cut short")]
    Truncated,
    #[error("encoded value has unknown tag {0}")]
    UnknownTag(u8),
    #[error("encoded {0} is invalid")]
    Invalid(&'static str),
}

impl<'a> Value<'a> {
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The type's name for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "NULL",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Decimal(_) | Value::Double(_) => "a number",
            Value::String(_) => "a string",
            Value::Bytes(_) => "bytes",
        }
    }

    /// The exact number, for integers and decimals.
    pub fn as_decimal(&self) -> Option<Decimal> {
        match self {
            Value::Int(value) => Some(Decimal::from(*value)),
            Value::Decimal(value) => Some(*value),
            _ => None,
        }
    }

    /// A whole number in the `i64` range becomes [`Value::Int`].
    pub fn from_decimal(decimal: Decimal) -> Value<'static> {
        if decimal.scale() == 0
            && let Ok(value) = i64::try_from(decimal.mantissa())
        {
            return Value::Int(value);
        }
        Value::Decimal(decimal)
    }

    /// A copy that owns its text.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(value),
            Value::Int(value) => Value::Int(value),
            Value::Decimal(value) => Value::Decimal(value),
            Value::Double(value) => Value::Double(value),
            Value::String(value) => Value::String(Cow::Owned(value.into_owned())),
            Value::Bytes(value) => Value::Bytes(Cow::Owned(value.into_owned())),
        }
    }

    /// The same value borrowing this one's text: no allocation.
    pub fn reborrow(&self) -> Value<'_> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(*value),
            Value::Int(value) => Value::Int(*value),
            Value::Decimal(value) => Value::Decimal(*value),
            Value::Double(value) => Value::Double(*value),
            Value::String(value) => Value::String(Cow::Borrowed(value)),
            Value::Bytes(value) => Value::Bytes(Cow::Borrowed(value)),
        }
    }

    /// SQL's comparison of two values that are not NULL; `None` if their types cannot be compared.
    /// NaN equals itself and is greater than every number, as in PostgreSQL; `-0.0` equals `0`.
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
            (Value::String(left), Value::String(right)) => {
                Some(left.as_bytes().cmp(right.as_bytes()))
            }
            (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
            (Value::Bytes(left), Value::Bytes(right)) => Some(left.cmp(right)),
            (Value::Double(left), Value::Double(right)) => Some(compare_doubles(*left, *right)),
            (Value::Double(left), right) => {
                Some(compare_number_with_double(right.as_decimal()?, *left).reverse())
            }
            (left, Value::Double(right)) => {
                Some(compare_number_with_double(left.as_decimal()?, *right))
            }
            (left, right) => Some(left.as_decimal()?.cmp(&right.as_decimal()?)),
        }
    }

    /// A total order over all values: NULL, booleans, numbers, strings, bytes. Used where the order itself
    /// must be deterministic; it agrees with [`Value::compare`] where that one is defined.
    pub fn total_cmp(&self, other: &Value<'_>) -> Ordering {
        fn rank(value: &Value<'_>) -> u8 {
            match value {
                Value::Null => 0,
                Value::Bool(_) => 1,
                Value::Int(_) | Value::Decimal(_) | Value::Double(_) => 2,
                Value::String(_) => 3,
                Value::Bytes(_) => 4,
            }
        }
        rank(self)
            .cmp(&rank(other))
            .then_with(|| self.compare(other).unwrap_or(Ordering::Equal))
    }

    /// Appends the canonical encoding (see the top of this file).
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::Null => out.push(0),
            Value::Bool(value) => out.push(1 + u8::from(*value)),
            Value::Int(value) => encode_int(*value, out),
            Value::Decimal(value) => encode_decimal(*value, out),
            Value::Double(value) => match Decimal::from_f64_exact(*value) {
                Some(decimal) => encode_decimal(decimal, out),
                None => {
                    let canonical = if value.is_nan() { f64::NAN } else { *value };
                    out.push(5);
                    out.extend_from_slice(&canonical.to_bits().to_le_bytes());
                }
            },
            Value::String(value) => encode_bytes(6, value.as_bytes(), out),
            Value::Bytes(value) => encode_bytes(7, value, out),
        }
    }

    /// Takes one encoded value off the front of `input`; text borrows from it.
    pub fn decode(input: &mut &'a [u8]) -> Result<Value<'a>, ValueCodecError> {
        let [tag] = take(input)?;
        Ok(match tag {
            0 => Value::Null,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => Value::Int(i64::from_le_bytes(take(input)?)),
            4 => {
                let [scale] = take(input)?;
                let mantissa = i128::from_le_bytes(take(input)?);
                let decimal = Decimal::new(mantissa, u32::from(scale))
                    .ok_or(ValueCodecError::Invalid("decimal"))?;
                Value::Decimal(decimal)
            }
            5 => Value::Double(f64::from_bits(u64::from_le_bytes(take(input)?))),
            6 => {
                let text = std::str::from_utf8(take_bytes(input)?)
                    .map_err(|_| ValueCodecError::Invalid("string"))?;
                Value::String(Cow::Borrowed(text))
            }
            7 => Value::Bytes(Cow::Borrowed(take_bytes(input)?)),
            unknown => return Err(ValueCodecError::UnknownTag(unknown)),
        })
    }

    /// Appends JSON text. NaN and infinities, which JSON lacks, become strings as in Flink's JSON format;
    /// bytes become base64 text.
    pub fn write_json(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            // Writing to a String cannot fail.
            Value::Int(value) => _ = write!(out, "{value}"),
            Value::Decimal(value) => _ = write!(out, "{value}"),
            Value::Double(value) if value.is_finite() => {
                _ = write!(out, "{}", if *value == 0.0 { 0.0 } else { *value })
            }
            Value::Double(value) if value.is_nan() => out.push_str("\"NaN\""),
            Value::Double(value) => out.push_str(if *value > 0.0 {
                "\"Infinity\""
            } else {
                "\"-Infinity\""
            }),
            Value::String(value) => write_json_string(value, out),
            Value::Bytes(value) => write_base64(value, out),
        }
    }

    /// The JSON text alone.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }
}

/// By [`Value::total_cmp`]: `Int(1)` equals `Decimal(1.0)`, NULL equals NULL.
impl PartialEq for Value<'_> {
    fn eq(&self, other: &Value<'_>) -> bool {
        self.total_cmp(other) == Ordering::Equal
    }
}

impl Eq for Value<'_> {}

/// Appends `text` as a quoted JSON string.
pub fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    let mut clean_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(text.get(clean_from..at).unwrap_or_default());
        if escape.is_empty() {
            _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push_str(escape);
        }
        clean_from = at + 1;
    }
    out.push_str(text.get(clean_from..).unwrap_or_default());
    out.push('"');
}

fn write_base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.push('"');
    for chunk in bytes.chunks(3) {
        let mut group = 0u32;
        for at in 0..3 {
            group = group << 8 | u32::from(chunk.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            if at <= chunk.len() {
                out.push(char::from(ALPHABET[(group >> (18 - 6 * at) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out.push('"');
}

fn compare_doubles(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right)
        .unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

fn compare_number_with_double(number: Decimal, double: f64) -> Ordering {
    if double.is_finite() {
        return compare_with_double(number, double);
    }
    if double == f64::NEG_INFINITY {
        Ordering::Greater
    } else {
        Ordering::Less
    }
}

fn encode_int(value: i64, out: &mut Vec<u8>) {
    out.push(3);
    out.extend_from_slice(&value.to_le_bytes());
}

fn encode_decimal(decimal: Decimal, out: &mut Vec<u8>) {
    let normalized = decimal.normalized();
    if let Some(value) = normalized.to_i64() {
        return encode_int(value, out);
    }
    out.push(4);
    out.push(normalized.scale() as u8);
    out.extend_from_slice(&normalized.mantissa().to_le_bytes());
}

fn encode_bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    // Values come from records, which Kafka bounds below 2 GiB.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], ValueCodecError> {
    let (head, tail) = input
        .split_first_chunk::<N>()
        .ok_or(ValueCodecError::Truncated)?;
    *input = tail;
    Ok(*head)
}

fn take_bytes<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], ValueCodecError> {
    let length = u32::from_le_bytes(take(input)?) as usize;
    let (head, tail) = input
        .split_at_checked(length)
        .ok_or(ValueCodecError::Truncated)?;
    *input = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(value: &Value<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        value.encode(&mut out);
        out
    }

    fn any_value() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-20i64..20).prop_map(Value::Int),
            (-2000i64..2000, 0u32..4).prop_map(|(mantissa, scale)| Value::Decimal(
                Decimal::new(mantissa.into(), scale).unwrap()
            )),
            any::<f64>().prop_map(Value::Double),
            (-2000i32..2000).prop_map(|eighths| Value::Double(f64::from(eighths) / 8.0)),
            ".{0,4}".prop_map(|text| Value::String(text.into())),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| Value::Bytes(bytes.into())),
        ]
    }

    proptest! {
        #[test]
        fn equal_values_and_only_they_have_equal_encodings(left in any_value(), right in any_value()) {
            prop_assert_eq!(left == right, encoded(&left) == encoded(&right));
        }

        #[test]
        fn encodings_round_trip(value in any_value()) {
            let bytes = encoded(&value);
            let mut input = bytes.as_slice();
            prop_assert_eq!(Value::decode(&mut input).unwrap(), value);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Value::decode(&mut bytes.as_slice());
        }

        #[test]
        fn the_total_order_is_transitive(a in any_value(), b in any_value(), c in any_value()) {
            if a.total_cmp(&b).is_le() && b.total_cmp(&c).is_le() {
                prop_assert!(a.total_cmp(&c).is_le());
            }
            prop_assert_eq!(a.total_cmp(&b), b.total_cmp(&a).reverse());
        }

        #[test]
        fn strings_are_written_as_serde_json_reads_them(text in ".{0,20}") {
            let json = Value::String(text.as_str().into()).to_json();
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn one_and_one_point_zero_are_one_group() {
        let int = Value::Int(1);
        for other in [
            Value::Decimal(Decimal::new(100, 2).unwrap()),
            Value::Double(1.0),
        ] {
            assert_eq!(int, other);
            assert_eq!(encoded(&int), encoded(&other));
        }
        assert_eq!(encoded(&Value::Double(-0.0)), encoded(&Value::Int(0)));
        assert_eq!(
            encoded(&Value::Double(f64::NAN)),
            encoded(&Value::Double(-f64::NAN))
        );
    }

    #[test]
    fn values_of_different_types_do_not_compare() {
        assert_eq!(Value::Int(1).compare(&Value::String("1".into())), None);
        assert_eq!(Value::Null.compare(&Value::Int(1)), None);
        assert_eq!(
            Value::Double(f64::NAN).compare(&Value::Int(1)),
            Some(Ordering::Greater)
        );
    }

    #[test]
    fn json_output_is_valid_and_canonical() {
        assert_eq!(
            Value::Decimal(Decimal::new(1200, 2).unwrap()).to_json(),
            "12"
        );
        assert_eq!(Value::Double(f64::INFINITY).to_json(), "\"Infinity\"");
        assert_eq!(
            Value::Bytes(vec![1, 2, 3, 4].into()).to_json(),
            "\"AQIDBA==\""
        );
        assert_eq!(
            Value::String("a\"\u{1}\n".into()).to_json(),
            "\"a\\\"\\u0001\\n\""
        );
    }
}
