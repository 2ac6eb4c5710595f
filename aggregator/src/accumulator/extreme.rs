//! `min(x)` and `max(x)` by the total order of values (`Value::total_cmp`: NaN above every number, `-0.0` equal to `0`, strings by
//! their bytes), so that the result does not depend on which record came first. In bytes: optional bytes of the encoded value.

use std::cmp::Ordering;

use crate::codec::{CodecError, Reader, put_optional_bytes};
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
        self.0
            .as_ref()
            .is_none_or(|current| value.total_cmp(current) == wins)
    }

    fn heap_bytes(&self) -> usize {
        match &self.0 {
            Some(Value::String(text)) => text.len(),
            Some(Value::Bytes(bytes)) => bytes.len(),
            _ => 0,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let encoded = self.0.as_ref().map(|value| {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            bytes
        });
        put_optional_bytes(out, encoded.as_deref());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Extreme, CodecError> {
        let Some(mut bytes) = reader.optional_bytes()? else {
            return Ok(Extreme(None));
        };
        let value = Value::decode(&mut bytes).map_err(|error| reader.invalid(error.to_string()))?;
        if !bytes.is_empty() {
            return Err(reader.invalid("bytes after a value"));
        }
        Ok(Extreme(Some(value.into_owned())))
    }
}
