//! The scalar functions: names, arity and what they do.

use std::borrow::Cow;

use super::{EvaluationError, StaticType};
use crate::decimal::Decimal;
use crate::value::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Coalesce,
    NullIf,
    Lower,
    Upper,
    Length,
    Substring,
    Trim,
    Concat,
    Abs,
    Round,
    Truncate,
    Floor,
    Ceil,
    Mod,
    Greatest,
    Least,
}

/// Name, function, least and most arguments.
const FUNCTIONS: &[(&str, Function, usize, usize)] = &[
    ("coalesce", Function::Coalesce, 1, 64),
    ("nullif", Function::NullIf, 2, 2),
    ("lower", Function::Lower, 1, 1),
    ("upper", Function::Upper, 1, 1),
    ("length", Function::Length, 1, 1),
    ("char_length", Function::Length, 1, 1),
    ("character_length", Function::Length, 1, 1),
    ("substring", Function::Substring, 2, 3),
    ("substr", Function::Substring, 2, 3),
    ("trim", Function::Trim, 1, 1),
    ("concat", Function::Concat, 1, 64),
    ("abs", Function::Abs, 1, 1),
    ("round", Function::Round, 1, 2),
    ("truncate", Function::Truncate, 1, 2),
    ("floor", Function::Floor, 1, 1),
    ("ceil", Function::Ceil, 1, 1),
    ("ceiling", Function::Ceil, 1, 1),
    ("mod", Function::Mod, 2, 2),
    ("greatest", Function::Greatest, 1, 64),
    ("least", Function::Least, 1, 64),
];

impl Function {
    pub(crate) fn find(name: &str) -> Option<(Function, usize, usize)> {
        let lower = name.to_ascii_lowercase();
        FUNCTIONS
            .iter()
            .find(|(known, ..)| *known == lower)
            .map(|(_, function, least, most)| (*function, *least, *most))
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        FUNCTIONS.iter().map(|(name, ..)| *name)
    }

    /// What the result is, and what the first argument must be.
    pub(crate) fn types(self) -> (StaticType, StaticType) {
        use StaticType::{Number, String, Unknown};
        match self {
            Function::Coalesce | Function::NullIf | Function::Greatest | Function::Least => {
                (Unknown, Unknown)
            }
            Function::Lower | Function::Upper | Function::Trim | Function::Substring => {
                (String, String)
            }
            Function::Concat => (String, Unknown),
            Function::Length => (Number, String),
            _ => (Number, Number),
        }
    }

