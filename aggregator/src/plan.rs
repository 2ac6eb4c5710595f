//! A declaration compiled to what runs: the fields to read, the filter, the group key, the aggregates, the windows.
//!
//! A plan is a [`Job`]: combine and merge run it. Results are JSON. The key is the object of the group columns, so that it
//! depends on the group alone; the value is `window_start`, `window_end`, the group columns and the aggregates, in the
//! declared order. Window bounds are ISO-8601 in UTC with milliseconds (`2026-11-22T10:00:00.000Z`): unambiguous, and
//! sorted as text they are sorted in time.

mod event_time;
mod job;

use crate::accumulator::AggregateFunction;
use crate::declaration::{Declaration, Source, Text};
use crate::decode::Projection;
use crate::diagnostic::Diagnostic;
use crate::expression::{CompileError, Expression, StaticType, compile, compile_aggregate};
use crate::window::WindowAssigner;

pub use event_time::EventTime;

/// A compiled job.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The derived topic.
    pub topic: String,
    /// Its partitions; `None`: the broker's default.
    pub partitions: Option<i32>,
    pub source: Source,
    pub projection: Projection,
    pub predicate: Option<Expression>,
    pub group_by: Vec<GroupColumn>,
    pub aggregates: Vec<Aggregate>,
    pub window: WindowAssigner,
    pub event_time: EventTime,
    pub max_out_of_orderness_ms: i64,
    pub idle_timeout_ms: Option<i64>,
    pub late_topic: Option<String>,
    pub dead_letter_topic: Option<String>,
    functions: Vec<AggregateFunction>,
    state_text: String,
}

/// A column of the group key.
#[derive(Clone, Debug)]
pub struct GroupColumn {
    pub name: String,
    pub expression: Expression,
}

/// A result column.
#[derive(Clone, Debug)]
pub struct Aggregate {
    pub name: String,
    pub function: AggregateFunction,
    /// `None` for `count(*)`.
    pub argument: Option<Expression>,
}

impl Plan {
    /// Compiles all expressions; every mistake is told.
    pub fn compile(declaration: &Declaration) -> Result<Plan, Vec<Diagnostic>> {
        let mut mistakes = Vec::new();
        let mut projection = Projection::default();
        let mut report = |place: &Text, field: &str, error: CompileError| {
            let mut diagnostic = declaration.diagnostic(place, field, error.reason);
            // A place on a later line of a block scalar cannot be mapped to a column of the file.
            diagnostic.column += if error.line == 1 { error.column - 1 } else { 0 };
            diagnostic.line += error.line - 1;
            diagnostic.suggestion = error.suggestion;
            mistakes.push(diagnostic);
        };
        let mut predicate = None;
        if let Some(text) = &declaration.predicate {
            match compile(&text.text, &mut projection) {
                Ok(expression)
                    if matches!(
                        expression.static_type(),
                        StaticType::Boolean | StaticType::Unknown
                    ) =>
                {
                    predicate = Some(expression)
                }
                Ok(expression) => {
                    let reason = format!(
                        "must be a condition, but is {}",
                        expression.static_type().name()
                    );
                    report(
                        text,
                        "where",
                        CompileError {
                            reason,
                            line: 1,
                            column: 1,
                            suggestion: None,
                        },
                    );
                }
                Err(error) => report(text, "where", error),
            }
        }
        let mut group_by = Vec::with_capacity(declaration.group_by.len());
        for column in &declaration.group_by {
            match compile(&column.expression.text, &mut projection) {
                Ok(expression) => group_by.push(GroupColumn {
                    name: column.name.clone(),
                    expression,
                }),
                Err(error) => report(
                    &column.expression,
                    &format!("group_by.{}", column.name),
                    error,
                ),
            }
        }
        let mut aggregates = Vec::with_capacity(declaration.aggregate.len());
        let mut aggregate_texts = Vec::new();
        for column in &declaration.aggregate {
            match compile_aggregate(&column.expression.text, &mut projection) {
                Ok(call) => {
                    aggregate_texts.push(call.text);
                    aggregates.push(Aggregate {
                        name: column.name.clone(),
                        function: call.function,
                        argument: call.argument,
                    });
                }
                Err(error) => report(
                    &column.expression,
                    &format!("aggregate.{}", column.name),
                    error,
                ),
            }
        }
        let mut event_time = EventTime::Record;
        if let Some(field) = &declaration.time.field {
            match compile(&field.text, &mut projection) {
                Ok(expression) => {
                    event_time = EventTime::Field {
                        expression,
                        unit: declaration.time.unit,
                    }
                }
                Err(error) => report(field, "time.field", error),
            }
        }
        let size = declaration.window.tumbling_ms;
        let window = WindowAssigner::tumbling(size, declaration.window.offset_ms);
        if window.is_none() && mistakes.is_empty() {
            let place = Text {
                line: 1,
                column: 1,
                ..Text::default()
            };
            mistakes.push(declaration.diagnostic(
                &place,
                "window",
                "the size must be greater than 0 and than the offset",
            ));
        }
        let Some(window) = window.filter(|_| mistakes.is_empty()) else {
            return Err(mistakes);
        };
        let state_text = state_text(
            declaration,
            predicate.as_ref(),
            &group_by,
            &aggregates,
            &aggregate_texts,
            &event_time,
            window,
        );
        Ok(Plan {
            topic: declaration.topic.clone(),
            partitions: declaration.partitions,
            source: declaration.from.clone(),
            projection,
            predicate,
            group_by,
            functions: aggregates
                .iter()
                .map(|aggregate| aggregate.function)
                .collect(),
            aggregates,
            window,
            event_time,
            max_out_of_orderness_ms: declaration.time.max_out_of_orderness_ms,
            idle_timeout_ms: declaration.time.idle_timeout_ms,
            late_topic: declaration.late.as_ref().map(|side| side.topic.clone()),
            dead_letter_topic: declaration
                .dead_letter
                .as_ref()
                .map(|side| side.topic.clone()),
            state_text,
        })
    }

    /// What the job's state means, as canonical text: two plans of equal text can go on from each other's state.
    pub fn state_text(&self) -> &str {
        &self.state_text
    }

    /// A stable 64-bit digest (FNV-1a) of [`Plan::state_text`], to be kept beside the state.
    pub fn fingerprint(&self) -> u64 {
        self.state_text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
}

/// One line a part, `name = canonical SQL`; the first word of a line names the declaration's field.
fn state_text(
    declaration: &Declaration,
    predicate: Option<&Expression>,
    group_by: &[GroupColumn],
    aggregates: &[Aggregate],
    aggregate_texts: &[String],
    event_time: &EventTime,
    window: WindowAssigner,
) -> String {
    let mut lines = vec![
        format!("from.topic {}", declaration.from.topic),
        format!("from.format {:?}", declaration.from.format),
        format!("time {}", event_time.text()),
        format!("where {}", predicate.map_or("", Expression::text)),
        format!("window {window:?}"),
    ];
    lines.extend(
        group_by
            .iter()
            .map(|column| format!("group_by {} = {}", column.name, column.expression.text())),
    );
    lines.extend(
        aggregates
            .iter()
            .zip(aggregate_texts)
            .map(|(aggregate, text)| format!("aggregate {} = {text}", aggregate.name)),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests;
