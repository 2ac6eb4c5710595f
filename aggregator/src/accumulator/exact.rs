//! Sums that do not drift: an integer of any size times a power of ten.
//!
//! Integers and decimals are added as they are written, and a double as the exact decimal expansion that every double has, so the
//! total depends neither on the order of the additions nor on how they were split up. The common case is one checked addition
//! of 128-bit integers; past 128 bits the mantissa becomes a big integer. Scales are bounded by [`SCALE_MAX`], and so is memory.

use num_bigint::{BigInt, BigUint, Sign};

use crate::codec::{CodecError, Reader, put_bytes, put_unsigned, put_wide};

/// The most digits after the point: the smallest double has 1074.
pub const SCALE_MAX: u32 = 1100;

/// `mantissa / 10^scale`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactSum {
    scale: u32,
    mantissa: Mantissa,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mantissa {
    Small(i128),
    /// Only for what does not fit [`Mantissa::Small`], so that equal sums have equal bytes.
    Big(Box<BigInt>),
}

impl Default for ExactSum {
    fn default() -> Self {
        ExactSum::ZERO
    }
}

impl ExactSum {
    pub const ZERO: ExactSum = ExactSum {
        scale: 0,
        mantissa: Mantissa::Small(0),
    };

    #[inline]
    pub fn add_integer(&mut self, value: i64) {
        self.add_decimal(i128::from(value), 0);
    }

    /// Adds `mantissa / 10^scale`; `scale` is at most [`SCALE_MAX`].
    #[inline]
    pub fn add_decimal(&mut self, mantissa: i128, scale: u32) {
        if scale == self.scale
            && let Mantissa::Small(total) = &mut self.mantissa
            && let Some(sum) = total.checked_add(mantissa)
        {
            *total = sum;
            return;
        }
        self.add_slowly(&ExactSum {
            scale,
            mantissa: Mantissa::Small(mantissa),
        });
    }

