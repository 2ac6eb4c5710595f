//! What a name or a call means: columns of the record and its own, paths into it, functions.

use sqlparser::ast::{
    self, AccessExpr, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Subscript,
};

use super::{AGGREGATES, CompileError, Compiler, Typed, refuse, string_literal};
use crate::decode::{PathStep, path_text};
use crate::diagnostic::did_you_mean;
use crate::expression::function::Function;
use crate::expression::{Node, StaticType};

impl Compiler<'_> {
    pub(super) fn column(
        &mut self,
        expr: &Expr,
        names: &[ast::Ident],
    ) -> Result<Typed, CompileError> {
        if let [name] = names
            && name.quote_style.is_none()
            && name.value.starts_with('_')
        {
            match name.value.to_ascii_lowercase().as_str() {
                "_key" => return Ok((Node::Key, StaticType::Unknown)),
                "_timestamp" => return Ok((Node::Timestamp, StaticType::Number)),
                "_partition" => return Ok((Node::Partition, StaticType::Number)),
                "_offset" => return Ok((Node::Offset, StaticType::Number)),
                "_topic" => return Ok((Node::Topic, StaticType::String)),
                _ => {}
            }
        }
        let path: Vec<PathStep> = names
            .iter()
            .map(|name| PathStep::Field(name.value.clone()))
            .collect();
        Ok(self.field(expr, &path))
    }

    pub(super) fn path(
        &mut self,
        expr: &Expr,
        root: &Expr,
        chain: &[AccessExpr],
    ) -> Result<Typed, CompileError> {
        let mut path: Vec<PathStep> = match root {
            Expr::Identifier(name) => vec![PathStep::Field(name.value.clone())],
            Expr::CompoundIdentifier(names) => names
                .iter()
                .map(|name| PathStep::Field(name.value.clone()))
                .collect(),
            other => return Err(refuse(other, "only fields have members and elements")),
        };
        for access in chain {
            path.push(match access {
                AccessExpr::Dot(Expr::Identifier(name)) => PathStep::Field(name.value.clone()),
                AccessExpr::Subscript(Subscript::Index { index }) => {
                    if let Some(name) = string_literal(index) {
                        PathStep::Field(name.to_string())
                    } else {
                        match index.to_string().parse() {
                            Ok(0) => return Err(refuse(expr, "arrays count from 1 in SQL: the first element is [1]")),
                            Ok(index) => PathStep::Element(index),
                            Err(_) => return Err(refuse(expr, "an index must be a whole number, or a member name in single quotes")),
                        }
                    }
                }
                _ => return Err(refuse(expr, "this kind of access is not supported")),
            });
        }
        Ok(self.field(expr, &path))
    }

    fn field(&mut self, _expr: &Expr, path: &[PathStep]) -> Typed {
        (
            Node::Field {
                slot: self.projection.slot(path),
                name: path_text(path).into(),
            },
            StaticType::Unknown,
        )
    }

    pub(super) fn call(
        &mut self,
        expr: &Expr,
        function: Function,
        arguments: &[&Expr],
        depth: usize,
    ) -> Result<Typed, CompileError> {
        let (result, first) = function.types();
        let mut nodes = Vec::with_capacity(arguments.len());
        for (at, argument) in arguments.iter().enumerate() {
            let wanted = match (at, function) {
                (0, _) => first,
                (_, Function::Substring | Function::Round | Function::Truncate | Function::Mod) => {
                    StaticType::Number
                }
                _ => StaticType::Unknown,
            };
            nodes.push(self.typed(argument, wanted, &expr.to_string(), depth)?);
        }
        Ok((Node::Call(function, nodes), result))
    }

    pub(super) fn function(
        &mut self,
        expr: &Expr,
        call: &ast::Function,
        depth: usize,
    ) -> Result<Typed, CompileError> {
        let name = call.name.to_string();
        let is_aggregate = AGGREGATES
            .iter()
            .any(|(known, _)| name.eq_ignore_ascii_case(known));
        if is_aggregate {
            return Err(refuse(
                expr,
                format!(
                    "the aggregate function '{name}' can only stand at the top of an entry of 'aggregate'"
                ),
            ));
        }
        let mut arguments = Vec::new();
        for argument in self.arguments(call, expr)? {
            let FunctionArgExpr::Expr(argument) = argument else {
                return Err(refuse(expr, format!("'*' is no argument for '{name}'")));
            };
            arguments.push(argument);
        }
        if name.eq_ignore_ascii_case("header") {
            let [argument] = arguments.as_slice() else {
                return Err(refuse(expr, "header takes one argument: header('name')"));
            };
            let header = string_literal(argument)
                .ok_or_else(|| refuse(argument, "the header's name must be a string literal"))?;
            self.projection.read_headers();
            return Ok((Node::Header(header.into()), StaticType::Unknown));
        }
        let Some((function, least, most)) = Function::find(&name) else {
            let mut error = refuse(expr, format!("unknown function '{name}'"));
            error.suggestion = did_you_mean(&name, Function::names().chain(["header"]));
            return Err(error);
        };
        if arguments.len() < least || arguments.len() > most {
            let count = if least == most {
                least.to_string()
            } else {
                format!("{least} to {most}")
            };
            return Err(refuse(
                expr,
                format!(
                    "'{name}' takes {count} argument(s), got {}",
                    arguments.len()
                ),
            ));
        }
        self.call(expr, function, &arguments.iter().collect::<Vec<_>>(), depth)
    }

    pub(super) fn arguments(
        &mut self,
        call: &ast::Function,
        at: &Expr,
    ) -> Result<Vec<FunctionArgExpr>, CompileError> {
        let FunctionArguments::List(list) = &call.args else {
            return Err(refuse(
                at,
                format!("'{}' needs its arguments in parentheses", call.name),
            ));
        };
        if matches!(
            list.duplicate_treatment,
            Some(ast::DuplicateTreatment::Distinct)
        ) {
            return Err(refuse(at, "DISTINCT is not supported"));
        }
        if call.over.is_some()
            || !call.within_group.is_empty()
            || !list.clauses.is_empty()
            || call.null_treatment.is_some()
        {
            return Err(refuse(
                at,
                "OVER, WITHIN GROUP, ORDER BY and NULLS are not supported here",
            ));
        }
        let is_aggregate = AGGREGATES
            .iter()
            .any(|(known, _)| call.name.to_string().eq_ignore_ascii_case(known));
        if call.filter.is_some() && !is_aggregate {
            return Err(refuse(at, "FILTER belongs to aggregate functions"));
        }
        list.args
            .iter()
            .map(|argument| match argument {
                FunctionArg::Unnamed(argument) => Ok(argument.clone()),
                _ => Err(refuse(at, "named arguments are not supported")),
            })
            .collect()
    }
}
