//! From SQL text to the tree: names are bound to the projection, and what cannot work is refused with its place.

mod names;

use sqlparser::ast::{
    self, BinaryOperator, CastKind, CeilFloorKind, DataType, ExactNumberInfo, Expr,
    FunctionArgExpr, Spanned, UnaryOperator,
};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, Tokenizer};

use super::function::Function;
use super::{
    Arithmetic, CastTarget, Comparison, EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX,
    EXPRESSION_TOKENS_MAX, Expression, LikePattern, LikeStep, Node, StaticType,
};
use crate::accumulator::AggregateFunction;
use crate::decimal::Decimal;
use crate::decode::Projection;
use crate::diagnostic::did_you_mean;
use crate::value::Value;

/// Why an expression cannot be compiled, with the place in its text (from 1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CompileError {
    pub reason: String,
    pub line: usize,
    pub column: usize,
    pub suggestion: Option<String>,
}

const AGGREGATES: [(&str, AggregateFunction); 5] = [
    ("count", AggregateFunction::Count),
    ("sum", AggregateFunction::Sum),
    ("min", AggregateFunction::Min),
    ("max", AggregateFunction::Max),
    ("avg", AggregateFunction::Avg),
];

fn aggregate_name(function: AggregateFunction) -> &'static str {
    AGGREGATES
        .iter()
        .find(|(_, known)| *known == function)
        .map_or("", |(name, _)| name)
}

/// A compiled aggregate: `sum(amount) FILTER (WHERE …)`; the filter is folded into the argument.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    pub function: AggregateFunction,
    /// `None` only for `count(*)`.
    pub argument: Option<Expression>,
    /// The canonical SQL text.
    pub text: String,
}

/// Compiles a scalar expression; fields that it reads are added to `projection`.
pub fn compile(text: &str, projection: &mut Projection) -> Result<Expression, CompileError> {
    let parsed = parse(text)?;
    let (node, static_type) = Compiler { projection }.node(&parsed, 0)?;
    Ok(Expression {
        node,
        text: parsed.to_string(),
        static_type,
    })
}

/// Compiles an aggregate call such as `avg(amount)`.
pub fn compile_aggregate(
    text: &str,
    projection: &mut Projection,
) -> Result<AggregateCall, CompileError> {
    let parsed = parse(text)?;
    let Expr::Function(call) = &parsed else {
        return Err(refuse(
            &parsed,
            "is not an aggregate: expected count(*), count(x), sum(x), min(x), max(x) or avg(x)",
        ));
    };
    let name = call.name.to_string();
    let Some((_, function)) = AGGREGATES
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
    else {
        let mut error = refuse(&parsed, format!("unknown aggregate function '{name}'"));
        error.suggestion = did_you_mean(&name, AGGREGATES.iter().map(|(known, _)| *known))
            .or_else(|| Some("known are count, sum, min, max and avg".to_string()));
        return Err(error);
    };
    let mut compiler = Compiler { projection };
    let argument = match compiler.arguments(call, &parsed)?.as_slice() {
        [FunctionArgExpr::Wildcard] if function == AggregateFunction::Count => None,
        [FunctionArgExpr::Expr(argument)] => {
            let (node, static_type) = compiler.node(argument, 1)?;
            if matches!(function, AggregateFunction::Sum | AggregateFunction::Avg) {
                want(
                    argument,
                    static_type,
                    StaticType::Number,
                    aggregate_name(function),
                )?;
            }
            Some((node, static_type))
        }
        _ => {
            return Err(refuse(
                &parsed,
                format!("{} takes exactly one argument", aggregate_name(function)),
            ));
        }
    };
    let argument = match &call.filter {
        None => argument,
        Some(filter) => {
            let (condition, static_type) = compiler.node(filter, 1)?;
            want(filter, static_type, StaticType::Boolean, "FILTER")?;
            let (kept, static_type) =
                argument.unwrap_or((Node::Literal(Value::Int(1)), StaticType::Number));
            Some((
                Node::Case(
                    vec![(condition, kept)],
                    Box::new(Node::Literal(Value::Null)),
                ),
                static_type,
            ))
        }
    };
    let argument = argument.map(|(node, static_type)| Expression {
        node,
        text: parsed.to_string(),
        static_type,
    });
    // Function names have no case; the fingerprint must not see it.
    let text = parsed
        .to_string()
        .replacen(&name, aggregate_name(function), 1);
    Ok(AggregateCall {
        function,
        argument,
        text,
    })
}

