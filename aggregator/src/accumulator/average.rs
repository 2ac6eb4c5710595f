//! `avg(x)`: the exact sum divided once, at the end. Over integers and decimals the quotient is a decimal, exact where its digits
//! end and else rounded half away from zero after at least 16 of them (as PostgreSQL's `numeric`); with a double among the values
//! it is the double nearest to the exact mean. In bytes: the count, unsigned, then the sum.

use super::sum::Sum;
use crate::codec::{CodecError, Reader, put_unsigned};
use crate::value::Value;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Average {
    sum: Sum,
    count: u64,
}

impl Average {
    #[inline]
    pub fn add(&mut self, value: &Value<'_>) {
        self.count += u64::from(self.sum.add(value));
    }

    pub fn merge(&mut self, other: &Average) {
        self.sum.merge(&other.sum);
        self.count = self.count.saturating_add(other.count);
    }

    pub fn result(&self) -> Value<'static> {
        match self.count {
            0 => Value::Null,
            count => self.sum.divided_by(count),
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.sum.heap_bytes()
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_unsigned(out, self.count);
        self.sum.encode(out);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Average, CodecError> {
        Ok(Average {
            count: reader.unsigned()?,
            sum: Sum::decode(reader)?,
        })
    }
}
