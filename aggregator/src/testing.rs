//! A small job over text for the tests of combine and merge: values read `event_time,group,amount`.
//!
//! An empty amount is NULL, the group `-` is filtered out, anything else that does not parse is a bad record.

use std::borrow::Cow;

use bytes::Bytes;
use streamgauge_protocol::batch::{BatchBuilder, RecordRef};

use crate::accumulator::{Accumulator, AggregateFunction};
use crate::decimal::Decimal;
use crate::job::{Job, Reading};
use crate::value::Value;
use crate::window::{Window, WindowAssigner};

#[derive(Debug, Clone)]
pub struct TextJob {
    pub window_ms: i64,
    pub bound_ms: i64,
    pub idle_timeout_ms: Option<i64>,
}

pub const FUNCTIONS: [AggregateFunction; 5] = [
    AggregateFunction::Count,
    AggregateFunction::Sum,
    AggregateFunction::Min,
    AggregateFunction::Max,
    AggregateFunction::Avg,
];

impl TextJob {
    pub fn new(window_ms: i64, bound_ms: i64) -> TextJob {
        TextJob {
            window_ms,
            bound_ms,
            idle_timeout_ms: None,
        }
    }
}

/// `(event time, group, amount)`.
pub fn parse(value: Option<&[u8]>) -> Option<(i64, &str, Option<Decimal>)> {
    let text = std::str::from_utf8(value?).ok()?;
    let mut fields = text.split(',');
    let (time, group, amount) = (fields.next()?.parse().ok()?, fields.next()?, fields.next()?);
    let amount = match amount {
        "" => None,
        amount => Some(Decimal::parse(amount).ok()?),
    };
    Some((time, group, amount))
}

impl Job for TextJob {
    type Scratch<'a> = Option<Value<'static>>;

    fn functions(&self) -> &[AggregateFunction] {
        &FUNCTIONS
    }

    fn windows(&self) -> WindowAssigner {
        WindowAssigner::tumbling(self.window_ms, 0).unwrap()
    }

    fn max_out_of_orderness_ms(&self) -> i64 {
        self.bound_ms
    }

    fn idle_timeout_ms(&self) -> Option<i64> {
        self.idle_timeout_ms
    }

    fn keeps_late_records(&self) -> bool {
        true
    }

    fn keeps_dead_letters(&self) -> bool {
        true
    }

    fn read<'a>(
        &self,
        _: i32,
        record: &RecordRef<'a>,
        scratch: &mut Option<Value<'static>>,
        group: &mut Vec<u8>,
    ) -> Reading {
        let Some((event_time, name, amount)) = parse(record.value) else {
            return Reading::Bad {
                reason: Cow::Borrowed("malformed"),
            };
        };
        if name == "-" {
            return Reading::Filtered { event_time };
        }
        group.extend_from_slice(name.as_bytes());
        *scratch = Some(amount.map_or(Value::Null, Value::from_decimal));
        Reading::Row { event_time }
    }

    fn add(&self, scratch: &Option<Value<'static>>, accumulators: &mut [Accumulator]) {
        let amount = scratch.as_ref().expect("a record was read");
        accumulators
            .iter_mut()
            .for_each(|accumulator| accumulator.add(amount));
    }

    fn result_key(&self, group: &[u8]) -> Vec<u8> {
        group.to_vec()
    }

    fn result_value(
        &self,
        group: &[u8],
        window: Window,
        accumulators: &[Accumulator],
    ) -> Option<Vec<u8>> {
        let results: Vec<_> = accumulators
            .iter()
            .map(|accumulator| accumulator.result().to_json())
            .collect();
        let group = String::from_utf8_lossy(group);
        Some(
            format!(
                "{}..{} {group}: {}",
                window.start(),
                window.end(),
                results.join(" ")
            )
            .into_bytes(),
        )
    }
}

/// One batch of text records from `base_offset` on.
pub fn batch(base_offset: i64, values: &[&str]) -> Bytes {
    let builder = values.iter().fold(
        BatchBuilder::new().base_offset(base_offset),
        |builder, value| builder.record(7, None, Some(value.as_bytes())),
    );
    builder.build().unwrap()
}
