//! Evaluation: SQL's three-valued logic over one decoded row.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::function::{Function, append_text};
use super::{
    Arithmetic, CastTarget, Comparison, EvaluationError, Expression, LikePattern, LikeStep, Node,
};
use crate::decimal::Decimal;
use crate::decode::{Field, Row, text_or_bytes};
use crate::value::Value;

impl Expression {
    /// The value for a row. Text borrows from the row or the expression wherever it can.
    pub fn evaluate<'r>(&'r self, row: &'r Row<'_>) -> Result<Value<'r>, EvaluationError> {
        evaluate(&self.node, row)
    }

    /// The verdict of a predicate: TRUE passes, FALSE and NULL do not.
    pub fn evaluate_predicate(&self, row: &Row<'_>) -> Result<bool, EvaluationError> {
        Ok(truth(&self.node, row)? == Some(true))
    }

    /// Whether there is a value other than NULL: objects and arrays, which have none of their own, count.
    pub fn is_present(&self, row: &Row<'_>) -> Result<bool, EvaluationError> {
        Ok(!is_null(&self.node, row)?)
    }
}

fn error(subject: &str, reason: impl Into<String>) -> EvaluationError {
    EvaluationError {
        subject: subject.to_string(),
        reason: reason.into(),
    }
}

fn evaluate<'r>(node: &'r Node, row: &'r Row<'_>) -> Result<Value<'r>, EvaluationError> {
    let record = row.record();
    Ok(match node {
        Node::Literal(value) => value.reborrow(),
        Node::Field { slot, name } => match row.field(*slot) {
            Field::Value(value) => value.reborrow(),
            Field::Object => return Err(error(name, "is an object, not a single value")),
            Field::Array => return Err(error(name, "is an array, not a single value")),
            Field::NoContainer(kind) => {
                return Err(error(name, format!("the path leads through {kind}")));
            }
            Field::NumberOutOfRange(_) => {
                return Err(error(name, "the number needs more than 38 digits"));
            }
        },
        Node::Key => text_or_bytes(record.key),
        Node::Timestamp => Value::Int(record.timestamp),
        Node::Partition => Value::Int(record.partition.into()),
        Node::Offset => Value::Int(record.offset),
        Node::Topic => Value::String(Cow::Borrowed(record.topic)),
        // The last header of a name counts, as Kafka's `lastHeader`.
        Node::Header(name) => text_or_bytes(
            record
                .headers
                .iter()
                .rev()
                .find(|(header, _)| *header == &**name)
                .and_then(|(_, value)| *value),
        ),
        Node::Not(_)
        | Node::And(_)
        | Node::Or(_)
        | Node::Compare(..)
        | Node::IsNull(..)
        | Node::IsTruth(..)
        | Node::InList { .. }
        | Node::Like { .. } => truth(node, row)?.map_or(Value::Null, Value::Bool),
        Node::Arithmetic(operator, left, right) => {
            arithmetic(*operator, &evaluate(left, row)?, &evaluate(right, row)?)?
        }
        Node::Negate(inner) => match evaluate(inner, row)? {
            Value::Double(value) => Value::Double(-value),
            value => arithmetic(Arithmetic::Subtract, &Value::Int(0), &value)?,
        },
        Node::Concat(parts) => {
            let mut text = String::new();
            for part in parts {
                match evaluate(part, row)? {
                    Value::Null => return Ok(Value::Null),
                    value => append_text(&value, &mut text),
                }
            }
            Value::String(Cow::Owned(text))
        }
        Node::Case(branches, otherwise) => {
            for (condition, result) in branches {
                if truth(condition, row)? == Some(true) {
                    return evaluate(result, row);
                }
            }
            evaluate(otherwise, row)?
        }
        Node::Cast(inner, target, lenient) => match cast(evaluate(inner, row)?, *target) {
            Err(_) if *lenient => Value::Null,
            result => result?,
        },
        Node::Call(Function::Coalesce, arguments) => {
            for argument in arguments {
                let value = evaluate(argument, row)?;
                if !value.is_null() {
                    return Ok(value);
                }
            }
            Value::Null
        }
        Node::Call(function, arguments) => function.apply(
            arguments
                .iter()
                .map(|argument| evaluate(argument, row))
                .collect::<Result<_, _>>()?,
        )?,
    })
}

