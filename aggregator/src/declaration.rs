//! The YAML that declares a derived topic, and everything that can be wrong with it, told at once.
//!
//! ```yaml
//! topic: orders-per-minute
//! from: { topic: orders }
//! time: { field: order_time, max_out_of_orderness: 5s, idle_timeout: 10s }
//! where: status = 'paid'
//! group_by: [shop, country: customer.country]
//! window: { tumbling: 1m }
//! aggregate: { orders: count(*), revenue: sum(amount) }
//! late: { topic: orders-late }
//! ```
//!
//! The structs here are the format: the JSON Schema for editors is generated from them, doc comments included.

mod read;
mod yaml;

use indexmap::IndexMap;
use schemars::JsonSchema;

use crate::diagnostic::Diagnostic;

/// Text of one file.
pub const DECLARATION_BYTES_MAX: usize = 256 * 1024;
/// Aggregates, and group columns, of one declaration.
pub const COLUMNS_MAX: usize = 100;

/// A derived topic: windowed aggregates of another topic, kept up to date by the broker.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Declaration {
    /// The derived topic that receives the results.
    pub topic: String,
    /// What the topic is for, for people.
    #[schemars(default)]
    pub description: Option<String>,
    /// Partitions of the derived topic. Default: the broker's num.partitions.
    #[schemars(range(min = 1))]
    pub partitions: Option<i32>,
    /// The source topic.
    pub from: Source,
    /// Event time: `record` for the Kafka record timestamp, or a mapping.
    #[schemars(schema_with = "schema::time")]
    pub time: Time,
    /// SQL condition; records for which it is not true are left out.
    #[schemars(rename = "where", with = "Option<String>")]
    pub predicate: Option<Text>,
    /// Columns that form the group key: names, or `name: SQL expression`. Without any there is one group.
    #[schemars(schema_with = "schema::group_by", default)]
    pub group_by: Vec<Column>,
    /// The windows.
    pub window: Window,
    /// The result columns: `name: aggregate`, with count(*), count(x), sum(x), min(x), max(x) or avg(x).
    #[schemars(schema_with = "schema::aggregate")]
    pub aggregate: Vec<Column>,
    /// Where records go that come after their window has closed. Default: they are only counted.
    pub late: Option<SideTopic>,
    /// Where records go that cannot be read. Default: they are only counted.
    pub dead_letter: Option<SideTopic>,
    /// Topic configs of the derived topic, by Kafka's names, e.g. retention.ms.
    #[schemars(schema_with = "schema::configs", default)]
    pub configs: IndexMap<String, String>,
    /// The declaration as it was written: the value of the derived topic's config `aggregation`.
    #[schemars(skip)]
    pub text: String,
    #[schemars(skip)]
    pub(crate) file: String,
}

/// The source topic.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Source {
    /// The topic's name.
    pub topic: String,
    /// How record values are written. Default: json.
    #[schemars(default)]
    pub format: Format,
    /// Where to begin: earliest (default, as Kafka Streams does) or latest.
    #[schemars(default)]
    pub start: Start,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

/// Event time and its watermark.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Time {
    /// The field that holds the event time: ISO-8601 text (without a zone: UTC) or an epoch number with a `unit`.
    /// Default: the Kafka record timestamp.
    #[schemars(with = "Option<String>")]
    pub field: Option<Text>,
    /// The unit of epoch numbers.
    pub unit: Option<Unit>,
    /// How far behind the latest record another may be and still be on time, e.g. 5s. Default: 0s, as in Flink.
    #[schemars(rename = "max_out_of_orderness", with = "Option<String>")]
    pub max_out_of_orderness_ms: i64,
    /// After how long without records a source partition no longer holds the windows open, e.g. 10s. Default: never, as in Flink.
    #[schemars(rename = "idle_timeout", with = "Option<String>")]
    pub idle_timeout_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Unit {
    S,
    Ms,
    Us,
    Ns,
}

/// The windows' kind and size.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Window {
    /// The size of windows that follow one another without gap or overlap, e.g. 1m.
    #[schemars(rename = "tumbling", with = "String")]
    pub tumbling_ms: i64,
    /// How far the windows are shifted from the epoch, smaller than the size. Default: 0s.
    #[schemars(rename = "offset", with = "Option<String>")]
    pub offset_ms: i64,
}

/// A topic beside the derived one.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SideTopic {
    /// The topic's name.
    pub topic: String,
}

/// A text with its place in the file, from 1.
#[derive(Clone, Debug, Default)]
pub struct Text {
    pub text: String,
    pub line: usize,
    pub column: usize,
}

/// A named expression.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub expression: Text,
}

impl Declaration {
    /// Reads a file of one or several documents. Either all are right, expressions included, or every mistake is told.
    pub fn parse_all(text: &str, file_name: &str) -> Result<Vec<Declaration>, Vec<Diagnostic>> {
        read::parse_all(text, file_name)
    }

    pub(crate) fn diagnostic(
        &self,
        place: &Text,
        field: &str,
        reason: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            field: field.to_string(),
            reason: reason.into(),
            suggestion: None,
        }
    }
}

/// The JSON Schema of a declaration, for editors.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Declaration).to_value()
}

mod schema {
    use schemars::{Schema, SchemaGenerator, json_schema};

    pub(super) fn time(generator: &mut SchemaGenerator) -> Schema {
        let mapping = generator.subschema_for::<super::Time>();
        json_schema!({ "anyOf": [{ "const": "record" }, mapping] })
    }

    pub(super) fn group_by(_: &mut SchemaGenerator) -> Schema {
        let named =
            serde_json::json!({ "type": "object", "additionalProperties": { "type": "string" } });
        json_schema!({ "anyOf": [{ "type": "array", "items": { "anyOf": [{ "type": "string" }, named] } }, named] })
    }

    pub(super) fn aggregate(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "minProperties": 1, "additionalProperties": { "type": "string" } })
    }

    pub(super) fn configs(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } })
    }
}

#[cfg(test)]
mod tests;
