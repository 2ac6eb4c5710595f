//! Exact decimal numbers: an integer mantissa of up to 38 digits and a scale.
//!
//! JSON number text becomes a `Decimal` without passing through binary floating point, so that
//! `0.1` is a tenth, sums do not drift and do not depend on the order of addition.
//! 38 digits are what SQL's and Flink's `DECIMAL` hold.

use std::cmp::Ordering;
use std::fmt;

use num_bigint::BigInt;

/// The largest number of decimal digits, of the mantissa and of the fraction alike.
pub const DECIMAL_DIGITS_MAX: u32 = 38;

/// The fraction digits that a division yields at least, where it does not come out even.
const DIVISION_SCALE_MIN: u32 = 16;

const MANTISSA_MAX: i128 = 10i128.pow(DECIMAL_DIGITS_MAX) - 1;

/// `mantissa / 10^scale`. Equality and order are numeric: `1.0` equals `1`.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    mantissa: i128,
    scale: u32,
}

/// Why a text is no [`Decimal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Not a number in JSON's grammar.
    #[error("is not a number")]
    Malformed,
    /// More digits than [`DECIMAL_DIGITS_MAX`] before or after the point.
    #[error("needs more than {DECIMAL_DIGITS_MAX} digits")]
    OutOfRange,
}

impl Decimal {
    pub const ZERO: Decimal = Decimal {
        mantissa: 0,
        scale: 0,
    };

    /// `None` if either exceeds 38 digits.
    pub fn new(mantissa: i128, scale: u32) -> Option<Decimal> {
        let fits = scale <= DECIMAL_DIGITS_MAX && mantissa.unsigned_abs() <= MANTISSA_MAX as u128;
        fits.then_some(Decimal { mantissa, scale })
    }

    pub fn mantissa(self) -> i128 {
        self.mantissa
    }

    /// Digits after the point, 0 to 38.
    pub fn scale(self) -> u32 {
        self.scale
    }

    /// The nearest representable `mantissa / 10^scale`: trailing zeros go, then fraction digits are
    /// rounded (half away from zero) until 38 digits suffice. `None` if the whole part needs more.
    pub fn from_bigint(mantissa: &BigInt, scale: u32) -> Option<Decimal> {
        if let Ok(small) = i128::try_from(mantissa)
            && let Some(decimal) = Decimal::new(small, scale)
        {
            return Some(decimal);
        }
        let digits = mantissa.magnitude().to_string().len() as u32;
        let mut drop = digits
            .saturating_sub(DECIMAL_DIGITS_MAX)
            .max(scale.saturating_sub(DECIMAL_DIGITS_MAX));
        while drop <= scale {
            let rounded = round_big(mantissa, drop);
            if let Ok(small) = i128::try_from(&rounded)
                && let Some(decimal) = Decimal::new(small, scale - drop)
            {
                return Some(decimal);
            }
            drop += 1;
        }
        None
    }

