//! From YAML nodes to a [`Declaration`], collecting every mistake on the way.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::yaml::{Kind, Node, documents};
use super::{
    COLUMNS_MAX, Column, DECLARATION_BYTES_MAX, Declaration, Format, SideTopic, Source, Start,
    Text, Time, Unit, Window,
};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::plan::Plan;

pub(super) const FIELDS: &[&str] = &[
    "topic",
    "description",
    "partitions",
    "from",
    "time",
    "where",
    "group_by",
    "window",
    "aggregate",
    "late",
    "dead_letter",
    "configs",
];
const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];

pub(super) fn parse_all(text: &str, file: &str) -> Result<Vec<Declaration>, Vec<Diagnostic>> {
    let mut reader = Reader {
        file,
        mistakes: Vec::new(),
    };
    if text.len() > DECLARATION_BYTES_MAX {
        reader.mistake(
            &Text::default(),
            "",
            format!("is longer than {DECLARATION_BYTES_MAX} bytes"),
            None,
        );
        return Err(reader.mistakes);
    }
    let documents = match documents(text) {
        Ok(documents) => documents,
        Err(error) => {
            reader.mistake(&error.place, "", error.reason, None);
            return Err(reader.mistakes);
        }
    };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut declarations: Vec<Declaration> = Vec::new();
    for (at, document) in documents.iter().enumerate() {
        if matches!(document.root.kind, Kind::Null) {
            continue;
        }
        let from = if at == 0 {
            0
        } else {
            document.first_line.saturating_sub(1)
        };
        let to = documents
            .get(at + 1)
            .map_or(lines.len(), |next| next.first_line.saturating_sub(1));
        let own_text = lines.get(from..to.max(from)).unwrap_or_default().concat();
        let Some(declaration) = reader.declaration(&document.root, own_text) else {
            continue;
        };
        if declarations
            .iter()
            .any(|other| other.topic == declaration.topic)
        {
            reader.mistake(
                &document.root.place,
                "topic",
                format!("'{}' is declared twice in this file", declaration.topic),
                None,
            );
        }
        declarations.push(declaration);
    }
    if declarations.is_empty() && reader.mistakes.is_empty() {
        reader.mistake(
            &Text {
                line: 1,
                column: 1,
                ..Text::default()
            },
            "",
            "holds no declaration",
            None,
        );
    }
    reader
        .mistakes
        .sort_by_key(|mistake| (mistake.line, mistake.column));
    if reader.mistakes.is_empty() {
        Ok(declarations)
    } else {
        Err(reader.mistakes)
    }
}

struct Reader<'f> {
    file: &'f str,
    mistakes: Vec<Diagnostic>,
}

/// A mapping whose entries are taken one by one.
struct Mapping<'n> {
    place: &'n Text,
    path: String,
    entries: &'n [(Text, Node)],
}

impl Mapping<'_> {
    fn path(&self, field: &str) -> String {
        if self.path.is_empty() {
            field.to_string()
        } else {
            format!("{}.{field}", self.path)
        }
    }
}

