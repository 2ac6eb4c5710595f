//! What clients saw of transactions while things broke, and whether it can be true.
//!
//! The lines are those of [`crate::history`], with another meaning for some:
//!
//! ```text
//! send PRODUCER PARTITION NUMBER         part of the producer's transaction of that number, in every partition
//! ack PRODUCER PARTITION NUMBER -1       the transaction was committed
//! abort PRODUCER PARTITION NUMBER        the transaction was aborted
//! fail PRODUCER PARTITION NUMBER WHY     it is not known how the transaction ended
//! read CONSUMER PARTITION OFFSET VALUE   a member of the group read that as committed, and copies it in a transaction with its offsets
//! committed PARTITION OFFSET             the group's committed offset at the end
//! final PARTITION OFFSET VALUE           read as committed at the end
//! copy PARTITION OFFSET VALUE            read as committed at the end, among the copies
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::history::{Event, Value};

/// More than these of one history say nothing more.
const ANOMALIES_MAX: usize = 20;

type Transaction = (u32, u64);

/// What the history tells that cannot be true of a broker that keeps its word; empty if nothing.
pub fn anomalies(history: &[Event]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut finals, mut copies) = (Partitions::new(), Partitions::new());
    for event in history {
        match event {
            Event::Final(partition, offset, value) => {
                finals
                    .entry(*partition)
                    .or_default()
                    .push((*offset, *value));
            }
            Event::Copy(partition, offset, value) => {
                copies
                    .entry(*partition)
                    .or_default()
                    .push((*offset, *value));
            }
            _ => {}
        }
    }
    check_order("final", &finals, &mut found);
    check_outcomes(history, &finals, &mut found);
    check_reads(history, &finals, &mut found);
    check_copies(&finals, &copies, &mut found);
    check_group(history, &finals, &mut found);
    let more = found.len().saturating_sub(ANOMALIES_MAX);
    if more > 0 {
        found.truncate(ANOMALIES_MAX);
        found.push(format!("and {more} more"));
    }
    found
}

type Partitions = BTreeMap<i32, Vec<(i64, Value)>>;

/// Nothing twice, offsets that ascend, each producer's values in its order.
fn check_order(what: &str, partitions: &Partitions, found: &mut Vec<String>) {
    for (partition, values) in partitions {
        let (mut places, mut numbers) = (HashMap::new(), HashMap::new());
        let mut last_offset = -1;
        for (offset, value) in values {
            if *offset <= last_offset {
                found.push(format!(
                    "{what}: {offset} of partition {partition} after {last_offset}"
                ));
            }
            last_offset = *offset;
            if value.partition != *partition {
                found.push(format!("{what}: {value} is in partition {partition}"));
            }
            if let Some(first) = places.insert(*value, *offset) {
                found.push(format!(
                    "doubled: {what} {value} at offsets {first} and {offset}"
                ));
                continue;
            }
            let last = numbers.insert(value.producer, value.number);
            if last.is_some_and(|last| last > value.number) {
                found.push(format!(
                    "disorder: {what} {value} at offset {offset} comes after {last:?}"
                ));
            }
        }
    }
}

/// Transactions are there whole or not at all: those that were committed, and none that was aborted.
fn check_outcomes(history: &[Event], finals: &Partitions, found: &mut Vec<String>) {
    let of = |value: &Value| (value.producer, value.number);
    let mut sent: BTreeMap<Transaction, BTreeSet<i32>> = BTreeMap::new();
    let (mut committed, mut aborted) = (HashSet::new(), HashSet::new());
    let mut open = BTreeSet::new();
    for event in history {
        match event {
            Event::Send(value) => {
                sent.entry(of(value)).or_default().insert(value.partition);
                open.insert(*value);
            }
            Event::Ack(value, _) => {
                open.remove(value);
                committed.insert(of(value));
            }
            Event::Abort(value) => {
                open.remove(value);
                aborted.insert(of(value));
            }
            Event::Fail(value, _) => {
                open.remove(value);
            }
            _ => {}
        }
    }
    for value in open {
        found.push(format!("open: {value} was neither committed nor aborted"));
    }
    let mut there: BTreeMap<Transaction, BTreeSet<i32>> = BTreeMap::new();
    for (_, value) in finals.values().flatten() {
        there.entry(of(value)).or_default().insert(value.partition);
    }
    for (transaction, partitions) in &there {
        if !sent.contains_key(transaction) {
            found.push(format!(
                "unsent: transaction {transaction:?} in {partitions:?}"
            ));
        }
    }
    for (transaction, partitions) in &sent {
        let seen = there.get(transaction);
        if seen.is_some_and(|seen| seen != partitions) {
            found.push(format!(
                "torn: transaction {transaction:?} is in {seen:?} of {partitions:?}"
            ));
        }
        if seen.is_none() && committed.contains(transaction) {
            found.push(format!(
                "lost: transaction {transaction:?}, which was committed"
            ));
        }
        if seen.is_some() && aborted.contains(transaction) {
            found.push(format!(
                "dirty: transaction {transaction:?} was aborted, and is in {seen:?}"
            ));
        }
    }
}