/// A truth value: `None` is SQL's UNKNOWN.
fn truth(node: &Node, row: &Row<'_>) -> Result<Option<bool>, EvaluationError> {
    Ok(match node {
        Node::Not(inner) => truth(inner, row)?.map(|value| !value),
        Node::And(parts) => junction(parts, row, false)?,
        Node::Or(parts) => junction(parts, row, true)?,
        Node::Compare(comparison, left, right) => {
            compare(*comparison, &evaluate(left, row)?, &evaluate(right, row)?)?
        }
        Node::IsNull(inner, negated) => Some(is_null(inner, row)? != *negated),
        Node::IsTruth(inner, wanted, negated) => {
            Some((truth(inner, row)? == Some(*wanted)) != *negated)
        }
        Node::InList {
            needle,
            list,
            negated,
        } => {
            let needle = evaluate(needle, row)?;
            let mut found = Some(false);
            for item in list {
                match compare(Comparison::Equal, &needle, &evaluate(item, row)?)? {
                    Some(true) => {
                        found = Some(true);
                        break;
                    }
                    None => found = None,
                    Some(false) => {}
                }
            }
            found.map(|found| found != *negated)
        }
        Node::Like {
            text,
            pattern,
            negated,
        } => match evaluate(text, row)? {
            Value::Null => None,
            Value::String(text) => Some(pattern.matches(&text) != *negated),
            other => {
                return Err(error(
                    "LIKE",
                    format!("needs a string, got {}", other.type_name()),
                ));
            }
        },
        other => match evaluate(other, row)? {
            Value::Null => None,
            Value::Bool(value) => Some(value),
            value => {
                let subject = if let Node::Field { name, .. } = other {
                    name
                } else {
                    "condition"
                };
                return Err(error(
                    subject,
                    format!("needs a boolean, got {}", value.type_name()),
                ));
            }
        },
    })
}

/// AND (`absorbing` false) and OR (true): the absorbing value decides at once, an unknown leaves it open.
fn junction(
    parts: &[Node],
    row: &Row<'_>,
    absorbing: bool,
) -> Result<Option<bool>, EvaluationError> {
    let mut result = Some(!absorbing);
    for part in parts {
        match truth(part, row)? {
            Some(value) if value == absorbing => return Ok(Some(absorbing)),
            Some(_) => {}
            None => result = None,
        }
    }
    Ok(result)
}

/// Objects and arrays are not NULL; nor is a number that cannot be read.
fn is_null(node: &Node, row: &Row<'_>) -> Result<bool, EvaluationError> {
    if let Node::Field { slot, .. } = node
        && let Field::Object | Field::Array | Field::NumberOutOfRange(_) = row.field(*slot)
    {
        return Ok(false);
    }
    Ok(evaluate(node, row)?.is_null())
}

fn compare(
    comparison: Comparison,
    left: &Value<'_>,
    right: &Value<'_>,
) -> Result<Option<bool>, EvaluationError> {
    if left.is_null() || right.is_null() {
        let same = left.is_null() && right.is_null();
        return Ok(match comparison {
            Comparison::DistinctFrom => Some(!same),
            Comparison::NotDistinctFrom => Some(same),
            _ => None,
        });
    }
    let order = left.compare(right).ok_or_else(|| {
        error(
            "comparison",
            format!(
                "cannot compare {} with {}",
                left.type_name(),
                right.type_name()
            ),
        )
    })?;
    Ok(Some(match comparison {
        Comparison::Equal | Comparison::NotDistinctFrom => order == Ordering::Equal,
        Comparison::NotEqual | Comparison::DistinctFrom => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    }))
}

pub(super) fn arithmetic<'r>(
    operator: Arithmetic,
    left: &Value<'_>,
    right: &Value<'_>,
) -> Result<Value<'r>, EvaluationError> {
    let subject = match operator {
        Arithmetic::Add => "+",
        Arithmetic::Subtract => "-",
        Arithmetic::Multiply => "*",
        Arithmetic::Divide => "/",
        Arithmetic::Modulo => "%",
    };
    if left.is_null() || right.is_null() {
        return Ok(Value::Null);
    }
    if let (Value::Int(left), Value::Int(right)) = (left, right) {
        let result = match operator {
            Arithmetic::Add => left.checked_add(*right),
            Arithmetic::Subtract => left.checked_sub(*right),
            Arithmetic::Multiply => left.checked_mul(*right),
            Arithmetic::Divide | Arithmetic::Modulo => None,
        };
        if let Some(result) = result {
            return Ok(Value::Int(result));
        }
    }
    if matches!(left, Value::Double(_)) || matches!(right, Value::Double(_)) {
        let (left, right) = (double(left, subject)?, double(right, subject)?);
        return Ok(Value::Double(match operator {
            Arithmetic::Add => left + right,
            Arithmetic::Subtract => left - right,
            Arithmetic::Multiply => left * right,
            Arithmetic::Divide => left / right,
            Arithmetic::Modulo => left % right,
        }));
    }
    let number = |value: &Value<'_>| {
        value.as_decimal().ok_or_else(|| {
            error(
                subject,
                format!("needs a number, got {}", value.type_name()),
            )
        })
    };
    let (left, right) = (number(left)?, number(right)?);
    let result = match operator {
        Arithmetic::Add => left.checked_add(right),
        Arithmetic::Subtract => left.checked_sub(right),
        Arithmetic::Multiply => left.checked_mul(right),
        Arithmetic::Divide | Arithmetic::Modulo if right.is_zero() => {
            return Err(error(subject, "division by zero"));
        }
        Arithmetic::Divide => left.checked_div(right),
        Arithmetic::Modulo => left.checked_rem(right),
    };
    result
        .map(Value::from_decimal)
        .ok_or_else(|| error(subject, "the result needs more than 38 digits"))
}