    /// Adds a finite double exactly. The caller keeps what is not finite apart.
    pub fn add_double(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "{value} has no exact value");
        if value == 0.0 || !value.is_finite() {
            return;
        }
        let bits = value.to_bits();
        let exponent_bits = ((bits >> 52) & 0x7ff) as i32;
        let fraction = (bits & ((1 << 52) - 1)) as i64;
        let (mut integer, mut exponent) = match exponent_bits {
            0 => (fraction, -1074),
            _ => (fraction | (1 << 52), exponent_bits - 1075),
        };
        let zeros = integer.trailing_zeros();
        integer >>= zeros;
        exponent += zeros as i32;
        if value < 0.0 {
            integer = -integer;
        }
        // 2^-n = 5^n / 10^n
        let addend = if exponent >= 0 {
            ExactSum::from_big(BigInt::from(integer) << exponent as u32, 0)
        } else {
            let scale = exponent.unsigned_abs();
            ExactSum::from_big(BigInt::from(integer) * BigInt::from(5u8).pow(scale), scale)
        };
        self.add_slowly(&addend);
    }

    pub fn merge(&mut self, other: &ExactSum) {
        match other.mantissa {
            Mantissa::Small(mantissa) => self.add_decimal(mantissa, other.scale),
            Mantissa::Big(_) => self.add_slowly(other),
        }
    }

    #[cold]
    fn add_slowly(&mut self, other: &ExactSum) {
        let scale = self.scale.max(other.scale);
        if let (Some(left), Some(right)) = (self.small_at(scale), other.small_at(scale))
            && let Some(sum) = left.checked_add(right)
        {
            *self = ExactSum {
                scale,
                mantissa: Mantissa::Small(sum),
            };
            return;
        }
        *self = ExactSum::from_big(self.big_at(scale) + other.big_at(scale), scale);
    }

    fn from_big(mantissa: BigInt, scale: u32) -> ExactSum {
        let mantissa = match i128::try_from(&mantissa) {
            Ok(small) => Mantissa::Small(small),
            Err(_) => Mantissa::Big(Box::new(mantissa)),
        };
        ExactSum { scale, mantissa }
    }

    fn small_at(&self, scale: u32) -> Option<i128> {
        match self.mantissa {
            Mantissa::Small(0) => Some(0),
            Mantissa::Small(mantissa) => {
                mantissa.checked_mul(10i128.checked_pow(scale - self.scale)?)
            }
            Mantissa::Big(_) => None,
        }
    }

    fn big_at(&self, scale: u32) -> BigInt {
        let mantissa = self.big();
        if scale == self.scale {
            mantissa
        } else {
            mantissa * BigInt::from(10u8).pow(scale - self.scale)
        }
    }

    fn big(&self) -> BigInt {
        match &self.mantissa {
            Mantissa::Small(mantissa) => BigInt::from(*mantissa),
            Mantissa::Big(mantissa) => (**mantissa).clone(),
        }
    }

    /// The mantissa and the scale.
    pub fn to_big(&self) -> (BigInt, u32) {
        (self.big(), self.scale)
    }

    fn is_negative(&self) -> bool {
        match &self.mantissa {
            Mantissa::Small(mantissa) => *mantissa < 0,
            Mantissa::Big(mantissa) => mantissa.sign() == Sign::Minus,
        }
    }

    /// The sum divided by `count`, rounded once to the nearest double (ties to even).
    pub fn divided_by(&self, count: u64) -> f64 {
        let denominator = BigUint::from(10u8).pow(self.scale) * count;
        let quotient = nearest_double(self.big().magnitude(), &denominator);
        if self.is_negative() {
            -quotient
        } else {
            quotient
        }
    }

    /// The double that is nearest to the sum.
    pub fn to_double(&self) -> f64 {
        self.divided_by(1)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.mantissa {
            Mantissa::Small(_) => 0,
            Mantissa::Big(mantissa) => size_of::<BigInt>() + mantissa.bits() as usize / 8 + 8,
        }
    }

    /// `scale * 2 + (0 small | 1 big)`, then the mantissa.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.mantissa {
            Mantissa::Small(mantissa) => {
                put_unsigned(out, u64::from(self.scale) * 2);
                put_wide(out, *mantissa);
            }
            Mantissa::Big(mantissa) => {
                put_unsigned(out, u64::from(self.scale) * 2 + 1);
                put_bytes(out, &mantissa.to_signed_bytes_le());
            }
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<ExactSum, CodecError> {
        let head = reader.unsigned32()?;
        let scale = head / 2;
        if scale > SCALE_MAX {
            return Err(reader.invalid(format!("a scale of {scale}")));
        }
        if head % 2 == 0 {
            Ok(ExactSum {
                scale,
                mantissa: Mantissa::Small(reader.wide()?),
            })
        } else {
            Ok(ExactSum::from_big(
                BigInt::from_signed_bytes_le(reader.bytes()?),
                scale,
            ))
        }
    }
}

