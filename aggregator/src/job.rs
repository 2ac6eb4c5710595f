//! What combine and merge need to know of a job. A compiled declaration is one; the tests have simpler ones.

use std::borrow::Cow;

use streamgauge_protocol::batch::RecordRef;

use crate::accumulator::{Accumulator, AggregateFunction};
use crate::window::{Window, WindowAssigner};

/// A job's pure functions: of a record, and of a group's aggregates in a window.
pub trait Job {
    /// Memory for decoding, used again for each record of a batch.
    type Scratch<'a>: Default;

    /// The aggregates, in the order of the accumulators in a row.
    fn functions(&self) -> &[AggregateFunction];

    fn windows(&self) -> WindowAssigner;

    /// How far a record's event time may lie behind the greatest before it and still be on time, milliseconds.
    fn max_out_of_orderness_ms(&self) -> i64;

    /// After how long without records a source partition stops holding the watermark back; `None`: never.
    fn idle_timeout_ms(&self) -> Option<i64>;

    /// Late records are wanted whole, not only counted.
    fn keeps_late_records(&self) -> bool;

    /// Records that cannot be read are wanted whole, not only counted.
    fn keeps_dead_letters(&self) -> bool;

    /// Evaluates a record. For [`Reading::Row`] the canonical bytes of the group key have been appended to `group`, which comes empty, and
    /// `scratch` holds what [`Job::add`] needs. Everything is checked here: a value that an aggregate cannot take makes a bad record.
    fn read<'a>(
        &self,
        source_partition: i32,
        record: &RecordRef<'a>,
        scratch: &mut Self::Scratch<'a>,
        group: &mut Vec<u8>,
    ) -> Reading;

    /// Adds the record that was read last into `scratch` to the accumulators of its row, one for each of [`Job::functions`].
    fn add(&self, scratch: &Self::Scratch<'_>, accumulators: &mut [Accumulator]);

    /// The key of a group's results. It depends on the group only: its hash chooses the group's internal partition, which is
    /// also the derived topic's partition.
    fn result_key(&self, group: &[u8]) -> Vec<u8>;

    /// The value of a window's result; `None` if the job does not want it (`having`).
    fn result_value(
        &self,
        group: &[u8],
        window: Window,
        accumulators: &[Accumulator],
    ) -> Option<Vec<u8>>;
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// It counts.
    Row { event_time: i64 },
    /// The filter does not want it; its event time moves the watermark all the same.
    Filtered { event_time: i64 },
    /// It cannot be read; the reason is one of a few texts, which are counted apart.
    Bad { reason: Cow<'static, str> },
}
