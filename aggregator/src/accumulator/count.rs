//! `count(x)`: how many values were not NULL. In bytes: the count, unsigned.

use crate::codec::{CodecError, Reader, put_unsigned};
use crate::value::Value;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    count: u64,
}

impl Count {
    #[inline]
    pub fn add(&mut self, value: &Value<'_>) {
        self.count += u64::from(!value.is_null());
    }

    pub fn merge(&mut self, other: Count) {
        self.count = self.count.saturating_add(other.count);
    }

    pub fn result(&self) -> Value<'static> {
        Value::Int(i64::try_from(self.count).unwrap_or(i64::MAX))
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_unsigned(out, self.count);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Count, CodecError> {
        Ok(Count {
            count: reader.unsigned()?,
        })
    }
}