/// `numerator / denominator` rounded to the nearest double, ties to even, also among the subnormal ones.
fn nearest_double(numerator: &BigUint, denominator: &BigUint) -> f64 {
    const PRECISION: i64 = 53;
    const EXPONENT_MIN: i64 = -1022;
    const EXPONENT_MAX: i64 = 1023;
    if numerator.bits() == 0 {
        return 0.0;
    }
    // A quotient of 64 or 65 bits and whether anything is left below it decide the rounding.
    let shift = 64 - (numerator.bits() as i64 - denominator.bits() as i64);
    let (numerator, denominator) = if shift >= 0 {
        (numerator << shift as u64, denominator.clone())
    } else {
        (numerator.clone(), denominator << shift.unsigned_abs())
    };
    let quotient = &numerator / &denominator;
    let inexact = &quotient * &denominator != numerator;
    let Ok(quotient) = u128::try_from(&quotient) else {
        return f64::INFINITY;
    };
    let bits = i64::from(u128::BITS - quotient.leading_zeros());
    let exponent = bits - 1 - shift;
    if exponent > EXPONENT_MAX {
        return f64::INFINITY;
    }
    let precision = if exponent >= EXPONENT_MIN {
        PRECISION
    } else {
        PRECISION - (EXPONENT_MIN - exponent)
    };
    if precision < 0 {
        return 0.0;
    }
    let dropped = bits - precision;
    let kept = quotient >> dropped;
    let below = quotient & ((1u128 << dropped) - 1);
    let half = 1u128 << (dropped - 1);
    let round_up = below > half || (below == half && (inexact || kept & 1 == 1));
    let integer = (kept + u128::from(round_up)) as f64;
    // Two factors, since 2^-1074 itself is not to be had by `powi`; each product is exact.
    let scale = (dropped - shift) as i32;
    integer * 2f64.powi(scale / 2) * 2f64.powi(scale - scale / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum_of(parts: &[(i128, u32)]) -> ExactSum {
        let mut sum = ExactSum::ZERO;
        for &(mantissa, scale) in parts {
            sum.add_decimal(mantissa, scale);
        }
        sum
    }

    #[test]
    fn a_tenth_added_ten_times_is_one() {
        assert_eq!(sum_of(&[(1, 1); 10]).to_big(), (BigInt::from(10), 1));
        assert_eq!(
            sum_of(&[(10, 2), (-25, 1), (3, 0)]).to_big(),
            (BigInt::from(60), 2)
        );
    }

    #[test]
    fn sums_past_128_bits_stay_exact_and_come_back() {
        let mut sum = sum_of(&[(i128::MAX, 0), (i128::MAX, 0)]);
        assert_eq!(
            sum.to_big().0.to_string(),
            "340282366920938463463374607431768211454"
        );
        assert!(sum.heap_bytes() > 0);
        sum.add_decimal(-i128::MAX, 0);
        assert_eq!(
            (sum.to_big(), sum.heap_bytes()),
            ((BigInt::from(i128::MAX), 0), 0)
        );
    }

    #[test]
    fn doubles_are_added_exactly() {
        let mut sum = ExactSum::ZERO;
        for value in [
            1e300,
            1.0,
            -1e300,
            0.5,
            f64::from_bits(1),
            -f64::from_bits(1),
        ] {
            sum.add_double(value);
        }
        assert_eq!(sum.to_double(), 1.5);
    }

    #[test]
    fn quotients_are_rounded_once() {
        assert_eq!(sum_of(&[(2030, 2)]).divided_by(2), 10.15);
        assert_eq!(sum_of(&[(1, 0)]).divided_by(3), 1.0 / 3.0);
        assert_eq!(sum_of(&[(-10, 0)]).divided_by(4), -2.5);
        assert_eq!(ExactSum::ZERO.divided_by(7), 0.0);
        // Half way between two doubles: to the even one.
        assert_eq!(
            sum_of(&[((1 << 53) + 1, 0)]).to_double(),
            9007199254740992.0
        );
        assert_eq!(
            sum_of(&[((1 << 53) + 3, 0)]).to_double(),
            9007199254740996.0
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_split_and_order_gives_the_same_sum(
            parts in proptest::collection::vec((any::<i128>(), 0u32..40), 0..12), doubles in proptest::collection::vec(any::<f64>(), 0..4),
            split in 0usize..12,
        ) {
            let doubles: Vec<f64> = doubles.into_iter().filter(|value| value.is_finite()).collect();
            let split = split.min(parts.len());
            let mut whole = sum_of(&parts);
            doubles.iter().for_each(|value| whole.add_double(*value));
            let mut right = sum_of(&parts[split..]);
            doubles.iter().rev().for_each(|value| right.add_double(*value));
            right.merge(&sum_of(&parts[..split]));
            prop_assert_eq!(&whole, &right);
            let mut bytes = Vec::new();
            whole.encode(&mut bytes);
            let mut reader = Reader::new("sum", &bytes);
            prop_assert_eq!(ExactSum::decode(&mut reader).unwrap(), whole);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn a_double_survives_its_exact_expansion(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite() && value != 0.0);
            let mut sum = ExactSum::ZERO;
            sum.add_double(value);
            prop_assert_eq!(sum.to_double(), value);
        }

        #[test]
        fn the_nearest_double_is_what_the_standard_parser_says(mantissa: i128, scale in 0u32..400) {
            let sum = sum_of(&[(mantissa, scale)]);
            prop_assert_eq!(sum.to_double(), format!("{mantissa}e-{scale}").parse::<f64>().unwrap());
        }
    }
}
