//! The plan at work: records to rows, accumulators to results.

use std::borrow::Cow;

use streamgauge_protocol::batch::RecordRef;

use super::Plan;
use crate::accumulator::{Accumulator, AggregateFunction};
use crate::decode::{RecordInput, Row};
use crate::expression::EvaluationError;
use crate::job::{Job, Reading};
use crate::value::{Value, write_json_string};
use crate::window::{Window, WindowAssigner};

impl Job for Plan {
    /// One value for each aggregate.
    type Scratch<'a> = Vec<Value<'a>>;

    fn functions(&self) -> &[AggregateFunction] {
        &self.functions
    }

    fn windows(&self) -> WindowAssigner {
        self.window
    }

    fn max_out_of_orderness_ms(&self) -> i64 {
        self.max_out_of_orderness_ms
    }

    fn idle_timeout_ms(&self) -> Option<i64> {
        self.idle_timeout_ms
    }

    fn keeps_late_records(&self) -> bool {
        self.late_topic.is_some()
    }

    fn keeps_dead_letters(&self) -> bool {
        self.dead_letter_topic.is_some()
    }

    fn read<'a>(
        &self,
        source_partition: i32,
        record: &RecordRef<'a>,
        scratch: &mut Vec<Value<'a>>,
        group: &mut Vec<u8>,
    ) -> Reading {
        scratch.clear();
        self.try_read(source_partition, record, group, scratch)
            .unwrap_or_else(|reason| {
                group.clear();
                scratch.clear();
                Reading::Bad { reason }
            })
    }

    fn add(&self, scratch: &Vec<Value<'_>>, accumulators: &mut [Accumulator]) {
        for (accumulator, value) in accumulators.iter_mut().zip(scratch) {
            accumulator.add(value);
        }
    }

    fn result_key(&self, group: &[u8]) -> Vec<u8> {
        let mut json = String::from("{");
        self.write_group(group, &mut json);
        json.push('}');
        json.into_bytes()
    }

    fn result_value(
        &self,
        group: &[u8],
        window: Window,
        accumulators: &[Accumulator],
    ) -> Option<Vec<u8>> {
        let mut json = String::with_capacity(160);
        json.push_str("{\"window_start\":");
        write_json_string(&timestamp_text(window.start()), &mut json);
        json.push_str(",\"window_end\":");
        write_json_string(&timestamp_text(window.end()), &mut json);
        if !self.group_by.is_empty() {
            json.push(',');
            self.write_group(group, &mut json);
        }
        for (aggregate, accumulator) in self.aggregates.iter().zip(accumulators) {
            json.push(',');
            write_json_string(&aggregate.name, &mut json);
            json.push(':');
            accumulator.result().write_json(&mut json);
        }
        json.push('}');
        Some(json.into_bytes())
    }
}

impl Plan {
    fn try_read<'a>(
        &self,
        source_partition: i32,
        record: &RecordRef<'a>,
        group: &mut Vec<u8>,
        inputs: &mut Vec<Value<'a>>,
    ) -> Result<Reading, Cow<'static, str>> {
        let mut headers = Vec::new();
        if self.projection.reads_headers() {
            for header in record.headers {
                let header = header.map_err(|_| Cow::Borrowed("the headers are damaged"))?;
                headers.push((header.key, header.value));
            }
        }
        let mut row = Row::new();
        let input = RecordInput {
            topic: &self.source.topic,
            partition: source_partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key,
            value: record.value,
            headers: &headers,
        };
        self.projection
            .decode(input, &mut row)
            .map_err(|error| Cow::Borrowed(error.kind()))?;
        let event_time = self.event_time.read(&row)?;
        let bad = |part: &str, error: EvaluationError| Cow::Owned(format!("{part}: {error}"));
        if let Some(predicate) = &self.predicate
            && !predicate
                .evaluate_predicate(&row)
                .map_err(|error| bad("where", error))?
        {
            return Ok(Reading::Filtered { event_time });
        }
        for column in &self.group_by {
            let value = column
                .expression
                .evaluate(&row)
                .map_err(|error| bad("group_by", error))?;
            value.encode(group);
        }
        for aggregate in &self.aggregates {
            let Some(argument) = &aggregate.argument else {
                inputs.push(Value::Int(1));
                continue;
            };
            if aggregate.function == AggregateFunction::Count {
                let present = argument
                    .is_present(&row)
                    .map_err(|error| bad(&aggregate.name, error))?;
                inputs.push(if present { Value::Int(1) } else { Value::Null });
                continue;
            }
            let value = argument
                .evaluate(&row)
                .map_err(|error| bad(&aggregate.name, error))?;
            let numeric = matches!(
                value,
                Value::Null | Value::Int(_) | Value::Decimal(_) | Value::Double(_)
            );
            if !numeric
                && matches!(
                    aggregate.function,
                    AggregateFunction::Sum | AggregateFunction::Avg
                )
            {
                return Err(Cow::Owned(format!(
                    "{}: needs a number, got {}",
                    aggregate.name,
                    value.type_name()
                )));
            }
            inputs.push(value.into_owned());
        }
        Ok(Reading::Row { event_time })
    }

    fn write_group(&self, mut group: &[u8], json: &mut String) {
        for (at, column) in self.group_by.iter().enumerate() {
            if at > 0 {
                json.push(',');
            }
            write_json_string(&column.name, json);
            json.push(':');
            // The bytes are this plan's own encoding; a damaged log is found by its checksum before it comes here.
            Value::decode(&mut group)
                .unwrap_or(Value::Null)
                .write_json(json);
        }
    }
}

/// `2026-11-22T10:00:00.000Z`; beyond the years that have such a text, the milliseconds.
fn timestamp_text(milliseconds: i64) -> String {
    match jiff::Timestamp::from_millisecond(milliseconds) {
        Ok(timestamp) => format!("{timestamp:.3}"),
        Err(_) => milliseconds.to_string(),
    }
}