impl Reader<'_> {
    fn mistake(
        &mut self,
        place: &Text,
        field: &str,
        reason: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.mistakes.push(Diagnostic {
            file: self.file.to_string(),
            line: place.line,
            column: place.column,
            field: field.to_string(),
            reason: reason.into(),
            suggestion,
        });
    }

    /// `None` if something was too wrong to go on; the mistakes tell.
    fn declaration(&mut self, root: &Node, text: String) -> Option<Declaration> {
        let mapping = self.mapping(root, "", FIELDS)?;
        let topic = self.topic(&mapping, "topic", true);
        let description = self
            .text(&mapping, "description", false)
            .map(|text| text.text);
        let partitions = self.text(&mapping, "partitions", false).and_then(|text| {
            let parsed = text.text.parse::<i32>().ok().filter(|count| *count >= 1);
            if parsed.is_none() {
                self.mistake(
                    &text,
                    "partitions",
                    format!("'{}' is not a whole number of at least 1", text.text),
                    None,
                );
            }
            parsed
        });
        let from = self
            .required(&mapping, "from")
            .and_then(|node| self.source(node));
        let time = self
            .required(&mapping, "time")
            .and_then(|node| self.time(node));
        let predicate = self.text(&mapping, "where", false);
        let group_by = self.find(&mapping, "group_by").map_or_else(
            || Some(Vec::new()),
            |node| self.columns(node, "group_by", true),
        );
        let window = self
            .required(&mapping, "window")
            .and_then(|node| self.window(node));
        let aggregate = self
            .required(&mapping, "aggregate")
            .and_then(|node| self.columns(node, "aggregate", false));
        if aggregate.as_ref().is_some_and(Vec::is_empty) {
            self.mistake(
                mapping.place,
                "aggregate",
                "needs at least one aggregate, e.g. orders: count(*)",
                None,
            );
        }
        let late = self.side_topic(&mapping, "late");
        let dead_letter = self.side_topic(&mapping, "dead_letter");
        let configs = self.configs(&mapping);
        if let (Some(group_by), Some(aggregate)) = (&group_by, &aggregate) {
            self.column_names(group_by, aggregate);
        }
        let complete = topic.is_some()
            && from.is_some()
            && time.is_some()
            && window.is_some()
            && group_by.is_some()
            && aggregate.is_some();
        // Where a part is missing another stands in, so that the expressions can be checked all the same.
        let declaration = Declaration {
            topic: topic.unwrap_or_default(),
            description,
            partitions,
            from: from.unwrap_or(Source {
                topic: String::new(),
                format: Format::Json,
                start: Start::Earliest,
            }),
            time: time.unwrap_or(Time {
                field: None,
                unit: None,
                max_out_of_orderness_ms: 0,
                idle_timeout_ms: None,
            }),
            predicate,
            group_by: group_by.unwrap_or_default(),
            window: window.unwrap_or(Window {
                tumbling_ms: 1,
                offset_ms: 0,
            }),
            aggregate: aggregate.unwrap_or_default(),
            late,
            dead_letter,
            configs,
            text,
            file: self.file.to_string(),
        };
        if let Err(mistakes) = Plan::compile(&declaration) {
            self.mistakes.extend(mistakes);
        }
        if !complete {
            return None;
        }
        self.topics_differ(&declaration, mapping.place);
        Some(declaration)
    }

    fn topics_differ(&mut self, declaration: &Declaration, place: &Text) {
        let mut seen = HashSet::from([declaration.from.topic.as_str()]);
        let topics = [
            ("topic", Some(&declaration.topic)),
            (
                "late.topic",
                declaration.late.as_ref().map(|side| &side.topic),
            ),
            (
                "dead_letter.topic",
                declaration.dead_letter.as_ref().map(|side| &side.topic),
            ),
        ];
        for (field, topic) in topics {
            // Late and bad records may share a topic; neither may feed the job again.
            let shared = field == "dead_letter.topic"
                && declaration.late.as_ref().map(|side| &side.topic) == topic;
            if let Some(topic) = topic
                && !seen.insert(topic)
                && !shared
            {
                self.mistake(
                    place,
                    field,
                    format!("'{topic}' is already the source or the derived topic"),
                    None,
                );
            }
        }
    }

    fn column_names(&mut self, group_by: &[Column], aggregate: &[Column]) {
        let mut seen = HashSet::new();
        for (field, column) in group_by
            .iter()
            .map(|column| ("group_by", column))
            .chain(aggregate.iter().map(|column| ("aggregate", column)))
        {
            let path = format!("{field}.{}", column.name);
            if WINDOW_COLUMNS.contains(&column.name.as_str()) {
                self.mistake(
                    &column.expression,
                    &path,
                    "is the name of a column that every result has; choose another",
                    None,
                );
            } else if !seen.insert(column.name.as_str()) {
                self.mistake(
                    &column.expression,
                    &path,
                    format!("the column '{}' is named twice", column.name),
                    None,
                );
            }
        }
    }

    fn source(&mut self, node: &Node) -> Option<Source> {
        let mapping = self.mapping(node, "from", &["topic", "format", "start"])?;
        let format = self
            .choice(&mapping, "format", &[("json", Format::Json)])
            .unwrap_or_default();
        let start = self
            .choice(
                &mapping,
                "start",
                &[("earliest", Start::Earliest), ("latest", Start::Latest)],
            )
            .unwrap_or_default();
        Some(Source {
            topic: self.topic(&mapping, "topic", true)?,
            format,
            start,
        })
    }

    fn time(&mut self, node: &Node) -> Option<Time> {
        if let Kind::Scalar = node.kind {
            if node.place.text != "record" {
                let reason = format!(
                    "'{}' is neither 'record' nor a mapping such as {{ field: order_time }}",
                    node.place.text
                );
                self.mistake(&node.place, "time", reason, None);
            }
            return Some(Time {
                field: None,
                unit: None,
                max_out_of_orderness_ms: 0,
                idle_timeout_ms: None,
            });
        }
        let mapping = self.mapping(
            node,
            "time",
            &["field", "unit", "max_out_of_orderness", "idle_timeout"],
        )?;
        let field = self.text(&mapping, "field", false);
        let unit = self.choice(
            &mapping,
            "unit",
            &[
                ("s", Unit::S),
                ("ms", Unit::Ms),
                ("us", Unit::Us),
                ("ns", Unit::Ns),
            ],
        );
        if unit.is_some() && field.is_none() {
            self.mistake(
                &node.place,
                "time.unit",
                "belongs to a field; the record timestamp is always milliseconds",
                None,
            );
        }
        let max_out_of_orderness_ms = self
            .duration(&mapping, "max_out_of_orderness", false)
            .unwrap_or(0);
        let idle_timeout_ms = self.duration(&mapping, "idle_timeout", false);
        if idle_timeout_ms == Some(0) {
            self.mistake(
                &node.place,
                "time.idle_timeout",
                "must be greater than 0",
                None,
            );
        }
        Some(Time {
            field,
            unit,
            max_out_of_orderness_ms,
            idle_timeout_ms,
        })
    }

    fn window(&mut self, node: &Node) -> Option<Window> {
        let mapping = self.mapping(node, "window", &["tumbling", "offset"])?;
        let offset_ms = self.duration(&mapping, "offset", false).unwrap_or(0);
        let tumbling_ms = self.duration(&mapping, "tumbling", true)?;
        if tumbling_ms == 0 {
            self.mistake(
                &node.place,
                "window.tumbling",
                "the size must be greater than 0",
                None,
            );
        } else if offset_ms >= tumbling_ms {
            self.mistake(
                &node.place,
                "window.offset",
                "must be smaller than the window",
                None,
            );
        }
        Some(Window {
            tumbling_ms,
            offset_ms,
        })
    }

    fn side_topic(&mut self, mapping: &Mapping<'_>, field: &str) -> Option<SideTopic> {
        let node = self.find(mapping, field)?;
        let inner = self.mapping(node, field, &["topic"])?;
        Some(SideTopic {
            topic: self.topic(&inner, "topic", true)?,
        })
    }

    fn configs(&mut self, mapping: &Mapping<'_>) -> IndexMap<String, String> {
        let mut configs = IndexMap::new();
        let Some(node) = self.find(mapping, "configs") else {
            return configs;
        };
        let Kind::Map(entries) = &node.kind else {
            self.mistake(
                &node.place,
                "configs",
                "must be a mapping of topic configs",
                None,
            );
            return configs;
        };
        for (key, value) in entries {
            let path = format!("configs.{}", key.text);
            if key.text == "aggregation" {
                self.mistake(
                    key,
                    &path,
                    "is the declaration itself and cannot be set here",
                    None,
                );
            } else if !matches!(value.kind, Kind::Scalar) {
                self.mistake(&value.place, &path, "must be a single value", None);
            } else if configs
                .insert(key.text.clone(), value.place.text.clone())
                .is_some()
            {
                self.mistake(key, &path, "is given twice", None);
            }
        }
        configs
    }

    /// `bare`: a plain name stands for the field of that name.
    fn columns(&mut self, node: &Node, path: &str, bare: bool) -> Option<Vec<Column>> {
        let mut columns = Vec::new();
        let hint = if bare {
            "must be a list such as [shop, country: customer.country]"
        } else {
            "must be a mapping of name: aggregate"
        };
        let entries: Vec<&(Text, Node)> = match &node.kind {
            Kind::Map(entries) => entries.iter().collect(),
            Kind::List(items) if bare => {
                for item in items {
                    match &item.kind {
                        Kind::Scalar => columns.push(Column {
                            name: item.place.text.clone(),
                            expression: item.place.clone(),
                        }),
                        Kind::Map(entries) => columns
                            .extend(entries.iter().filter_map(|entry| self.column(entry, path))),
                        _ => self.mistake(&item.place, path, hint, None),
                    }
                }
                Vec::new()
            }
            _ => {
                self.mistake(&node.place, path, hint, None);
                return None;
            }
        };
        columns.extend(
            entries
                .into_iter()
                .filter_map(|entry| self.column(entry, path)),
        );
        if columns.len() > COLUMNS_MAX {
            self.mistake(
                &node.place,
                path,
                format!("has more than {COLUMNS_MAX} columns"),
                None,
            );
            return None;
        }
        for column in &columns {
            let plain = column
                .name
                .chars()
                .all(|letter| letter.is_alphanumeric() || letter == '_')
                && !column.name.is_empty();
            if !plain {
                let suggestion =
                    bare.then(|| format!("name it: 'some_name: {}'", column.expression.text));
                self.mistake(
                    &column.expression,
                    path,
                    format!(
                        "'{}' is no column name (letters, digits and _)",
                        column.name
                    ),
                    suggestion,
                );
            }
        }
        Some(columns)
    }

    fn column(&mut self, (name, node): &(Text, Node), path: &str) -> Option<Column> {
        if let Kind::Scalar = node.kind {
            return Some(Column {
                name: name.text.clone(),
                expression: node.place.clone(),
            });
        }
        self.mistake(
            &node.place,
            &format!("{path}.{}", name.text),
            "must be an SQL expression",
            None,
        );
        None
    }

    fn mapping<'n>(&mut self, node: &'n Node, path: &str, known: &[&str]) -> Option<Mapping<'n>> {
        let Kind::Map(entries) = &node.kind else {
            let reason = format!("must be a mapping with the fields {}", known.join(", "));
            self.mistake(&node.place, path, reason, None);
            return None;
        };
        let mapping = Mapping {
            place: &node.place,
            path: path.to_string(),
            entries,
        };
        let mut seen = HashSet::new();
        for (key, _) in entries {
            let field = mapping.path(&key.text);
            if !known.contains(&key.text.as_str()) {
                let suggestion = did_you_mean(&key.text, known.iter().copied())
                    .or_else(|| Some(format!("known are {}", known.join(", "))));
                self.mistake(key, &field, "unknown field", suggestion);
            } else if !seen.insert(key.text.as_str()) {
                self.mistake(key, &field, "is given twice", None);
            }
        }
        Some(mapping)
    }

    fn find<'n>(&mut self, mapping: &Mapping<'n>, field: &str) -> Option<&'n Node> {
        mapping
            .entries
            .iter()
            .find(|(key, node)| key.text == field && !matches!(node.kind, Kind::Null))
            .map(|(_, node)| node)
    }

    fn required<'n>(&mut self, mapping: &Mapping<'n>, field: &str) -> Option<&'n Node> {
        let found = self.find(mapping, field);
        if found.is_none() {
            self.mistake(mapping.place, &mapping.path(field), "is missing", None);
        }
        found
    }

    fn text(&mut self, mapping: &Mapping<'_>, field: &str, required: bool) -> Option<Text> {
        let node = if required {
            self.required(mapping, field)?
        } else {
            self.find(mapping, field)?
        };
        if let Kind::Scalar = node.kind {
            return Some(node.place.clone());
        }
        self.mistake(
            &node.place,
            &mapping.path(field),
            "must be a single text",
            None,
        );
        None
    }

    /// A topic name by Kafka's rules (`org.apache.kafka.common.internals.Topic`).
    fn topic(&mut self, mapping: &Mapping<'_>, field: &str, required: bool) -> Option<String> {
        let text = self.text(mapping, field, required)?;
        let legal = text
            .text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
        if !legal
            || text.text.is_empty()
            || text.text.len() > 249
            || text.text == "."
            || text.text == ".."
        {
            let reason = format!(
                "'{}' is no topic name (1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-')",
                text.text
            );
            self.mistake(&text, &mapping.path(field), reason, None);
            return None;
        }
        Some(text.text)
    }

    fn choice<T: Copy>(
        &mut self,
        mapping: &Mapping<'_>,
        field: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(mapping, field, false)?;
        let chosen = choices
            .iter()
            .find(|(name, _)| *name == text.text)
            .map(|(_, choice)| *choice);
        if chosen.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let reason = format!("'{}' is none of {}", text.text, names.join(", "));
            self.mistake(
                &text,
                &mapping.path(field),
                reason,
                did_you_mean(&text.text, names),
            );
        }
        chosen
    }

    fn duration(&mut self, mapping: &Mapping<'_>, field: &str, required: bool) -> Option<i64> {
        let text = self.text(mapping, field, required)?;
        let mut fail = |reason: String, suggestion| {
            self.mistake(&text, &mapping.path(field), reason, suggestion);
            None
        };
        match humantime::parse_duration(&text.text) {
            Ok(duration) if duration.subsec_nanos() % 1_000_000 != 0 => {
                fail(format!("'{}' is finer than a millisecond", text.text), None)
            }
            Ok(duration) => match i64::try_from(duration.as_millis()) {
                Ok(milliseconds) if milliseconds <= 366_000 * 86_400_000 => Some(milliseconds),
                _ => fail(
                    format!("'{}' is longer than a thousand years", text.text),
                    None,
                ),
            },
            Err(_) => fail(
                format!("'{}' is no duration", text.text),
                Some("write a number with its unit, e.g. 500ms, 5s, 1m or 1h 30m".to_string()),
            ),
        }
    }
}
