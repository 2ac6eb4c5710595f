//! YAML as a tree of nodes with positions: scalars stay text, so that `1m` and `5` are read by who knows what they mean.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::Text;

const DEPTH_MAX: usize = 16;
const NODES_MAX: usize = 20_000;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Text,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The text is in the place.
    Scalar,
    Null,
    List(Vec<Node>),
    Map(Vec<(Text, Node)>),
}

pub(super) struct Document {
    pub(super) root: Node,
    pub(super) first_line: usize,
}

/// A syntax error and its place.
pub(super) struct YamlError {
    pub(super) place: Text,
    pub(super) reason: String,
}

enum Open {
    List(Text, Vec<Node>),
    Map(Text, Vec<(Text, Node)>, Option<Text>),
}

pub(super) fn documents(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut first_line = 1;
    let mut nodes = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            let place = Text {
                text: String::new(),
                line: marker.line().max(1),
                column: marker.col() + 1,
            };
            YamlError {
                place,
                reason: format!("is not YAML: {}", error.info()),
            }
        })?;
        let mut place = Text {
            text: String::new(),
            line: span.start.line().max(1),
            column: span.start.col() + 1,
        };
        let fail = |place: &Text, reason: &str| YamlError {
            place: place.clone(),
            reason: reason.to_string(),
        };
        nodes += 1;
        if nodes > NODES_MAX {
            return Err(fail(&place, "has too many parts"));
        }
        let node = match event {
            Event::DocumentStart(explicit) => {
                first_line = if explicit { place.line } else { 1 };
                continue;
            }
            Event::Alias(_) => return Err(fail(&place, "YAML aliases are not supported")),
            Event::Scalar(value, style, ..) => {
                let is_null = style == ScalarStyle::Plain && matches!(&*value, "" | "~" | "null");
                // Expressions count their columns from the text, which stands behind an opening quote.
                place.column += usize::from(matches!(
                    style,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted
                ));
                place.text = value.into_owned();
                Node {
                    place,
                    kind: if is_null { Kind::Null } else { Kind::Scalar },
                }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH_MAX => {
                return Err(fail(&place, "is nested too deep"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(place, Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(place, Vec::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(place, items)) => Node {
                    place,
                    kind: Kind::List(items),
                },
                Some(Open::Map(place, entries, _)) => Node {
                    place,
                    kind: Kind::Map(entries),
                },
                None => continue,
            },
            _ => continue,
        };
        match open.last_mut() {
            None => documents.push(Document {
                root: node,
                first_line,
            }),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(_, entries, pending)) => match pending.take() {
                Some(key) => entries.push((key, node)),
                None if matches!(node.kind, Kind::List(_) | Kind::Map(_)) => {
                    return Err(fail(&node.place, "a key must be a name"));
                }
                None => *pending = Some(node.place),
            },
        }
    }
    Ok(documents)
}