fn parse(text: &str) -> Result<Expr, CompileError> {
    let plain = |reason: String, line, column| CompileError {
        reason,
        line,
        column,
        suggestion: None,
    };
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(plain(
            format!("is longer than {EXPRESSION_BYTES_MAX} bytes"),
            1,
            1,
        ));
    }
    let from_parser = |error: sqlparser::parser::ParserError| {
        // The parser appends the place to its message.
        let message = error.to_string();
        let message = message
            .strip_prefix("sql parser error: ")
            .unwrap_or(&message);
        let (reason, place) = message.rsplit_once(" at Line: ").unwrap_or((message, ""));
        let (line, column) = place.split_once(", Column: ").unwrap_or(("1", "1"));
        plain(
            format!("is not an SQL expression: {reason}"),
            line.parse().unwrap_or(1),
            column.parse().unwrap_or(1),
        )
    };
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|error| from_parser(error.into()))?;
    let words = tokens
        .iter()
        .filter(|token| !matches!(token.token, Token::Whitespace(_)));
    if words.count() > EXPRESSION_TOKENS_MAX {
        return Err(plain(
            format!("has more than {EXPRESSION_TOKENS_MAX} words and signs"),
            1,
            1,
        ));
    }
    let mut parser = Parser::new(&GenericDialect {})
        .with_recursion_limit(EXPRESSION_DEPTH_MAX)
        .with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr().map_err(from_parser)?;
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let start = next.span.start;
        return Err(plain(
            format!("is not an SQL expression: unexpected '{}'", next.token),
            start.line as usize,
            start.column as usize,
        ));
    }
    Ok(parsed)
}

fn refuse(at: &Expr, reason: impl Into<String>) -> CompileError {
    let start = at.span().start;
    CompileError {
        reason: reason.into(),
        line: (start.line as usize).max(1),
        column: (start.column as usize).max(1),
        suggestion: None,
    }
}

fn want(at: &Expr, found: StaticType, wanted: StaticType, user: &str) -> Result<(), CompileError> {
    if found == wanted || found == StaticType::Unknown || wanted == StaticType::Unknown {
        return Ok(());
    }
    Err(refuse(
        at,
        format!(
            "{user} needs {}, but '{at}' is {}",
            wanted.name(),
            found.name()
        ),
    ))
}

struct Compiler<'p> {
    projection: &'p mut Projection,
}

type Typed = (Node, StaticType);

