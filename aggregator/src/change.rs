//! What a running job's declaration may change.
//!
//! | part | a change of it |
//! |---|---|
//! | description, configs, late, dead_letter | takes effect at once |
//! | time.max_out_of_orderness, time.idle_timeout | takes effect for records read from then on; the watermark never goes back |
//! | partitions, upwards | needs a fresh job: groups move between partitions, and state with them |
//! | from.topic, from.format, time.field, time.unit, where, group_by, window, aggregate | needs a fresh job: the state means something else |
//! | from.start | needs a fresh job: a running one has its place already |
//! | topic | refused: it is another derived topic |
//! | partitions, downwards | refused: Kafka's topics do not shrink |
//!
//! A fresh job is a new derived topic, or this one deleted and created again: results of two meanings are never mixed in one topic.

use crate::plan::Plan;

/// The verdict on a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that the job does is different.
    None,
    /// May be applied while the job runs.
    Compatible,
    /// Refused for the running job; the topic must be deleted and created again. The parts that differ.
    NeedsFreshState(Vec<String>),
    /// Can never be applied to this topic; why.
    Refused(String),
}

/// Compares a running job's plan with the one that is to replace it.
pub fn check_change(old: &Plan, new: &Plan) -> Change {
    if old.topic != new.topic {
        return Change::Refused(format!(
            "topic: '{}' cannot become '{}'; declare a new topic",
            old.topic, new.topic
        ));
    }
    let mut fresh = Vec::new();
    // An undeclared number leaves the topic as it is.
    if let (Some(before), Some(after)) = (old.partitions, new.partitions) {
        if after < before {
            return Change::Refused(format!(
                "partitions: {before} cannot become {after}; topics do not shrink"
            ));
        }
        if after > before {
            fresh.push("partitions".to_string());
        }
    }
    if old.source.start != new.source.start {
        fresh.push("from.start".to_string());
    }
    if old.state_text() != new.state_text() {
        let lines = |plan: &Plan, part: &str| {
            let own = plan
                .state_text()
                .lines()
                .filter(|line| line.split(' ').next() == Some(part));
            own.map(str::to_string).collect::<Vec<_>>()
        };
        for part in [
            "from.topic",
            "from.format",
            "time",
            "where",
            "group_by",
            "window",
            "aggregate",
        ] {
            if lines(old, part) != lines(new, part) {
                fresh.push(part.to_string());
            }
        }
        if fresh.is_empty() {
            fresh.push("the declaration".to_string());
        }
    }
    if !fresh.is_empty() {
        return Change::NeedsFreshState(fresh);
    }
    let same = old.max_out_of_orderness_ms == new.max_out_of_orderness_ms
        && old.idle_timeout_ms == new.idle_timeout_ms
        && old.late_topic == new.late_topic
        && old.dead_letter_topic == new.dead_letter_topic;
    if same {
        Change::None
    } else {
        Change::Compatible
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declaration::Declaration;

    const OLD: &str = "topic: t\npartitions: 2\nfrom: { topic: s }\ntime: record\ngroup_by: [a]\nwindow: { tumbling: 1m }\naggregate: { n: count(*) }\n";

    fn verdict(from: &str, to: &str) -> Change {
        let plan = |text: &str| {
            Plan::compile(&Declaration::parse_all(text, "t.yaml").unwrap()[0]).unwrap()
        };
        check_change(&plan(OLD), &plan(&OLD.replace(from, to)))
    }

    #[test]
    fn the_rule_table_holds() {
        let fresh = |part: &str| Change::NeedsFreshState(vec![part.to_string()]);
        assert_eq!(verdict("count(*)", "COUNT( * )"), Change::None);
        assert_eq!(
            verdict("time: record", "time: { max_out_of_orderness: 5s }"),
            Change::Compatible
        );
        assert_eq!(
            verdict("time: record", "late: { topic: l }\ntime: record"),
            Change::Compatible
        );
        assert_eq!(verdict("topic: s", "topic: x"), fresh("from.topic"));
        assert_eq!(verdict("[a]", "[a, b]"), fresh("group_by"));
        assert_eq!(verdict("1m", "2m"), fresh("window"));
        assert_eq!(verdict("count(*)", "count(a)"), fresh("aggregate"));
        assert_eq!(
            verdict("time: record", "time: { field: x, unit: ms }"),
            fresh("time")
        );
        assert_eq!(
            verdict("partitions: 2", "partitions: 3"),
            fresh("partitions")
        );
        assert_eq!(
            verdict("time: record", "time: record\nwhere: a = 1"),
            fresh("where")
        );
        assert!(matches!(
            verdict("partitions: 2", "partitions: 1"),
            Change::Refused(_)
        ));
        assert!(matches!(
            verdict("topic: t", "topic: u"),
            Change::Refused(_)
        ));
    }
}
