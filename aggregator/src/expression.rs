//! SQL expressions over a record, compiled to a small tree that is evaluated without allocating in the common cases.
//!
//! The language is SQL's (parsed by `sqlparser`). Names are fields of the record's JSON value: `amount`,
//! `customer.country`, `items[1].price` (arrays count from 1, as in SQL and Flink); a name in double quotes may hold
//! anything. The record's own columns are `_key`, `_timestamp` (milliseconds), `_partition`, `_offset`, `_topic` and
//! `header('name')`; in double quotes such a name means a field again.
//!
//! NULL follows SQL's three-valued logic. Numbers are exact: `/` divides decimals (`5 / 2` is `2.5`, since JSON does
//! not tell `5` from `5.0`). Operators are strict about types: comparing a string with a number is an error that makes
//! the record bad, never a silent cast; `CAST` converts.

mod compile;
mod evaluate;
mod function;

pub use compile::{AggregateCall, CompileError, compile, compile_aggregate};

use crate::value::Value;
use function::Function;

/// Text that one expression may have.
pub const EXPRESSION_BYTES_MAX: usize = 4096;
/// Words and signs that one expression may have: bounds the parser's tree, which is walked by recursion.
pub const EXPRESSION_TOKENS_MAX: usize = 400;
/// Nesting that one expression may have; a chain of ANDs or ORs is one level.
pub const EXPRESSION_DEPTH_MAX: usize = 50;

/// What is known of an expression's type before any record is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaticType {
    /// Depends on the record.
    Unknown,
    Boolean,
    Number,
    String,
}

impl StaticType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            StaticType::Unknown => "of unknown type",
            StaticType::Boolean => "a boolean",
            StaticType::Number => "a number",
            StaticType::String => "a string",
        }
    }
}

/// A compiled expression. Belongs to the [`Projection`](crate::decode::Projection) that it was compiled with.
#[derive(Clone, Debug)]
pub struct Expression {
    pub(crate) node: Node,
    pub(crate) text: String,
    pub(crate) static_type: StaticType,
}

impl Expression {
    /// The canonical SQL text.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn static_type(&self) -> StaticType {
        self.static_type
    }
}

/// Why an expression has no value for a record; makes the record bad.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {reason}")]
pub struct EvaluationError {
    /// The field or the part of the expression.
    pub subject: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    DistinctFrom,
    NotDistinctFrom,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CastTarget {
    BigInt,
    /// Fraction digits; `None` keeps them.
    Decimal(Option<u32>),
    Double,
    String,
    Boolean,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Literal(Value<'static>),
    Field {
        slot: usize,
        name: Box<str>,
    },
    Key,
    Timestamp,
    Partition,
    Offset,
    Topic,
    Header(Box<str>),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    /// `IS NULL`; `true` negates.
    IsNull(Box<Node>, bool),
    /// `IS [NOT] TRUE/FALSE`: the truth asked for, and whether it is negated.
    IsTruth(Box<Node>, bool, bool),
    InList {
        needle: Box<Node>,
        list: Vec<Node>,
        negated: bool,
    },
    Like {
        text: Box<Node>,
        pattern: LikePattern,
        negated: bool,
    },
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    Negate(Box<Node>),
    Concat(Vec<Node>),
    /// Conditions with results, then ELSE.
    Case(Vec<(Node, Node)>, Box<Node>),
    Cast(Box<Node>, CastTarget, bool),
    Call(Function, Vec<Node>),
}

/// A LIKE pattern: literal characters, `_` and `%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LikePattern(pub(crate) Vec<LikeStep>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LikeStep {
    Char(char),
    AnyChar,
    AnyText,
}

#[cfg(test)]
mod tests;
