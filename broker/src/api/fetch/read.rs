//! Reading a partition's log for consumers: on this thread what is in memory, elsewhere what may have to
//! come from the disk.

use std::collections::HashMap;

use bytes::Bytes;
use streamgauge_protocol::batch::{BatchHeader, BatchIter};
use streamgauge_storage::AbortedTransaction;
use streamgauge_storage::log::{LogReader, ReadError, ReadSlices};

use crate::shard::view::PartitionView;

/// Reads batches below `offset_limit`; see [`LogReader::read`].
pub async fn read(
    view: &PartitionView,
    offset: i64,
    bytes_max: usize,
    offset_limit: i64,
    at_least_one: bool,
) -> Result<ReadSlices, ReadError> {
    off_thread(view, offset, move |reader, is_cold| {
        let read = reader.read(offset, bytes_max, offset_limit, at_least_one)?;
        if is_cold {
            read.populate();
        }
        Ok(read)
    })
    .await
}

/// Batches of decided transactions, and which of those were aborted.
#[derive(Debug)]
pub struct Committed {
    pub read: ReadSlices,
    /// Those of which some batch may be in what was read.
    pub aborted: Vec<AbortedTransaction>,
}

/// Reads batches below a last stable offset that the view has shown.
pub async fn read_committed(
    view: &PartitionView,
    offset: i64,
    bytes_max: usize,
    last_stable_offset: i64,
    at_least_one: bool,
) -> Result<Committed, ReadError> {
    off_thread(view, offset, move |reader, is_cold| {
        let read = reader.read(offset, bytes_max, last_stable_offset, at_least_one)?;
        if is_cold {
            read.populate();
        }
        let aborted = match read.slices.is_empty() {
            true => Vec::new(),
            false => reader.aborted_transactions(offset, read.next_offset)?,
        };
        Ok(Committed { read, aborted })
    })
    .await
}

async fn off_thread<T: Send + 'static>(
    view: &PartitionView,
    offset: i64,
    look: impl FnOnce(&LogReader, bool) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let reader = view.reader();
    if !reader.is_cold(offset) {
        return look(reader, false);
    }
    let reader = reader.clone();
    match tokio::task::spawn_blocking(move || look(&reader, true)).await {
        Ok(read) => read,
        Err(error) => Err(ReadError::Io(std::io::Error::other(error))),
    }
}

impl Committed {
    /// The batches without those of aborted transactions, for readers on this broker: a client of the
    /// protocol leaves them out itself. Markers stay.
    pub fn into_slices(self) -> Vec<Bytes> {
        if self.aborted.is_empty() {
            return self.read.slices;
        }
        let mut by_producer: HashMap<i64, Vec<(i64, i64)>> = HashMap::new();
        for aborted in &self.aborted {
            let transactions = by_producer.entry(aborted.producer_id).or_default();
            transactions.push((aborted.first_offset, aborted.last_offset));
        }
        let is_aborted = |header: &BatchHeader| {
            let transactions = by_producer.get(&header.producer_id);
            header.is_transactional()
                && !header.is_control()
                && transactions.is_some_and(|transactions| {
                    transactions
                        .iter()
                        .any(|(first, last)| (*first..=*last).contains(&header.base_offset))
                })
        };
        let slices = self.read.slices.into_iter();
        slices
            .flat_map(|slice| without(&is_aborted, &slice))
            .collect()
    }
}

/// The pieces of `slice` between the batches that are left out.
fn without(is_left_out: &impl Fn(&BatchHeader) -> bool, slice: &Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let (mut from, mut to) = (0, 0);
    // What cannot be read stays, for the reader to find.
    for (header, batch) in BatchIter::new(slice.clone()).map_while(Result::ok) {
        let end = to + batch.len();
        if is_left_out(&header) {
            pieces.push(slice.slice(from..to));
            from = end;
        }
        to = end;
    }
    pieces.push(slice.slice(from..));
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use streamgauge_protocol::batch::{BatchBuilder, TransactionMarker, TransactionResult};

    use super::*;

    #[test]
    fn batches_of_aborted_transactions_are_left_out_and_no_others() {
        let data = |offset: i64, producer: i64| {
            let batch = BatchBuilder::new().base_offset(offset);
            let batch = batch.producer(producer, 0, 0).transactional();
            batch.record(0, None, Some(b"v")).build().unwrap()
        };
        let plain = BatchBuilder::new()
            .base_offset(3)
            .record(0, None, None)
            .build()
            .unwrap();
        let marker = TransactionMarker {
            result: TransactionResult::Abort,
            coordinator_epoch: 0,
        };
        let marker = marker.to_batch(1, 0, 0).unwrap();
        let batches = [
            data(0, 1),
            data(1, 2),
            data(2, 1),
            plain,
            marker,
            data(5, 1),
        ];
        let slice = Bytes::from(batches.concat());
        let committed = Committed {
            read: ReadSlices {
                slices: vec![slice],
                ..ReadSlices::default()
            },
            aborted: vec![AbortedTransaction {
                producer_id: 1,
                first_offset: 0,
                last_offset: 4,
                last_stable_offset: 5,
            }],
        };
        let [_, other, _, plain, marker, next] = &batches;
        let kept = [&other[..], plain, marker, next].concat();
        assert_eq!(committed.into_slices().concat(), kept);
    }
}
