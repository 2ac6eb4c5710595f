//! `min(x)` and `max(x)` by the total order of values (`Value::total_cmp`: NaN above every number, `-0.0` equal to `0`, strings by
//! their bytes), so that the result does not depend on which record came first. Of a double and a decimal of the same worth, which are
//! written differently, the double wins.
//!
//! In bytes: 0 nothing yet | 1 bytes of the encoded value | 2 a double, u64 LE of its bits.

use std::cmp::Ordering;

use crate::codec::{CodecError, Reader, put_bytes};
use crate::value::Value;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Minimum(Extreme);

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Maximum(Extreme);

#[derive(Debug, Clone, Default, PartialEq)]
struct Extreme(Option<Value<'static>>);

macro_rules! extreme {
    ($name:ident, $wins:path) => {
        impl $name {
            #[inline]
            pub fn add(&mut self, value: &Value<'_>) {
                if !value.is_null() && self.0.yields_to(value, $wins) {
                    self.0.0 = Some(value.reborrow().into_owned());
                }
            }

            pub fn merge(&mut self, other: $name) {
                if let Some(value) = other.0.0 {
                    if self.0.yields_to(&value, $wins) {
                        self.0.0 = Some(value);
                    }
                }
            }

            pub fn result(&self) -> Value<'_> {
                self.0.0.as_ref().map_or(Value::Null, Value::reborrow)
            }

            pub fn heap_bytes(&self) -> usize {
                self.0.heap_bytes()
            }

            pub fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }

            pub fn decode(reader: &mut Reader<'_>) -> Result<$name, CodecError> {
                Extreme::decode(reader).map($name)
            }
        }
    };
}

extreme!(Minimum, Ordering::Less);
extreme!(Maximum, Ordering::Greater);

impl Extreme {
    #[inline]
    fn yields_to(&self, value: &Value<'_>, wins: Ordering) -> bool {
        let Some(current) = &self.0 else { return true };
        match value.total_cmp(current) {
            Ordering::Equal => is_double(value) && !is_double(current),
            other => other == wins,
        }
    }

    fn heap_bytes(&self) -> usize {
        match &self.0 {
            Some(Value::String(text)) => text.len(),
            Some(Value::Bytes(bytes)) => bytes.len(),
            _ => 0,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            None => out.push(0),
            Some(Value::Double(value)) => {
                out.push(2);
                out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Some(value) => {
                out.push(1);
                let mut bytes = Vec::new();
                value.encode(&mut bytes);
                put_bytes(out, &bytes);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Extreme, CodecError> {
        match reader.byte()? {
            0 => Ok(Extreme(None)),
            1 => {
                let mut bytes = reader.bytes()?;
                let value =
                    Value::decode(&mut bytes).map_err(|error| reader.invalid(error.to_string()))?;
                if !bytes.is_empty() {
                    return Err(reader.invalid("bytes after a value"));
                }
                Ok(Extreme(Some(value.into_owned())))
            }
            2 => Ok(Extreme(Some(Value::Double(f64::from_bits(
                reader.unsigned64_le()?,
            ))))),
            other => Err(reader.unknown(u64::from(other))),
        }
    }
}

fn is_double(value: &Value<'_>) -> bool {
    matches!(value, Value::Double(_))
}