impl Compiler<'_> {
    fn node(&mut self, expr: &Expr, depth: usize) -> Result<Typed, CompileError> {
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(refuse(
                expr,
                format!(
                    "is nested more than {EXPRESSION_DEPTH_MAX} deep; write long OR chains as IN (…)"
                ),
            ));
        }
        let depth = depth + 1;
        let boolean = |node| (node, StaticType::Boolean);
        Ok(match expr {
            Expr::Nested(inner) => self.node(inner, depth)?,
            Expr::Value(value) => literal(expr, &value.value)?,
            Expr::Identifier(name) => self.column(expr, std::slice::from_ref(name))?,
            Expr::CompoundIdentifier(names) => self.column(expr, names)?,
            Expr::CompoundFieldAccess { root, access_chain } => {
                self.path(expr, root, access_chain)?
            }
            Expr::BinaryOp { left, op, right } => self.binary(expr, left, op, right, depth)?,
            Expr::UnaryOp {
                op: UnaryOperator::Not,
                expr: inner,
            } => boolean(Node::Not(Box::new(self.typed(
                inner,
                StaticType::Boolean,
                "NOT",
                depth,
            )?))),
            Expr::UnaryOp {
                op: UnaryOperator::Minus,
                expr: inner,
            } => {
                let inner = self.typed(inner, StaticType::Number, "-", depth)?;
                (Node::Negate(Box::new(inner)), StaticType::Number)
            }
            Expr::UnaryOp {
                op: UnaryOperator::Plus,
                expr: inner,
            } => (
                self.typed(inner, StaticType::Number, "+", depth)?,
                StaticType::Number,
            ),
            Expr::IsNull(inner) => {
                boolean(Node::IsNull(Box::new(self.node(inner, depth)?.0), false))
            }
            Expr::IsNotNull(inner) => {
                boolean(Node::IsNull(Box::new(self.node(inner, depth)?.0), true))
            }
            Expr::IsUnknown(inner) => boolean(Node::IsNull(
                Box::new(self.typed(inner, StaticType::Boolean, "IS UNKNOWN", depth)?),
                false,
            )),
            Expr::IsNotUnknown(inner) => boolean(Node::IsNull(
                Box::new(self.typed(inner, StaticType::Boolean, "IS UNKNOWN", depth)?),
                true,
            )),
            Expr::IsTrue(inner) => self.is_truth(inner, true, false, depth)?,
            Expr::IsNotTrue(inner) => self.is_truth(inner, true, true, depth)?,
            Expr::IsFalse(inner) => self.is_truth(inner, false, false, depth)?,
            Expr::IsNotFalse(inner) => self.is_truth(inner, false, true, depth)?,
            Expr::IsDistinctFrom(left, right) => {
                self.comparison(Comparison::DistinctFrom, left, right, depth)?
            }
            Expr::IsNotDistinctFrom(left, right) => {
                self.comparison(Comparison::NotDistinctFrom, left, right, depth)?
            }
            Expr::InList {
                expr: needle,
                list,
                negated,
            } => {
                let (node, needle_type) = self.node(needle, depth)?;
                let mut items = Vec::with_capacity(list.len());
                for item in list {
                    items.push(self.typed(item, needle_type, "IN", depth)?);
                }
                boolean(Node::InList {
                    needle: Box::new(node),
                    list: items,
                    negated: *negated,
                })
            }
            Expr::Between {
                expr: inner,
                negated,
                low,
                high,
            } => {
                let (from, _) = self.comparison(Comparison::GreaterOrEqual, inner, low, depth)?;
                let (to, _) = self.comparison(Comparison::LessOrEqual, inner, high, depth)?;
                let both = Node::And(vec![from, to]);
                boolean(if *negated {
                    Node::Not(Box::new(both))
                } else {
                    both
                })
            }
            Expr::Like {
                negated,
                any: false,
                expr: inner,
                pattern,
                escape_char,
            } => {
                let text = self.typed(inner, StaticType::String, "LIKE", depth)?;
                let pattern_text = string_literal(pattern)
                    .ok_or_else(|| refuse(pattern, "the LIKE pattern must be a string literal"))?;
                let escape = match escape_char.as_deref() {
                    None => None,
                    Some(escape) => {
                        let text = string_literal(escape).unwrap_or_default();
                        let mut letters = text.chars();
                        let (Some(letter), None) = (letters.next(), letters.next()) else {
                            return Err(refuse(escape, "ESCAPE needs one character"));
                        };
                        Some(letter)
                    }
                };
                let pattern = like_pattern(pattern_text, escape)
                    .ok_or_else(|| refuse(pattern, "the LIKE pattern ends in its escape"))?;
                boolean(Node::Like {
                    text: Box::new(text),
                    pattern,
                    negated: *negated,
                })
            }
            Expr::Case {
                operand,
                conditions,
                else_result,
                ..
            } => {
                let mut branches = Vec::with_capacity(conditions.len());
                let mut result_type = None;
                for branch in conditions {
                    let condition = match operand {
                        Some(operand) => {
                            self.comparison(Comparison::Equal, operand, &branch.condition, depth)?
                                .0
                        }
                        None => {
                            self.typed(&branch.condition, StaticType::Boolean, "WHEN", depth)?
                        }
                    };
                    let (result, found) = self.node(&branch.result, depth)?;
                    result_type = Some(result_type.map_or(found, |known| {
                        if known == found {
                            known
                        } else {
                            StaticType::Unknown
                        }
                    }));
                    branches.push((condition, result));
                }
                let otherwise = match else_result {
                    None => Node::Literal(Value::Null),
                    Some(otherwise) => {
                        let (node, found) = self.node(otherwise, depth)?;
                        if result_type != Some(found) {
                            result_type = None;
                        }
                        node
                    }
                };
                (
                    Node::Case(branches, Box::new(otherwise)),
                    result_type.unwrap_or(StaticType::Unknown),
                )
            }
            Expr::Cast {
                kind,
                expr: inner,
                data_type,
                format: None,
                ..
            } => {
                let (target, static_type) = cast_target(expr, data_type)?;
                let lenient = matches!(kind, CastKind::TryCast | CastKind::SafeCast);
                (
                    Node::Cast(Box::new(self.node(inner, depth)?.0), target, lenient),
                    static_type,
                )
            }
            Expr::Ceil {
                expr: inner,
                field: CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime),
            } => self.call(expr, Function::Ceil, &[inner], depth)?,
            Expr::Floor {
                expr: inner,
                field: CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime),
            } => self.call(expr, Function::Floor, &[inner], depth)?,
            Expr::Substring {
                expr: inner,
                substring_from: Some(from),
                substring_for,
                ..
            } => {
                let mut arguments: Vec<&Expr> = vec![inner, from];
                arguments.extend(substring_for.as_deref());
                self.call(expr, Function::Substring, &arguments, depth)?
            }
            Expr::Trim {
                trim_where: None,
                trim_what: None,
                expr: inner,
                trim_characters: None,
            } => self.call(expr, Function::Trim, &[inner], depth)?,
            Expr::Function(call) => self.function(expr, call, depth)?,
            other => {
                return Err(refuse(
                    other,
                    format!("'{other}' is not supported in expressions"),
                ));
            }
        })
    }

    fn typed(
        &mut self,
        expr: &Expr,
        wanted: StaticType,
        user: &str,
        depth: usize,
    ) -> Result<Node, CompileError> {
        let (node, found) = self.node(expr, depth)?;
        want(expr, found, wanted, user)?;
        Ok(node)
    }

    fn is_truth(
        &mut self,
        inner: &Expr,
        wanted: bool,
        negated: bool,
        depth: usize,
    ) -> Result<Typed, CompileError> {
        let inner = self.typed(inner, StaticType::Boolean, "IS TRUE/FALSE", depth)?;
        Ok((
            Node::IsTruth(Box::new(inner), wanted, negated),
            StaticType::Boolean,
        ))
    }

    fn comparison(
        &mut self,
        comparison: Comparison,
        left: &Expr,
        right: &Expr,
        depth: usize,
    ) -> Result<Typed, CompileError> {
        let (left_node, left_type) = self.node(left, depth)?;
        let (right_node, right_type) = self.node(right, depth)?;
        if left_type != right_type
            && left_type != StaticType::Unknown
            && right_type != StaticType::Unknown
        {
            return Err(refuse(
                left,
                format!(
                    "cannot compare '{left}' ({}) with '{right}' ({})",
                    left_type.name(),
                    right_type.name()
                ),
            ));
        }
        Ok((
            Node::Compare(comparison, Box::new(left_node), Box::new(right_node)),
            StaticType::Boolean,
        ))
    }

    fn binary(
        &mut self,
        expr: &Expr,
        left: &Expr,
        operator: &BinaryOperator,
        right: &Expr,
        depth: usize,
    ) -> Result<Typed, CompileError> {
        let comparison = match operator {
            BinaryOperator::Eq => Some(Comparison::Equal),
            BinaryOperator::NotEq => Some(Comparison::NotEqual),
            BinaryOperator::Lt => Some(Comparison::Less),
            BinaryOperator::LtEq => Some(Comparison::LessOrEqual),
            BinaryOperator::Gt => Some(Comparison::Greater),
            BinaryOperator::GtEq => Some(Comparison::GreaterOrEqual),
            _ => None,
        };
        if let Some(comparison) = comparison {
            return self.comparison(comparison, left, right, depth);
        }
        let arithmetic = match operator {
            BinaryOperator::Plus => Some(Arithmetic::Add),
            BinaryOperator::Minus => Some(Arithmetic::Subtract),
            BinaryOperator::Multiply => Some(Arithmetic::Multiply),
            BinaryOperator::Divide => Some(Arithmetic::Divide),
            BinaryOperator::Modulo => Some(Arithmetic::Modulo),
            _ => None,
        };
        if let Some(arithmetic) = arithmetic {
            let user = operator.to_string();
            let left = self.typed(left, StaticType::Number, &user, depth)?;
            let right = self.typed(right, StaticType::Number, &user, depth)?;
            return Ok((
                Node::Arithmetic(arithmetic, Box::new(left), Box::new(right)),
                StaticType::Number,
            ));
        }
        match operator {
            BinaryOperator::And | BinaryOperator::Or => {
                // The parser nests a chain to the left; it is one level here.
                let user = operator.to_string();
                let mut parts = vec![self.typed(right, StaticType::Boolean, &user, depth)?];
                let mut rest = left;
                while let Expr::BinaryOp { left, op, right } = rest
                    && op == operator
                {
                    parts.push(self.typed(right, StaticType::Boolean, &user, depth)?);
                    rest = left;
                }
                parts.push(self.typed(rest, StaticType::Boolean, &user, depth)?);
                parts.reverse();
                let node = if *operator == BinaryOperator::And {
                    Node::And(parts)
                } else {
                    Node::Or(parts)
                };
                Ok((node, StaticType::Boolean))
            }
            BinaryOperator::StringConcat => {
                let parts = vec![self.node(left, depth)?.0, self.node(right, depth)?.0];
                Ok((Node::Concat(parts), StaticType::String))
            }
            other => Err(refuse(
                expr,
                format!("the operator '{other}' is not supported"),
            )),
        }
    }
}

