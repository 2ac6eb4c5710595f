//! What clients saw while things broke, and whether it can be true: after Jepsen's workload for Kafka.
//!
//! A client program prints a line for each thing that happens to it, in the order in which it happens:
//!
//! ```text
//! send PRODUCER PARTITION NUMBER            handed to the client library
//! ack PRODUCER PARTITION NUMBER OFFSET      acknowledged by all; -1 if the library was not told where
//! fail PRODUCER PARTITION NUMBER WHY        given up; may be in the log or not
//! assign CONSUMER PARTITION OFFSET          a member of the group begins there
//! read CONSUMER PARTITION OFFSET VALUE      a member of the group was given that
//! commit CONSUMER PARTITION OFFSET          a commit of a member of the group was acknowledged
//! committed PARTITION OFFSET                the group's committed offset at the end
//! final PARTITION OFFSET VALUE              read at the end, from the first offset to the last
//! note ...                                  for people
//! done                                      nothing more comes
//! ```
//!
//! A value is `PRODUCER:PARTITION:NUMBER`; a producer numbers the values of each partition from 0. There are neither
//! transactions nor compaction, so offsets have no gaps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

/// More than these of one history say nothing more.
const ANOMALIES_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    pub producer: u32,
    pub partition: i32,
    pub number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Send(Value),
    Ack(Value, i64),
    Fail(Value, String),
    /// Only of transactions, as [`Self::Copy`]; see [`crate::transactions`].
    Abort(Value),
    Assign(u32, i32, i64),
    Read(u32, i32, i64, Value),
    Commit(u32, i32, i64),
    Committed(i32, i64),
    Final(i32, i64, Value),
    Copy(i32, i64, Value),
    Note(String),
    Done,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.producer, self.partition, self.number)
    }
}

/// A line or a value that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl FromStr for Value {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Value, Malformed> {
        let parse = || {
            let mut parts = text.split(':');
            let value = Value {
                producer: parts.next()?.parse().ok()?,
                partition: parts.next()?.parse().ok()?,
                number: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(value)
        };
        parse().ok_or_else(|| Malformed(text.to_owned()))
    }
}

impl FromStr for Event {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Event, Malformed> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |producer: &str, partition: &str, number: &str| {
            format!("{producer}:{partition}:{number}")
                .parse::<Value>()
                .ok()
        };
        let event = match words.as_slice() {
            ["send", producer, partition, number] => {
                value(producer, partition, number).map(Event::Send)
            }
            ["ack", producer, partition, number, offset] => value(producer, partition, number)
                .zip(offset.parse().ok())
                .map(|(value, offset)| Event::Ack(value, offset)),
            ["fail", producer, partition, number, why @ ..] => {
                value(producer, partition, number).map(|value| Event::Fail(value, why.join(" ")))
            }
            ["abort", producer, partition, number] => {
                value(producer, partition, number).map(Event::Abort)
            }
            [kind @ ("assign" | "commit"), consumer, partition, offset] => {
                let parse = || {
                    let consumer = consumer.parse().ok()?;
                    let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
                    Some(match *kind {
                        "assign" => Event::Assign(consumer, partition, offset),
                        _ => Event::Commit(consumer, partition, offset),
                    })
                };
                parse()
            }
            ["read", consumer, partition, offset, value] => {
                let parse = || {
                    let (consumer, partition) = (consumer.parse().ok()?, partition.parse().ok()?);
                    let (offset, value) = (offset.parse().ok()?, value.parse().ok()?);
                    Some(Event::Read(consumer, partition, offset, value))
                };
                parse()
            }
            ["committed", partition, offset] => partition
                .parse()
                .ok()
                .zip(offset.parse().ok())
                .map(|(partition, offset)| Event::Committed(partition, offset)),
            [kind @ ("final" | "copy"), partition, offset, value] => {
                let parse = || {
                    let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
                    let value = value.parse().ok()?;
                    Some(match *kind {
                        "final" => Event::Final(partition, offset, value),
                        _ => Event::Copy(partition, offset, value),
                    })
                };
                parse()
            }
            ["note", text @ ..] => Some(Event::Note(text.join(" "))),
            ["done"] => Some(Event::Done),
            _ => None,
        };
        event.ok_or_else(|| Malformed(line.to_owned()))
    }
}

/// A partition's log: offsets and values, in order.
pub type PartitionLog = Vec<(i64, Value)>;