    /// Applies all functions but COALESCE (which is lazy) to evaluated arguments; NULL in, NULL out.
    pub(crate) fn apply<'r>(self, arguments: Vec<Value<'r>>) -> Result<Value<'r>, EvaluationError> {
        if self != Function::NullIf && arguments.iter().any(Value::is_null) {
            return Ok(Value::Null);
        }
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().unwrap_or(Value::Null);
        let first = next();
        match self {
            Function::Coalesce => Ok(first),
            Function::NullIf => {
                let second = next();
                let equal =
                    !first.is_null() && !second.is_null() && self.compare(&first, &second)?.is_eq();
                Ok(if equal { Value::Null } else { first })
            }
            Function::Lower => Ok(Value::String(Cow::Owned(self.text(&first)?.to_lowercase()))),
            Function::Upper => Ok(Value::String(Cow::Owned(self.text(&first)?.to_uppercase()))),
            Function::Length => Ok(Value::Int(self.text(&first)?.chars().count() as i64)),
            Function::Trim => Ok(Value::String(Cow::Owned(
                self.text(&first)?.trim_matches(' ').to_owned(),
            ))),
            Function::Substring => {
                let from = self.whole(&next())?;
                let length = arguments
                    .next()
                    .map(|value| self.whole(&value))
                    .transpose()?;
                if length.is_some_and(|length| length < 0) {
                    return Err(self.error("the length is negative"));
                }
                // Positions below 1 use up length, as in standard SQL.
                let end = length.map_or(i64::MAX, |length| from.saturating_add(length));
                let skip = from.max(1) - 1;
                let take = end.saturating_sub(from.max(1)).max(0);
                let text = self
                    .text(&first)?
                    .chars()
                    .skip(to_usize(skip))
                    .take(to_usize(take))
                    .collect::<String>();
                Ok(Value::String(Cow::Owned(text)))
            }
            Function::Concat => {
                let mut text = String::new();
                append_text(&first, &mut text);
                arguments.for_each(|value| append_text(&value, &mut text));
                Ok(Value::String(Cow::Owned(text)))
            }
            Function::Abs => self.numeric(first, Decimal::abs, f64::abs),
            Function::Floor => self.numeric(first, Decimal::floor, f64::floor),
            Function::Ceil => self.numeric(first, Decimal::ceil, f64::ceil),
            Function::Round | Function::Truncate => {
                let digits = arguments.next().map_or(Ok(0), |value| self.whole(&value))?;
                let digits = u32::try_from(digits)
                    .map_err(|_| self.error("the number of digits is negative"))?;
                let power = 10f64.powi(digits.min(300) as i32);
                if self == Function::Round {
                    self.numeric(
                        first,
                        |value| value.round(digits),
                        |value| (value * power).round() / power,
                    )
                } else {
                    self.numeric(
                        first,
                        |value| value.truncate(digits),
                        |value| (value * power).trunc() / power,
                    )
                }
            }
            Function::Mod => {
                let divisor = next();
                super::evaluate::arithmetic(super::Arithmetic::Modulo, &first, &divisor)
            }
            Function::Greatest | Function::Least => {
                let mut best = first;
                for value in arguments {
                    let order = self.compare(&value, &best)?;
                    if (self == Function::Greatest && order.is_gt())
                        || (self == Function::Least && order.is_lt())
                    {
                        best = value;
                    }
                }
                Ok(best)
            }
        }
    }

    fn numeric<'r>(
        self,
        value: Value<'r>,
        exact: impl Fn(Decimal) -> Decimal,
        double: impl Fn(f64) -> f64,
    ) -> Result<Value<'r>, EvaluationError> {
        match value {
            Value::Double(value) => Ok(Value::Double(double(value))),
            other => {
                let decimal = other
                    .as_decimal()
                    .ok_or_else(|| self.wrong_type(&other, "a number"))?;
                Ok(Value::from_decimal(exact(decimal)))
            }
        }
    }

    fn text<'v>(self, value: &'v Value<'_>) -> Result<&'v str, EvaluationError> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(other, "a string")),
        }
    }

    fn whole(self, value: &Value<'_>) -> Result<i64, EvaluationError> {
        value
            .as_decimal()
            .and_then(Decimal::to_i64)
            .ok_or_else(|| self.wrong_type(value, "a whole number"))
    }

    fn compare(
        self,
        left: &Value<'_>,
        right: &Value<'_>,
    ) -> Result<std::cmp::Ordering, EvaluationError> {
        left.compare(right).ok_or_else(|| {
            self.error(&format!(
                "cannot compare {} with {}",
                left.type_name(),
                right.type_name()
            ))
        })
    }

    fn wrong_type(self, value: &Value<'_>, wanted: &str) -> EvaluationError {
        self.error(&format!("needs {wanted}, got {}", value.type_name()))
    }

    fn error(self, reason: &str) -> EvaluationError {
        let name = FUNCTIONS
            .iter()
            .find(|(_, function, ..)| *function == self)
            .map_or("function", |(name, ..)| name);
        EvaluationError {
            subject: name.to_uppercase(),
            reason: reason.to_string(),
        }
    }
}

/// A value as text: strings as they are, the rest as JSON spells it.
pub(crate) fn append_text(value: &Value<'_>, out: &mut String) {
    match value {
        Value::String(text) => out.push_str(text),
        other => other.write_json(out),
    }
}

fn to_usize(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}