    /// Reads JSON's number grammar exactly.
    pub fn parse(text: &str) -> Result<Decimal, DecimalError> {
        let bytes = text.as_bytes();
        let negative = bytes.first() == Some(&b'-');
        let mut rest = &bytes[usize::from(negative)..];
        let mut mantissa: i128 = 0;
        let mut scale: i64 = 0;
        // Zeros are held back until a digit follows: `1.500` and `1e3` spend no mantissa on them.
        let mut zeros: u32 = 0;
        let mut digits_seen = false;
        let mut point_seen = false;
        let mut push = |digit: u8, zeros: &mut u32| -> Result<(), DecimalError> {
            if digit == 0 {
                *zeros += 1;
                return Ok(());
            }
            if mantissa == 0 {
                mantissa = i128::from(digit);
            } else {
                let shifted = 10i128
                    .checked_pow(*zeros + 1)
                    .and_then(|power| mantissa.checked_mul(power))
                    .ok_or(DecimalError::OutOfRange)?;
                mantissa = shifted + i128::from(digit);
            }
            *zeros = 0;
            if mantissa > MANTISSA_MAX {
                Err(DecimalError::OutOfRange)
            } else {
                Ok(())
            }
        };
        while let [first, tail @ ..] = rest {
            match first {
                b'0'..=b'9' => {
                    push(first - b'0', &mut zeros)?;
                    digits_seen = true;
                    scale += i64::from(point_seen);
                }
                b'.' if !point_seen
                    && digits_seen
                    && tail.first().is_some_and(u8::is_ascii_digit) =>
                {
                    point_seen = true
                }
                b'e' | b'E' if digits_seen => break,
                _ => return Err(DecimalError::Malformed),
            }
            rest = tail;
        }
        if !digits_seen {
            return Err(DecimalError::Malformed);
        }
        let mut exponent: i64 = 0;
        if let [_, tail @ ..] = rest {
            let text = std::str::from_utf8(tail).map_err(|_| DecimalError::Malformed)?;
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(DecimalError::Malformed);
            }
            let magnitude = digits.parse::<i64>().unwrap_or(1 << 40).min(1 << 40);
            exponent = if text.starts_with('-') {
                -magnitude
            } else {
                magnitude
            };
        }
        if mantissa == 0 {
            return Ok(Decimal::ZERO);
        }
        let mut scale = scale - i64::from(zeros) - exponent;
        if scale < 0 {
            let power = u32::try_from(-scale)
                .ok()
                .and_then(|power| 10i128.checked_pow(power));
            mantissa = power
                .and_then(|power| mantissa.checked_mul(power))
                .ok_or(DecimalError::OutOfRange)?;
            scale = 0;
        }
        let scale = u32::try_from(scale).map_err(|_| DecimalError::OutOfRange)?;
        Decimal::new(if negative { -mantissa } else { mantissa }, scale)
            .ok_or(DecimalError::OutOfRange)
    }

    /// The exact value of a finite double, where 38 digits hold it.
    pub fn from_f64_exact(double: f64) -> Option<Decimal> {
        if !double.is_finite() {
            return None;
        }
        let (mantissa, exponent) = double_parts(double);
        if mantissa == 0 {
            return Some(Decimal::ZERO);
        }
        let shift = mantissa.trailing_zeros();
        let (odd, exponent) = (mantissa >> shift, exponent + shift as i32);
        let (scaled, scale) = if exponent >= 0 {
            (odd.checked_mul(2i128.checked_pow(exponent as u32)?)?, 0)
        } else {
            (
                odd.checked_mul(5i128.checked_pow(exponent.unsigned_abs())?)?,
                exponent.unsigned_abs(),
            )
        };
        Decimal::new(scaled, scale)
    }

    /// The nearest double.
    pub fn to_f64(self) -> f64 {
        const EXACT: i128 = 1 << 53;
        if self.mantissa.abs() <= EXACT && self.scale <= 22 {
            // Both are exact, so that the division rounds once.
            return self.mantissa as f64 / 10f64.powi(self.scale as i32);
        }
        format!("{}e-{}", self.mantissa, self.scale)
            .parse()
            .unwrap_or(f64::NAN)
    }

    /// The same number without trailing zeros in the fraction: one spelling for one number.
    pub fn normalized(self) -> Decimal {
        let mut normalized = self;
        while normalized.scale > 0 && normalized.mantissa % 10 == 0 {
            normalized.mantissa /= 10;
            normalized.scale -= 1;
        }
        normalized
    }

    /// The value if it is whole and fits.
    pub fn to_i64(self) -> Option<i64> {
        let normalized = self.normalized();
        if normalized.scale == 0 {
            i64::try_from(normalized.mantissa).ok()
        } else {
            None
        }
    }

    pub fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    pub fn checked_add(self, other: Decimal) -> Option<Decimal> {
        let scale = self.scale.max(other.scale);
        if let (Some(left), Some(right)) = (self.at_scale(scale), other.at_scale(scale))
            && let Some(sum) = left.checked_add(right)
            && let Some(decimal) = Decimal::new(sum, scale)
        {
            return Some(decimal);
        }
        Decimal::exact_from_bigint(self.big_at_scale(scale) + other.big_at_scale(scale), scale)
    }

    pub fn checked_sub(self, other: Decimal) -> Option<Decimal> {
        self.checked_add(other.negated())
    }

    /// The product, rounded half away from zero only where 38 digits cannot hold it.
    pub fn checked_mul(self, other: Decimal) -> Option<Decimal> {
        let scale = self.scale + other.scale;
        if let Some(product) = self.mantissa.checked_mul(other.mantissa)
            && let Some(decimal) = Decimal::new(product, scale)
        {
            return Some(decimal);
        }
        Decimal::from_bigint(
            &(BigInt::from(self.mantissa) * BigInt::from(other.mantissa)),
            scale,
        )
    }

    /// The quotient, to at least 16 fraction digits, rounded half away from zero.
    /// `None` for a zero divisor or where the whole part needs more than 38 digits.
    pub fn checked_div(self, other: Decimal) -> Option<Decimal> {
        if other.mantissa == 0 {
            return None;
        }
        Decimal::quotient(
            &BigInt::from(self.mantissa),
            self.scale,
            &BigInt::from(other.mantissa),
            other.scale,
        )
    }

    /// `(dividend / 10^dividend_scale) / (divisor / 10^divisor_scale)`, rounded as
    /// [`Decimal::checked_div`] does; what an average needs, whose sum may be wider than a `Decimal`.
    pub fn quotient(
        dividend: &BigInt,
        dividend_scale: u32,
        divisor: &BigInt,
        divisor_scale: u32,
    ) -> Option<Decimal> {
        if divisor.magnitude().bits() == 0 {
            return None;
        }
        let scale = DIVISION_SCALE_MIN.max(dividend_scale).max(divisor_scale);
        // result = dividend * 10^(scale + divisor_scale - dividend_scale) / divisor, never negative in the exponent.
        let scaled = dividend * BigInt::from(10).pow(scale + divisor_scale - dividend_scale);
        let decimal = Decimal::from_bigint(&divide_rounding(&scaled, divisor), scale)?;
        Some(decimal.normalized())
    }

    /// The remainder with the dividend's sign, as SQL's `MOD`.
    pub fn checked_rem(self, other: Decimal) -> Option<Decimal> {
        if other.mantissa == 0 {
            return None;
        }
        let scale = self.scale.max(other.scale);
        Decimal::exact_from_bigint(self.big_at_scale(scale) % other.big_at_scale(scale), scale)
    }

    pub fn negated(self) -> Decimal {
        Decimal {
            mantissa: -self.mantissa,
            ..self
        }
    }

    pub fn abs(self) -> Decimal {
        Decimal {
            mantissa: self.mantissa.abs(),
            ..self
        }
    }

    /// Rounded half away from zero to `scale` fraction digits.
    pub fn round(self, scale: u32) -> Decimal {
        match self.split_at(scale) {
            None => self,
            Some((whole, rest, unit)) => {
                let away = rest.unsigned_abs() * 2 >= unit.unsigned_abs();
                Decimal {
                    mantissa: whole + if away { self.mantissa.signum() } else { 0 },
                    scale,
                }
            }
        }
    }

    pub fn floor(self) -> Decimal {
        match self.split_at(0) {
            None => self,
            Some((whole, rest, _)) => Decimal {
                mantissa: whole - i128::from(rest < 0),
                scale: 0,
            },
        }
    }

    pub fn ceil(self) -> Decimal {
        match self.split_at(0) {
            None => self,
            Some((whole, rest, _)) => Decimal {
                mantissa: whole + i128::from(rest > 0),
                scale: 0,
            },
        }
    }

    /// Towards zero, to `scale` fraction digits.
    pub fn truncate(self, scale: u32) -> Decimal {
        self.split_at(scale).map_or(self, |(whole, _, _)| Decimal {
            mantissa: whole,
            scale,
        })
    }

    /// Whole and rest of the mantissa in units of the last digit kept; `None` if nothing is cut.
    fn split_at(self, scale: u32) -> Option<(i128, i128, i128)> {
        if scale >= self.scale {
            return None;
        }
        // 10^38 still fits an i128.
        let unit = 10i128.pow(self.scale - scale);
        Some((self.mantissa / unit, self.mantissa % unit, unit))
    }

    fn at_scale(self, scale: u32) -> Option<i128> {
        if scale == self.scale {
            return Some(self.mantissa);
        }
        self.mantissa
            .checked_mul(10i128.checked_pow(scale.checked_sub(self.scale)?)?)
    }

    fn big_at_scale(self, scale: u32) -> BigInt {
        BigInt::from(self.mantissa) * BigInt::from(10).pow(scale.saturating_sub(self.scale))
    }

    fn exact_from_bigint(mut mantissa: BigInt, mut scale: u32) -> Option<Decimal> {
        loop {
            if let Ok(small) = i128::try_from(&mantissa)
                && let Some(decimal) = Decimal::new(small, scale)
            {
                return Some(decimal);
            }
            if scale == 0 || (&mantissa % 10) != BigInt::ZERO {
                return None;
            }
            mantissa /= 10;
            scale -= 1;
        }
    }
}