/// What was read as committed is.
fn check_reads(history: &[Event], finals: &Partitions, found: &mut Vec<String>) {
    let there: HashSet<(i32, i64, Value)> = finals
        .iter()
        .flat_map(|(partition, values)| {
            let values = values.iter();
            values.map(|(offset, value)| (*partition, *offset, *value))
        })
        .collect();
    for event in history {
        if let Event::Read(_, partition, offset, value) = event
            && !there.contains(&(*partition, *offset, *value))
        {
            found.push(format!(
                "dirty: {value} was read as committed at offset {offset} of partition {partition}"
            ));
        }
    }
}

/// Everything was copied once, and in order.
fn check_copies(finals: &Partitions, copies: &Partitions, found: &mut Vec<String>) {
    check_order("copy", copies, found);
    for (partition, values) in finals {
        let copied = copies.get(partition).map_or(&[][..], Vec::as_slice);
        let first = values
            .iter()
            .map(|(_, value)| Some(value))
            .chain(std::iter::repeat(None))
            .zip(
                copied
                    .iter()
                    .map(|(_, value)| Some(value))
                    .chain(std::iter::repeat(None)),
            )
            .take(values.len().max(copied.len()))
            .find(|(value, copy)| value != copy);
        if let Some((value, copy)) = first {
            found.push(format!(
                "copies: partition {partition} has {} values and {} copies; the first to differ are {value:?} and {copy:?}",
                values.len(),
                copied.len()
            ));
        }
    }
}

/// The group has come to the end.
fn check_group(history: &[Event], finals: &Partitions, found: &mut Vec<String>) {
    for event in history {
        let Event::Committed(partition, offset) = event else {
            continue;
        };
        let last = finals.get(partition).and_then(|values| values.last());
        let after = last.map_or(0, |(offset, _)| offset + 1);
        if *offset != after {
            found.push(format!(
                "at the end {offset} of partition {partition} is committed, and {after} follows the last value"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "send 1 0 0\nsend 1 1 0\nack 1 0 0 -1\nack 1 1 0 -1\nsend 1 0 1\nsend 1 1 1\nabort 1 0 1\nabort 1 1 1\n\
                        send 2 0 0\nsend 2 1 0\nfail 2 0 0 who knows\nfail 2 1 0 who knows\nread 7 0 0 1:0:0\nread 7 0 4 2:0:0\n\
                        final 0 0 1:0:0\nfinal 0 4 2:0:0\nfinal 1 0 1:1:0\nfinal 1 4 2:1:0\ncommitted 0 5\ncommitted 1 5\n\
                        copy 0 0 1:0:0\ncopy 0 2 2:0:0\ncopy 1 0 1:1:0\ncopy 1 2 2:1:0\ndone";

    fn judge(history: &str) -> Vec<String> {
        let history: Vec<Event> = history.lines().map(|line| line.parse().unwrap()).collect();
        anomalies(&history)
    }

    #[test]
    fn a_good_history_is_good() {
        assert_eq!(judge(GOOD), Vec::<String>::new());
        // It may have been aborted as well, if it is nowhere.
        let nowhere: Vec<&str> = GOOD
            .lines()
            .filter(|line| !(line.ends_with("2:0:0") || line.ends_with("2:1:0")))
            .collect();
        let nowhere = nowhere.join("\n").replace("committed 0 5", "committed 0 1");
        let nowhere = nowhere.replace("committed 1 5", "committed 1 1");
        assert_eq!(judge(&nowhere), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_found() {
        for (from, to, anomaly) in [
            ("final 1 4 2:1:0\n", "", "torn: transaction (2, 0)"),
            (
                "final 0 0 1:0:0\nfinal 0 4",
                "final 0 4",
                "torn: transaction (1, 0)",
            ),
            (
                "final 0 4",
                "final 0 2 1:0:1\nfinal 0 4",
                "dirty: transaction (1, 1)",
            ),
            (
                "final 0 4 2:0:0",
                "final 0 2 1:0:0\nfinal 0 4 2:0:0",
                "doubled: final 1:0:0",
            ),
            (
                "final 0 4",
                "final 0 2 9:0:0\nfinal 0 4",
                "unsent: transaction (9, 0)",
            ),
            ("read 7 0 4 2:0:0", "read 7 0 2 1:0:1", "dirty: 1:0:1"),
            ("copy 0 2 2:0:0\n", "", "copies: partition 0"),
            (
                "copy 1 2",
                "copy 1 1 1:1:0\ncopy 1 2",
                "doubled: copy 1:1:0",
            ),
            ("fail 2 0 0 who knows", "note", "open: 2:0:0"),
            ("committed 1 5", "committed 1 1", "at the end 1"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let found = judge(&GOOD.replace(from, to));
            assert!(
                found.iter().any(|found| found.starts_with(anomaly)),
                "{anomaly} is not among {found:?}"
            );
        }
        let lost: Vec<&str> = GOOD
            .lines()
            .filter(|line| !(line.ends_with("1:0:0") || line.ends_with("1:1:0")))
            .collect();
        let found = judge(&lost.join("\n"));
        assert!(
            found
                .iter()
                .any(|found| found.starts_with("lost: transaction (1, 0)"))
        );
    }
}
