//! Records per second of combine and merge on one core: 200-byte JSON orders, 1,000 keys, tumbling count, sum, min, max and avg.
//!
//!     cargo run --release -p streamgauge-aggregator --example throughput
//!
//! The job reads the three fields it needs with the cheapest scanner there is, so that the figure is that of batch iteration, watermark,
//! window, hash table and accumulators: what a decoder costs comes on top.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use streamgauge_aggregator::accumulator::{Accumulator, AggregateFunction};
use streamgauge_aggregator::combine::{Combiner, CombinerConfig};
use streamgauge_aggregator::decimal::Decimal;
use streamgauge_aggregator::job::{Job, Reading};
use streamgauge_aggregator::merge::{Merger, MergerConfig};
use streamgauge_aggregator::value::Value;
use streamgauge_aggregator::window::{Window, WindowAssigner};
use streamgauge_protocol::batch::{BatchBuilder, RecordRef};

const RECORDS: usize = 4_000_000;
const RECORDS_PER_BATCH: usize = 1_000;
const BATCHES_PER_FLUSH: usize = 100;
const KEYS: usize = 1_000;
const PARTITIONS: i32 = 4;

struct Orders;

#[derive(Default)]
struct Amount(Option<Decimal>);

impl Job for Orders {
    type Scratch<'a> = Amount;

    fn functions(&self) -> &[AggregateFunction] {
        use AggregateFunction::*;
        &[Count, Sum, Min, Max, Avg]
    }

    fn windows(&self) -> WindowAssigner {
        WindowAssigner::tumbling(60_000, 0).expect("a minute is a window")
    }

    fn max_out_of_orderness_ms(&self) -> i64 {
        5_000
    }

    fn idle_timeout_ms(&self) -> Option<i64> {
        None
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
        scratch: &mut Amount,
        group: &mut Vec<u8>,
    ) -> Reading {
        let bad = Reading::Bad {
            reason: "not an order".into(),
        };
        let Some(value) = record.value else {
            return bad;
        };
        // {"order_time":1700000000000,"shop":"shop-0001","amount":12.34,…
        let mut fields = value.split(|byte| *byte == b',');
        let (Some(time), Some(shop), Some(amount)) = (fields.next(), fields.next(), fields.next())
        else {
            return bad;
        };
        let (Some(time), Some(shop), Some(amount)) =
            (time.get(14..), shop.get(7..), amount.get(9..))
        else {
            return bad;
        };
        let mut mantissa = 0i128;
        let mut scale = 0;
        for byte in amount {
            match byte {
                b'0'..=b'9' => mantissa = mantissa * 10 + i128::from(byte - b'0'),
                _ => scale = amount.len() as u32 - 1,
            }
        }
        let scale = if scale == 0 { 0 } else { 2 };
        let Some(amount) = Decimal::new(mantissa, scale) else {
            return bad;
        };
        scratch.0 = Some(amount);
        group.extend_from_slice(shop);
        Reading::Row {
            event_time: time
                .iter()
                .fold(0, |time, digit| time * 10 + i64::from(digit - b'0')),
        }
    }

    fn add(&self, scratch: &Amount, accumulators: &mut [Accumulator]) {
        let Some(amount) = scratch.0 else { return };
        let amount = Value::Decimal(amount);
        accumulators
            .iter_mut()
            .for_each(|accumulator| accumulator.add(&amount));
    }

    fn result_key(&self, group: &[u8]) -> Vec<u8> {
        group.to_vec()
    }

    fn result_value(
        &self,
        _: &[u8],
        window: Window,
        accumulators: &[Accumulator],
    ) -> Option<Vec<u8>> {
        let results: Vec<_> = accumulators
            .iter()
            .map(|accumulator| accumulator.result().to_json())
            .collect();
        Some(format!("{} {}", window.start(), results.join(" ")).into_bytes())
    }
}

fn main() {
    let batches: Vec<Bytes> = (0..RECORDS / RECORDS_PER_BATCH).map(source_batch).collect();
    let job = Arc::new(Orders);
    let mut combiner = Combiner::new(job.clone(), CombinerConfig::new(PARTITIONS, 1));
    for partition in 0..PARTITIONS {
        combiner
            .set_internal_state(partition, [], i64::MIN, [])
            .expect("the partition exists");
    }
    combiner.assign_source(0, 0, 0, 0);

    let started = Instant::now();
    let mut flushed = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        while !combiner
            .add_batch(0, batch, 0)
            .expect("the batch is sound")
            .complete
        {
            flushed.extend(combiner.flush(0));
        }
        if index % BATCHES_PER_FLUSH == BATCHES_PER_FLUSH - 1 {
            flushed.extend(combiner.flush(0));
        }
    }
    let combined = started.elapsed();

    let mut mergers: Vec<_> = (0..PARTITIONS)
        .map(|partition| Merger::new(job.clone(), partition, 1, MergerConfig::default()))
        .collect();
    let started = Instant::now();
    let mut results = 0;
    let mut rows = 0;
    for batch in &flushed {
        let Some(merger) = mergers.get_mut(batch.internal_partition as usize) else {
            continue;
        };
        let values: Vec<&[u8]> = batch.records.iter().map(|value| &value[..]).collect();
        let offset = merger.next_offset();
        results += merger
            .apply(offset, offset + values.len() as i64, &values)
            .expect("the batch is sound")
            .results
            .len();
    }
    let merged = started.elapsed();
    rows += mergers
        .iter()
        .map(|merger| merger.counters().rows)
        .sum::<u64>();
    println!(
        "combine: {:.2} million records/s ({RECORDS} records)",
        RECORDS as f64 / combined.as_secs_f64() / 1e6
    );
    println!(
        "merge: {:.2} million rows/s ({rows} rows into {results} results)",
        rows as f64 / merged.as_secs_f64() / 1e6
    );
    println!(
        "both: {:.2} million records/s",
        RECORDS as f64 / (combined + merged).as_secs_f64() / 1e6
    );
}

/// Orders 0.1 ms apart, now and then up to 4 s out of order.
fn source_batch(batch: usize) -> Bytes {
    let mut builder = BatchBuilder::new().base_offset((batch * RECORDS_PER_BATCH) as i64);
    for index in batch * RECORDS_PER_BATCH..(batch + 1) * RECORDS_PER_BATCH {
        let scattered = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let back = if index % 5 == 0 {
            scattered >> 32 & 0xfff
        } else {
            0
        };
        let time = 1_700_000_000_000 + index / 10 - back;
        let head = format!(
            "{{\"order_time\":{time},\"shop\":\"shop-{:04}\",\"amount\":{}.{:02}",
            (scattered >> 40) % KEYS,
            scattered >> 20 & 0x3ff,
            (scattered >> 50) % 100
        );
        let value = format!(
            "{head},\"status\":\"paid\",\"note\":\"{:-<1$}\"}}",
            "",
            200usize.saturating_sub(head.len() + 26)
        );
        builder.push(time as i64, None, Some(value.as_bytes()), &[]);
    }
    builder.build().expect("a batch of 1,000 records fits")
}