/// What the history tells that cannot be true of a broker that keeps its word; empty if nothing.
pub fn anomalies(history: &[Event], logs: &BTreeMap<i32, PartitionLog>) -> Vec<String> {
    let mut found = Vec::new();
    check_logs(history, logs, &mut found);
    check_producers(history, logs, &mut found);
    check_reads(history, logs, &mut found);
    check_group(history, logs, &mut found);
    let more = found.len().saturating_sub(ANOMALIES_MAX);
    if more > 0 {
        found.truncate(ANOMALIES_MAX);
        found.push(format!("and {more} more"));
    }
    found
}

/// Offsets without gaps, nothing twice, nothing unsent, each producer's values in its order.
fn check_logs(history: &[Event], logs: &BTreeMap<i32, PartitionLog>, found: &mut Vec<String>) {
    let sent: HashSet<Value> = history
        .iter()
        .filter_map(|event| match event {
            Event::Send(value) => Some(*value),
            _ => None,
        })
        .collect();
    for (partition, log) in logs {
        let mut places = HashMap::new();
        let mut last_numbers = HashMap::new();
        for (wanted, (offset, value)) in (0..).zip(log) {
            if *offset != wanted {
                found.push(format!(
                    "gap: partition {partition} has {offset} after {wanted}"
                ));
                break;
            }
            if !sent.contains(value) || value.partition != *partition {
                found.push(format!(
                    "unsent: {value} at offset {offset} of partition {partition}"
                ));
            }
            if let Some(first) = places.insert(*value, *offset) {
                found.push(format!("doubled: {value} at offsets {first} and {offset}"));
                continue;
            }
            let last = last_numbers.insert(value.producer, value.number);
            if last.is_some_and(|last| last > value.number) {
                found.push(format!(
                    "disorder: {value} at offset {offset} comes after {last:?}"
                ));
            }
        }
    }
}

/// Nothing that was acknowledged is lost, or elsewhere than was said; nothing is left open.
fn check_producers(history: &[Event], logs: &BTreeMap<i32, PartitionLog>, found: &mut Vec<String>) {
    let places: HashMap<Value, i64> = logs
        .values()
        .flatten()
        .map(|(offset, value)| (*value, *offset))
        .collect();
    let mut open = BTreeSet::new();
    for event in history {
        match event {
            Event::Send(value) => {
                open.insert(*value);
            }
            Event::Fail(value, _) => {
                open.remove(value);
            }
            Event::Ack(value, offset) => {
                open.remove(value);
                match places.get(value) {
                    None => found.push(format!("lost: {value}, acknowledged at offset {offset}")),
                    Some(place) if *offset >= 0 && place != offset => found.push(format!(
                        "moved: {value}, acknowledged at offset {offset}, lies at {place}"
                    )),
                    Some(_) => {}
                }
            }
            _ => {}
        }
    }
    for value in open {
        found.push(format!(
            "open: {value} was neither acknowledged nor given up"
        ));
    }
}

/// What was read is what is there in the end, and at the end all is read.
fn check_reads(history: &[Event], logs: &BTreeMap<i32, PartitionLog>, found: &mut Vec<String>) {
    let at = |partition: &i32, offset: &i64| {
        let index = usize::try_from(*offset).ok()?;
        logs.get(partition)?.get(index).map(|(_, value)| *value)
    };
    let mut read_at_end: BTreeMap<i32, i64> = logs.keys().map(|index| (*index, 0)).collect();
    for event in history {
        match event {
            Event::Read(_, partition, offset, value) | Event::Final(partition, offset, value) => {
                let there = at(partition, offset);
                if there != Some(*value) {
                    found.push(format!(
                        "dirty: {value} was read at offset {offset} of partition {partition}, where {there:?} is"
                    ));
                }
            }
            _ => {}
        }
        if let Event::Final(partition, offset, _) = event {
            let next = read_at_end.entry(*partition).or_default();
            if next != offset {
                found.push(format!(
                    "unread: at the end, {offset} of {partition} came for {next}"
                ));
            }
            *next = offset + 1;
        }
    }
    for (partition, next) in read_at_end {
        let end = logs.get(&partition).map_or(0, Vec::len);
        if usize::try_from(next) != Ok(end) {
            found.push(format!(
                "unread: at the end, {next} of {end} values of partition {partition}"
            ));
        }
    }
}

