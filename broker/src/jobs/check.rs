//! Judges the topic config `aggregation` before it is accepted.

use streamgauge_aggregator::change::{Change, check_change};
use streamgauge_aggregator::declaration::Declaration;
use streamgauge_aggregator::plan::Plan;

/// The name under which mistakes of a declaration are told: `aggregation:line:column: field: reason`.
const FILE_NAME: &str = "aggregation";

/// Whether `topic`, which has or will have `partitions` partitions, may go from the declaration `old` to `new`. Empty text is none.
///
/// To be asked for CreateTopics (`old` is `None`) and AlterConfigs. The error is for the client; each mistake of the text is a line
/// of it, with its line and column in the declaration and its field.
pub fn check_aggregation(
    topic: &str,
    old: Option<&str>,
    new: Option<&str>,
    partitions: i32,
) -> Result<(), String> {
    let declared = |text: Option<&str>| {
        text.filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
    };
    let (old, new) = (declared(old), declared(new));
    let Some(new) = new else {
        return match old {
            None => Ok(()),
            Some(_) => Err(format!(
                "the aggregation of '{topic}' cannot be taken away: delete the topic instead"
            )),
        };
    };
    if old.as_deref() == Some(new.as_str()) {
        return Ok(());
    }
    let new = compile(topic, &new)?;
    if let Some(declared) = new.partitions
        && declared != partitions
    {
        return Err(format!(
            "partitions: the declaration says {declared}, but topic '{topic}' has {partitions}"
        ));
    }
    // What cannot be compiled has never run, so that anything may take its place.
    let Some(old) = old.and_then(|old| compile(topic, &old).ok()) else {
        return Ok(());
    };
    match check_change(&old, &new) {
        Change::None | Change::Compatible => Ok(()),
        Change::NeedsFreshState(parts) => Err(format!(
            "{}: a running aggregation cannot change this, since its state means something else; \
             delete topic '{topic}' and create it again, or declare a new topic",
            parts.join(", ")
        )),
        Change::Refused(reason) => Err(reason),
    }
}

/// Whether the topic may be given more partitions: a derived topic may not, as its groups would move between partitions.
pub fn check_partition_growth(topic: &str, aggregation: Option<&str>) -> Result<(), String> {
    match aggregation {
        Some(text) if !text.trim().is_empty() => Err(format!(
            "topic '{topic}' is derived: its groups and their state would move between partitions; declare a new topic"
        )),
        _ => Ok(()),
    }
}

/// The plan that a topic's declaration makes; the error has a line for each mistake.
pub fn compile(topic: &str, text: &str) -> Result<Plan, String> {
    let lines = |mistakes: Vec<streamgauge_aggregator::diagnostic::Diagnostic>| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    let declarations = Declaration::parse_all(text, FILE_NAME).map_err(lines)?;
    let [declaration] = declarations.as_slice() else {
        return Err(format!(
            "{FILE_NAME}: one declaration is needed, not {}",
            declarations.len()
        ));
    };
    if declaration.topic != topic {
        return Err(format!(
            "{FILE_NAME}: topic: the declaration is of '{}', but this topic is '{topic}'",
            declaration.topic
        ));
    }
    Plan::compile(declaration).map_err(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "topic: t\npartitions: 2\nfrom: { topic: s }\ntime: record\ngroup_by: [a]\nwindow: { tumbling: 1m }\naggregate: { n: count(*) }\n";

    #[test]
    fn a_good_declaration_is_taken() {
        assert_eq!(check_aggregation("t", None, Some(TEXT), 2), Ok(()));
        assert_eq!(check_aggregation("t", None, Some(" "), 2), Ok(()));
        assert_eq!(check_aggregation("t", None, None, 2), Ok(()));
        assert_eq!(check_aggregation("t", Some(TEXT), Some(TEXT), 2), Ok(()));
    }

    #[test]
    fn mistakes_come_back_with_line_and_field() {
        let error = |from: &str, to: &str| {
            check_aggregation("t", None, Some(&TEXT.replace(from, to)), 2).unwrap_err()
        };
        let unknown = error("from:", "frm:");
        assert!(unknown.contains("aggregation:3:1: frm"), "{unknown}");
        let call = error("count(*)", "cuont(*)");
        assert!(call.contains("aggregation:7:"), "{call}");
        let error = check_aggregation("u", None, Some(TEXT), 2).unwrap_err();
        assert!(error.contains("'t'") && error.contains("'u'"), "{error}");
        let error = check_aggregation("t", None, Some(TEXT), 3).unwrap_err();
        assert!(error.contains("partitions"), "{error}");
    }

    #[test]
    fn a_running_job_takes_compatible_changes_only() {
        let later = TEXT.replace("time: record", "time: { max_out_of_orderness: 5s }");
        assert_eq!(check_aggregation("t", Some(TEXT), Some(&later), 2), Ok(()));
        let other = TEXT.replace("[a]", "[b]");
        let error = check_aggregation("t", Some(TEXT), Some(&other), 2).unwrap_err();
        assert!(error.starts_with("group_by"), "{error}");
        assert!(check_aggregation("t", Some(TEXT), None, 2).is_err());
        assert!(check_partition_growth("t", Some(TEXT)).is_err());
        assert_eq!(check_partition_growth("t", None), Ok(()));
    }
}