/// `double = mantissa * 2^exponent`, exactly.
pub(crate) fn double_parts(double: f64) -> (i128, i32) {
    let bits = double.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32;
    let fraction = (bits & ((1 << 52) - 1)) as i128;
    let mantissa = if exponent == 0 {
        fraction
    } else {
        fraction | (1 << 52)
    };
    let exponent = exponent.max(1) - 1075;
    (
        if double.is_sign_negative() {
            -mantissa
        } else {
            mantissa
        },
        exponent,
    )
}

/// Compares a decimal with a finite double without rounding either.
pub(crate) fn compare_with_double(decimal: Decimal, double: f64) -> Ordering {
    let (mantissa, exponent) = double_parts(double);
    let mut left = BigInt::from(decimal.mantissa);
    let mut right = BigInt::from(mantissa) * BigInt::from(10).pow(decimal.scale);
    if exponent >= 0 {
        right <<= exponent as usize;
    } else {
        left <<= exponent.unsigned_abs() as usize;
    }
    left.cmp(&right)
}

fn divide_rounding(dividend: &BigInt, divisor: &BigInt) -> BigInt {
    let quotient = dividend / divisor;
    let rest = dividend % divisor;
    if rest.magnitude() * 2u8 >= *divisor.magnitude() {
        let away = if dividend.sign() == divisor.sign() {
            1
        } else {
            -1
        };
        return quotient + away;
    }
    quotient
}

