//! `schema`: the JSON Schema of declarations.

use streamgauge_aggregator::declaration::json_schema;

use super::error::CommandError;
use super::terminal::print;

pub(super) fn run() -> Result<(), CommandError> {
    print(&format!("{:#}\n", json_schema()))
}
