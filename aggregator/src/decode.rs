//! A record's JSON value to the few fields that a plan reads, in one validating pass.
//!
//! The whole value must be JSON (RFC 8259, UTF-8, an object at the top); the fields of the plan's [`Projection`]
//! are picked out on the way and everything else is only skipped. Rules:
//! - a missing field and JSON `null` are both SQL NULL, and so is any path below them;
//! - of duplicate keys the last wins, as in Jackson, serde_json and JavaScript;
//! - a path below something that is no object (or an element of what is no array) is an error when it is used;
//! - numbers are exact; one that needs more than 38 digits is an error when it is used.

mod json;

use std::borrow::Cow;

use crate::value::Value;

/// Nesting that is accepted in a record.
pub const JSON_DEPTH_MAX: usize = 128;

/// One step of a path into a JSON value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathStep {
    /// An object's member.
    Field(String),
    /// An array's element, counted from 1 as SQL and Flink do.
    Element(u32),
}

/// A path as SQL spells it, for messages: `customer.addresses[1].city`.
pub fn path_text(path: &[PathStep]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            PathStep::Field(name) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(name);
            }
            PathStep::Element(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// What a record brings; everything borrows from the batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordInput<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// The record's Kafka timestamp in milliseconds.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Only read where [`Projection::reads_headers`]; may stay empty otherwise.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

/// What a projected path holds in one record.
#[derive(Clone, Debug)]
pub enum Field<'a> {
    Value(Value<'a>),
    Object,
    Array,
    /// The path leads through a value of this type, which has no members or elements.
    NoContainer(&'static str),
    /// A number of more than 38 digits, as text.
    NumberOutOfRange(&'a str),
}

/// One decoded record: a slot for each path of the projection. Reused from record to record.
#[derive(Debug, Default)]
pub struct Row<'a> {
    pub(crate) fields: Vec<Field<'a>>,
    pub(crate) record: RecordInput<'a>,
}

impl<'a> Row<'a> {
    pub fn new() -> Row<'a> {
        Row::default()
    }

    /// The record that was decoded last.
    pub fn record(&self) -> &RecordInput<'a> {
        &self.record
    }

    pub(crate) fn field(&self, slot: usize) -> &Field<'a> {
        const NULL: &Field<'static> = &Field::Value(Value::Null);
        self.fields.get(slot).unwrap_or(NULL)
    }
}

/// Why a record could not be decoded; such a record is bad, whatever the plan would make of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the record has no value (it is a tombstone)")]
    NoValue,
    #[error("the value is not UTF-8 (byte {position})")]
    NotUtf8 { position: usize },
    #[error("the value is not JSON: {reason} at byte {position}")]
    Malformed {
        position: usize,
        reason: &'static str,
    },
    #[error("the value is JSON, but not an object")]
    NotAnObject,
    #[error("the value is nested more than {JSON_DEPTH_MAX} deep")]
    TooDeep,
}

impl DecodeError {
    /// The mistake without its place, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            DecodeError::NoValue => "the record has no value",
            DecodeError::NotUtf8 { .. } => "the value is not UTF-8",
            DecodeError::Malformed { .. } => "the value is not JSON",
            DecodeError::NotAnObject => "the value is JSON, but not an object",
            DecodeError::TooDeep => "the value is nested too deep",
        }
    }
}

/// The paths that a plan reads, as a tree that the decoder walks beside the JSON text.
#[derive(Clone, Debug)]
pub struct Projection {
    nodes: Vec<Node>,
    paths: Vec<Vec<PathStep>>,
    reads_headers: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    fields: Vec<(Box<str>, usize)>,
    elements: Vec<(u32, usize)>,
    slot: Option<usize>,
    /// Slots strictly below this node.
    below: Vec<usize>,
}

impl Default for Projection {
    fn default() -> Projection {
        Projection {
            nodes: vec![Node::default()],
            paths: Vec::new(),
            reads_headers: false,
        }
    }
}

impl Projection {
    /// The slot of a path, added if it is new.
    pub fn slot(&mut self, path: &[PathStep]) -> usize {
        let mut trail = vec![0];
        let mut at = 0;
        for step in path {
            let next = self.nodes.len();
            let node = &mut self.nodes[at];
            let known = match step {
                PathStep::Field(name) => node
                    .fields
                    .iter()
                    .find(|(field, _)| **field == **name)
                    .map(|(_, child)| *child),
                PathStep::Element(index) => node
                    .elements
                    .iter()
                    .find(|(element, _)| element == index)
                    .map(|(_, child)| *child),
            };
            at = match known {
                Some(child) => child,
                None => {
                    match step {
                        PathStep::Field(name) => node.fields.push((name.as_str().into(), next)),
                        PathStep::Element(index) => node.elements.push((*index, next)),
                    }
                    self.nodes.push(Node::default());
                    next
                }
            };
            trail.push(at);
        }
        if let Some(slot) = self.nodes[at].slot {
            return slot;
        }
        let slot = self.paths.len();
        self.paths.push(path.to_vec());
        self.nodes[at].slot = Some(slot);
        for ancestor in trail.iter().filter(|ancestor| **ancestor != at) {
            self.nodes[*ancestor].below.push(slot);
        }
        slot
    }

    /// The path of a slot, for messages.
    pub fn path(&self, slot: usize) -> &[PathStep] {
        self.paths.get(slot).map_or(&[], Vec::as_slice)
    }

    /// Whether an expression reads record headers, so that the caller must pass them.
    pub fn reads_headers(&self) -> bool {
        self.reads_headers
    }

    pub(crate) fn read_headers(&mut self) {
        self.reads_headers = true;
    }

    /// Decodes one record into `row`, whose former content is dropped.
    pub fn decode<'a>(
        &self,
        record: RecordInput<'a>,
        row: &mut Row<'a>,
    ) -> Result<(), DecodeError> {
        row.record = record;
        row.fields.clear();
        row.fields
            .resize_with(self.paths.len(), || Field::Value(Value::Null));
        let bytes = record.value.ok_or(DecodeError::NoValue)?;
        let text = std::str::from_utf8(bytes).map_err(|error| DecodeError::NotUtf8 {
            position: error.valid_up_to(),
        })?;
        json::Scanner::new(text, &self.nodes, &mut row.fields).record()
    }
}

/// Text bytes of a key or header: a string if they are UTF-8.
pub(crate) fn text_or_bytes(bytes: Option<&[u8]>) -> Value<'_> {
    match bytes {
        None => Value::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::String(Cow::Borrowed(text)),
            Err(_) => Value::Bytes(Cow::Borrowed(bytes)),
        },
    }
}

#[cfg(test)]
mod tests;