fn round_big(mantissa: &BigInt, drop: u32) -> BigInt {
    divide_rounding(mantissa, &BigInt::from(10).pow(drop))
}

impl From<i64> for Decimal {
    fn from(value: i64) -> Decimal {
        Decimal {
            mantissa: i128::from(value),
            scale: 0,
        }
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Decimal) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Decimal) -> Ordering {
        if self.scale == other.scale {
            return self.mantissa.cmp(&other.mantissa);
        }
        let scale = self.scale.max(other.scale);
        match (self.at_scale(scale), other.at_scale(scale)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => self.big_at_scale(scale).cmp(&other.big_at_scale(scale)),
        }
    }
}

/// Plain notation without exponent and without trailing zeros: valid JSON.
impl fmt::Display for Decimal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decimal { mantissa, scale } = self.normalized();
        if scale == 0 {
            return write!(formatter, "{mantissa}");
        }
        let unit = 10u128.pow(scale);
        let magnitude = mantissa.unsigned_abs();
        let sign = if mantissa < 0 { "-" } else { "" };
        write!(
            formatter,
            "{sign}{}.{:0width$}",
            magnitude / unit,
            magnitude % unit,
            width = scale as usize
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    #[test]
    fn json_number_text_is_read_exactly() {
        for (text, shown) in [
            ("0.1", "0.1"),
            ("-0.0", "0"),
            ("1e3", "1000"),
            ("12.500e-1", "1.25"),
            ("100", "100"),
            ("1.10E+2", "110"),
            ("0.30000000000000004", "0.30000000000000004"),
            (
                "-99999999999999999999999999999999999999",
                "-99999999999999999999999999999999999999",
            ),
            ("0e999999999999999999999", "0"),
        ] {
            assert_eq!(decimal(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_38_digits_cannot_hold_is_out_of_range_and_not_rounded() {
        for text in [
            "1e38",
            "100000000000000000000000000000000000000",
            "1e-39",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            assert_eq!(
                Decimal::parse(text).unwrap_err(),
                DecimalError::OutOfRange,
                "{text}"
            );
        }
        assert_eq!(
            Decimal::parse(&format!("1{}", "0".repeat(5000))).unwrap_err(),
            DecimalError::OutOfRange
        );
        assert_eq!(
            Decimal::parse(&format!("1.{}", "0".repeat(5000))).unwrap(),
            Decimal::from(1)
        );
    }

    #[test]
    fn what_is_no_json_number_is_malformed() {
        for text in [
            "", "-", ".5", "1.", "1.e3", "1e", "1e+", "abc", "1 ", "+1", "1.2.3",
        ] {
            assert_eq!(
                Decimal::parse(text).unwrap_err(),
                DecimalError::Malformed,
                "{text}"
            );
        }
    }

    #[test]
    fn a_tenth_added_ten_times_is_one() {
        let sum = (0..10).fold(Decimal::ZERO, |sum, _| {
            sum.checked_add(decimal("0.1")).unwrap()
        });
        assert_eq!(sum, Decimal::from(1));
    }

    #[test]
    fn division_is_exact_or_rounded_half_away_from_zero() {
        assert_eq!(
            decimal("10").checked_div(decimal("4")).unwrap().to_string(),
            "2.5"
        );
        assert_eq!(
            decimal("2").checked_div(decimal("3")).unwrap().to_string(),
            "0.6666666666666667"
        );
        assert_eq!(
            decimal("-2").checked_div(decimal("3")).unwrap().to_string(),
            "-0.6666666666666667"
        );
        assert!(decimal("1").checked_div(Decimal::ZERO).is_none());
    }

    #[test]
    fn rounding_functions_agree_with_sql() {
        assert_eq!(decimal("2.5").round(0).to_string(), "3");
        assert_eq!(decimal("-2.5").round(0).to_string(), "-3");
        assert_eq!(decimal("2.345").round(2).to_string(), "2.35");
        assert_eq!(decimal("-2.1").floor().to_string(), "-3");
        assert_eq!(decimal("2.1").ceil().to_string(), "3");
        assert_eq!(decimal("-2.19").truncate(1).to_string(), "-2.1");
    }

    fn any_decimal() -> impl Strategy<Value = Decimal> {
        (any::<i128>(), 0u32..=38, 0u32..38).prop_map(|(mantissa, scale, shrink)| {
            Decimal::new(mantissa / 10i128.pow(shrink) % (MANTISSA_MAX + 1), scale).unwrap()
        })
    }

    proptest! {
        #[test]
        fn sums_agree_with_big_integers(left in any_decimal(), right in any_decimal()) {
            let big = left.big_at_scale(38) + right.big_at_scale(38);
            match left.checked_add(right) {
                Some(sum) => prop_assert_eq!(sum.big_at_scale(38), big),
                None => prop_assert!(Decimal::exact_from_bigint(big, 38).is_none()),
            }
        }

        #[test]
        fn order_agrees_with_big_integers(left in any_decimal(), right in any_decimal()) {
            prop_assert_eq!(left.cmp(&right), left.big_at_scale(38).cmp(&right.big_at_scale(38)));
        }

        #[test]
        fn text_round_trips(value in any_decimal()) {
            prop_assert_eq!(Decimal::parse(&value.to_string()).unwrap(), value);
        }

        #[test]
        fn doubles_compare_as_their_exact_value(value in any_decimal(), double in any::<f64>()) {
            prop_assume!(double.is_finite());
            if let Some(exact) = Decimal::from_f64_exact(double) {
                prop_assert_eq!(compare_with_double(value, double), value.cmp(&exact));
                prop_assert_eq!(exact.to_f64(), double);
            }
        }
    }
}