fn literal(expr: &Expr, value: &ast::Value) -> Result<Typed, CompileError> {
    Ok(match value {
        ast::Value::Null => (Node::Literal(Value::Null), StaticType::Unknown),
        ast::Value::Boolean(value) => (Node::Literal(Value::Bool(*value)), StaticType::Boolean),
        ast::Value::SingleQuotedString(text) => (
            Node::Literal(Value::String(text.clone().into())),
            StaticType::String,
        ),
        ast::Value::Number(text, _) => {
            let padded = if text.starts_with('.') {
                format!("0{text}")
            } else {
                text.trim_end_matches('.').to_string()
            };
            let decimal = Decimal::parse(&padded)
                .map_err(|error| refuse(expr, format!("the number {text} {error}")))?;
            (
                Node::Literal(Value::from_decimal(decimal)),
                StaticType::Number,
            )
        }
        other => {
            return Err(refuse(
                expr,
                format!("the literal {other} is not supported"),
            ));
        }
    })
}

fn string_literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn like_pattern(text: &str, escape: Option<char>) -> Option<LikePattern> {
    let mut steps = Vec::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        steps.push(match letter {
            letter if Some(letter) == escape => LikeStep::Char(letters.next()?),
            '_' => LikeStep::AnyChar,
            '%' => LikeStep::AnyText,
            letter => LikeStep::Char(letter),
        });
    }
    Some(LikePattern(steps))
}

