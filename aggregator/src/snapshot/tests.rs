//! Snapshots come back as they were, and damaged ones do not come back.

use super::*;
use crate::combine::{Combiner, CombinerConfig};
use crate::testing::{TextJob, batch};

fn merger(groups: usize) -> Merger<TextJob> {
    let job = Arc::new(TextJob::new(10, 0));
    let mut combiner = Combiner::new(job.clone(), CombinerConfig::new(1, 1));
    combiner.assign_source(0, 1, 0, 0);
    let values: Vec<String> = (0..groups)
        .map(|group| format!("{},shop {group},1.5", 15 + group % 5))
        .collect();
    let values: Vec<&str> = ["1,early,1", "what?"]
        .into_iter()
        .chain(values.iter().map(String::as_str))
        .collect();
    combiner.add_batch(0, &batch(0, &values), 0).unwrap();
    let mut merger = Merger::new(job, 0, 1, MergerConfig::default());
    for partial in combiner.flush(5000) {
        let values: Vec<&[u8]> = partial.records.iter().map(|value| &value[..]).collect();
        let outputs = merger.apply(0, values.len() as i64, &values).unwrap();
        assert_eq!((outputs.results.len(), outputs.dead_letters.len()), (1, 1));
    }
    merger
}

fn restore(chunks: Vec<Bytes>) -> Result<Merger<TextJob>, SnapshotError> {
    Merger::restore(
        Arc::new(TextJob::new(10, 0)),
        0,
        MergerConfig::default(),
        chunks,
    )
}

#[test]
fn a_restored_merger_is_the_one_that_was_saved() {
    let saved = merger(5000);
    let chunks = saved.snapshot();
    assert!(
        chunks.len() > 1
            && chunks
                .iter()
                .all(|chunk| chunk.len() <= SNAPSHOT_CHUNK_BYTES_MAX),
        "{} chunks",
        chunks.len()
    );
    let restored = restore(chunks.clone()).unwrap();
    assert_eq!(restored.snapshot(), chunks);
    assert_eq!(
        (
            restored.watermark(),
            restored.next_offset(),
            restored.counters()
        ),
        (saved.watermark(), saved.next_offset(), saved.counters())
    );
    assert_eq!(
        (restored.groups(), restored.state_bytes()),
        (saved.groups(), saved.state_bytes())
    );
    assert!(restored.covers().eq(saved.covers()));
}

#[test]
fn an_empty_merger_can_be_saved() {
    let empty = Merger::new(Arc::new(TextJob::new(10, 0)), 0, 3, MergerConfig::default());
    assert_eq!(restore(empty.snapshot()).unwrap().source_partition_count, 3);
}

#[test]
fn missing_swapped_and_damaged_chunks_are_refused() {
    let chunks = merger(9000).snapshot();
    assert!(chunks.len() > 2);
    assert!(matches!(
        restore(chunks[..1].to_vec()),
        Err(SnapshotError::Order { number: 1 })
    ));
    assert!(matches!(
        restore(chunks[1..].to_vec()),
        Err(SnapshotError::Order { number: 0 })
    ));
    assert!(matches!(
        restore(Vec::new()),
        Err(SnapshotError::Order { number: 0 })
    ));
    let mut damaged = chunks[0].to_vec();
    damaged[100] ^= 1;
    assert!(matches!(
        restore(vec![damaged.into()]),
        Err(SnapshotError::Checksum { number: 0 })
    ));
    assert!(matches!(
        restore(vec![Bytes::from_static(b"\x01")]),
        Err(SnapshotError::Truncated { number: 0 })
    ));
    let other = Merger::restore(
        Arc::new(TextJob::new(10, 0)),
        1,
        MergerConfig::default(),
        chunks,
    );
    assert!(matches!(
        other,
        Err(SnapshotError::Partition {
            expected: 1,
            found: 0
        })
    ));
}