fn double(value: &Value<'_>, subject: &str) -> Result<f64, EvaluationError> {
    match value {
        Value::Double(value) => Ok(*value),
        other => {
            let decimal = other.as_decimal().ok_or_else(|| {
                error(
                    subject,
                    format!("needs a number, got {}", other.type_name()),
                )
            })?;
            Ok(decimal.to_f64())
        }
    }
}

fn cast(value: Value<'_>, target: CastTarget) -> Result<Value<'_>, EvaluationError> {
    let fail = |value: &Value<'_>, name: &str| {
        error(
            "CAST",
            format!("{} {} is not {name}", value.type_name(), value.to_json()),
        )
    };
    // Text is read as a number first; whole numbers are cut towards zero, as in Flink.
    let exact = |value: &Value<'_>| match value {
        Value::String(text) => Decimal::parse(text.trim()).ok(),
        Value::Double(value) => {
            Decimal::from_f64_exact(*value).or_else(|| Decimal::parse(&value.to_string()).ok())
        }
        Value::Bool(value) => Some(Decimal::from(i64::from(*value))),
        other => other.as_decimal(),
    };
    Ok(match (target, value) {
        (_, Value::Null) => Value::Null,
        (CastTarget::String, value @ Value::String(_)) => value,
        (CastTarget::String, value @ Value::Bytes(_)) => return Err(fail(&value, "text")),
        (CastTarget::String, value) => Value::String(Cow::Owned(value.to_json())),
        (CastTarget::Double, Value::Double(value)) => Value::Double(value),
        (CastTarget::Double, Value::String(text)) => {
            let parsed = text
                .trim()
                .parse()
                .map_err(|_| fail(&Value::String(text.as_ref().into()), "a number"))?;
            Value::Double(parsed)
        }
        (CastTarget::Double, value) => Value::Double(
            exact(&value)
                .ok_or_else(|| fail(&value, "a number"))?
                .to_f64(),
        ),
        (CastTarget::BigInt, value) => {
            let whole = exact(&value).and_then(|decimal| decimal.truncate(0).to_i64());
            Value::Int(whole.ok_or_else(|| fail(&value, "a BIGINT"))?)
        }
        (CastTarget::Decimal(scale), value) => {
            let decimal = exact(&value).ok_or_else(|| fail(&value, "a DECIMAL"))?;
            Value::from_decimal(scale.map_or(decimal, |scale| decimal.round(scale)))
        }
        (CastTarget::Boolean, Value::Bool(value)) => Value::Bool(value),
        (CastTarget::Boolean, Value::String(text)) if text.eq_ignore_ascii_case("true") => {
            Value::Bool(true)
        }
        (CastTarget::Boolean, Value::String(text)) if text.eq_ignore_ascii_case("false") => {
            Value::Bool(false)
        }
        (CastTarget::Boolean, value) => return Err(fail(&value, "a BOOLEAN")),
    })
}

impl LikePattern {
    /// Greedy matching that goes back to the last `%` only: linear in text times pattern, no recursion.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let steps = &self.0;
        let (mut at, mut rest) = (0, text.chars());
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            let before = rest.clone();
            match (steps.get(at), rest.next()) {
                (Some(LikeStep::AnyText), _) => {
                    rest = before.clone();
                    retry = Some((at + 1, before));
                    at += 1;
                }
                (None, None) => return true,
                (Some(LikeStep::AnyChar), Some(_)) => at += 1,
                (Some(LikeStep::Char(wanted)), Some(found)) if *wanted == found => at += 1,
                _ => {
                    let Some((step, from)) = &mut retry else {
                        return false;
                    };
                    if from.next().is_none() {
                        return false;
                    }
                    at = *step;
                    rest = from.clone();
                }
            }
        }
    }
}