fn cast_target(
    expr: &Expr,
    data_type: &DataType,
) -> Result<(CastTarget, StaticType), CompileError> {
    Ok(match data_type {
        DataType::BigInt(None) | DataType::Int(None) | DataType::Integer(None) => {
            (CastTarget::BigInt, StaticType::Number)
        }
        DataType::Decimal(info) | DataType::Numeric(info) | DataType::Dec(info) => {
            let scale = match info {
                ExactNumberInfo::None => None,
                ExactNumberInfo::Precision(_) => Some(0),
                ExactNumberInfo::PrecisionAndScale(_, scale) => Some(
                    u32::try_from(*scale)
                        .ok()
                        .filter(|scale| *scale <= 38)
                        .ok_or_else(|| refuse(expr, "the scale must be 0 to 38"))?,
                ),
            };
            (CastTarget::Decimal(scale), StaticType::Number)
        }
        DataType::Double(_) | DataType::DoublePrecision | DataType::Float(_) => {
            (CastTarget::Double, StaticType::Number)
        }
        DataType::Varchar(None) | DataType::String(None) | DataType::Text => {
            (CastTarget::String, StaticType::String)
        }
        DataType::Boolean | DataType::Bool => (CastTarget::Boolean, StaticType::Boolean),
        other => {
            return Err(refuse(
                expr,
                format!(
                    "cannot cast to {other}; known are BIGINT, DECIMAL(p, s), DOUBLE, VARCHAR and BOOLEAN"
                ),
            ));
        }
    })
}