/// Members read without gaps from where the group had come to; commits never go back, and never past what was read.
fn check_group(history: &[Event], logs: &BTreeMap<i32, PartitionLog>, found: &mut Vec<String>) {
    let mut positions = HashMap::new();
    let mut commits: HashMap<i32, i64> = HashMap::new();
    let mut read: HashMap<i32, BTreeSet<i64>> = HashMap::new();
    // All offsets below have been read by a member.
    let mut read_through: HashMap<i32, i64> = HashMap::new();
    for event in history {
        match event {
            Event::Assign(consumer, partition, offset) => {
                let commit = commits.get(partition).copied().unwrap_or(0);
                if *offset < commit {
                    found.push(format!(
                        "back: consumer {consumer} begins at {offset} of partition {partition}, committed was {commit}"
                    ));
                }
                positions.insert((*consumer, *partition), *offset);
            }
            Event::Read(consumer, partition, offset, _) => {
                let position = positions.insert((*consumer, *partition), offset + 1);
                if position != Some(*offset) {
                    found.push(format!(
                        "skipped: consumer {consumer} was given {offset} of partition {partition} for {position:?}"
                    ));
                }
                let set = read.entry(*partition).or_default();
                set.insert(*offset);
                let through = read_through.entry(*partition).or_default();
                while set.remove(through) {
                    *through += 1;
                }
            }
            Event::Commit(consumer, partition, offset) => {
                let before = commits.insert(*partition, *offset).unwrap_or(0);
                if *offset < before {
                    found.push(format!(
                        "back: consumer {consumer} committed {offset} of partition {partition} after {before}"
                    ));
                }
                let through = read_through.get(partition).copied().unwrap_or(0);
                if *offset > through {
                    found.push(format!(
                        "skipped: {offset} of partition {partition} was committed, {through} is unread"
                    ));
                }
            }
            Event::Committed(partition, offset) => {
                let end = logs.get(partition).map_or(0, Vec::len);
                let commit = commits.get(partition).copied().unwrap_or(0);
                if usize::try_from(*offset) != Ok(end) || *offset < commit {
                    found.push(format!(
                        "at the end {offset} of partition {partition} is committed; the last commit was {commit}, the end is {end}"
                    ));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "send 1 0 0\nsend 1 0 1\nsend 2 0 0\nack 1 0 0 0\nassign 7 0 0\nread 7 0 0 1:0:0\ncommit 7 0 1\n\
                        fail 2 0 0 timed out\nack 1 0 1 2\nread 7 0 1 2:0:0\nread 7 0 2 1:0:1\ncommit 7 0 3\n\
                        final 0 0 1:0:0\nfinal 0 1 2:0:0\nfinal 0 2 1:0:1\ncommitted 0 3\ndone";
    const LOG: [&str; 3] = ["1:0:0", "2:0:0", "1:0:1"];

    fn judge(history: &str, log: &[&str]) -> Vec<String> {
        let history: Vec<Event> = history.lines().map(|line| line.parse().unwrap()).collect();
        let log = (0..)
            .zip(log)
            .map(|(offset, value)| (offset, value.parse().unwrap()));
        anomalies(&history, &BTreeMap::from([(0, log.collect())]))
    }

    fn check(from: &str, to: &str, log: &[&str], anomaly: &str) {
        assert!(GOOD.contains(from), "{from}");
        let found = judge(&GOOD.replace(from, to), log);
        assert!(
            found.iter().any(|found| found.starts_with(anomaly)),
            "{anomaly} is not among {found:?}"
        );
    }

    #[test]
    fn a_good_history_is_good() {
        assert_eq!(judge(GOOD, &LOG), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_with_producers_is_found() {
        check("done", "done", &LOG[..2], "lost: 1:0:1");
        check("ack 1 0 1 2", "ack 1 0 1 1", &LOG, "moved: 1:0:1");
        check("ack 1 0 1 2", "note", &LOG, "open: 1:0:1");
        check(
            "done",
            "done",
            &["1:0:0", "2:0:0", "1:0:1", "1:0:1"],
            "doubled: 1:0:1",
        );
        check(
            "done",
            "done",
            &["1:0:1", "2:0:0", "1:0:0"],
            "disorder: 1:0:0",
        );
        check("send 2 0 0", "note", &LOG, "unsent: 2:0:0");
    }

    #[test]
    fn what_is_wrong_with_reads_is_found() {
        check("read 7 0 1 2:0:0", "read 7 0 1 3:0:0", &LOG, "dirty: 3:0:0");
        check("final 0 1 2:0:0\n", "", &LOG, "unread");
        check("final 0 2 1:0:1\n", "", &LOG, "unread");
    }

    #[test]
    fn what_is_wrong_with_groups_is_found() {
        check("read 7 0 1 2:0:0\n", "", &LOG, "skipped: consumer 7");
        check("commit 7 0 1", "commit 7 0 2", &LOG, "skipped: 2");
        check(
            "commit 7 0 3",
            "commit 7 0 0",
            &LOG,
            "back: consumer 7 committed 0",
        );
        check(
            "ack 1 0 1 2",
            "assign 8 0 0\nack 1 0 1 2",
            &LOG,
            "back: consumer 8 begins",
        );
        check("committed 0 3", "committed 0 2", &LOG, "at the end 2");
    }
}
