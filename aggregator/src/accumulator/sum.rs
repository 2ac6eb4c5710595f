//! `sum(x)`: exact over integers and decimals. If a double was among the values, the result is the double nearest to the exact
//! sum of them all; NaN and the infinities have IEEE's effect, in any order.
//!
//! In bytes: flags u8 (1 a value was seen, 2 a double was, 4 NaN, 8 infinity, 16 minus infinity), then the exact sum.

use num_bigint::BigInt;

use super::exact::ExactSum;
use crate::codec::{CodecError, Reader};
use crate::decimal::Decimal;
use crate::value::Value;

const SEEN: u8 = 1;
const DOUBLE: u8 = 2;
const NAN: u8 = 4;
const INFINITY: u8 = 8;
const MINUS_INFINITY: u8 = 16;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    total: ExactSum,
    flags: u8,
}

impl Sum {
    /// Adds a number; true if it was one.
    #[inline]
    pub fn add(&mut self, value: &Value<'_>) -> bool {
        match value {
            Value::Int(value) => self.total.add_integer(*value),
            Value::Decimal(value) => self.total.add_decimal(value.mantissa(), value.scale()),
            Value::Double(value) => self.add_double(*value),
            _ => return false,
        }
        self.flags |= SEEN;
        true
    }

    fn add_double(&mut self, value: f64) {
        self.flags |= DOUBLE;
        if value.is_nan() {
            self.flags |= NAN;
        } else if value == f64::INFINITY {
            self.flags |= INFINITY;
        } else if value == f64::NEG_INFINITY {
            self.flags |= MINUS_INFINITY;
        } else {
            self.total.add_double(value);
        }
    }

    pub fn merge(&mut self, other: &Sum) {
        self.total.merge(&other.total);
        self.flags |= other.flags;
    }

    /// A sum of more than 38 digits before the point, which no decimal holds, is given as the nearest double.
    pub fn result(&self) -> Value<'static> {
        if self.flags & SEEN == 0 {
            return Value::Null;
        }
        if self.flags & DOUBLE != 0 {
            return Value::Double(self.not_finite().unwrap_or_else(|| self.total.to_double()));
        }
        let (mantissa, scale) = self.total.to_big();
        match Decimal::from_bigint(&mantissa, scale) {
            Some(decimal) => Value::from_decimal(decimal),
            None => Value::Double(self.total.to_double()),
        }
    }

    /// The mean over `count` values, for [`super::average::Average`].
    pub(super) fn divided_by(&self, count: u64) -> Value<'static> {
        if self.flags & DOUBLE != 0 {
            return Value::Double(
                self.not_finite()
                    .unwrap_or_else(|| self.total.divided_by(count)),
            );
        }
        let (mantissa, scale) = self.total.to_big();
        match Decimal::quotient(&mantissa, scale, &BigInt::from(count), 0) {
            Some(decimal) => Value::from_decimal(decimal.normalized()),
            None => Value::Double(self.total.divided_by(count)),
        }
    }

    fn not_finite(&self) -> Option<f64> {
        let both = INFINITY | MINUS_INFINITY;
        if self.flags & NAN != 0 || self.flags & both == both {
            Some(f64::NAN)
        } else if self.flags & INFINITY != 0 {
            Some(f64::INFINITY)
        } else if self.flags & MINUS_INFINITY != 0 {
            Some(f64::NEG_INFINITY)
        } else {
            None
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.total.heap_bytes()
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.flags);
        self.total.encode(out);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Sum, CodecError> {
        Ok(Sum {
            flags: reader.byte()?,
            total: ExactSum::decode(reader)?,
        })
    }
}
