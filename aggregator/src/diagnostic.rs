//! A mistake in a declaration: where it is, what is wrong, and what was probably meant.

use std::fmt;

/// One mistake. `Display` gives `file:line:column: field: reason (suggestion)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub file: String,
    /// From 1; 0 where no place is known.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The path of the field, as `window.tumbling`; empty for the document itself.
    pub field: String,
    pub reason: String,
    pub suggestion: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.field.is_empty() {
            write!(formatter, "{}: ", self.field)?;
        }
        formatter.write_str(&self.reason)?;
        if let Some(suggestion) = &self.suggestion {
            write!(formatter, " ({suggestion})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// "did you mean 'x'?" for the known name that is close enough to `found`.
pub fn did_you_mean<'k>(found: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    let lower = found.to_lowercase();
    let best = known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .min()?;
    (best.0 <= 1 + best.1.len() / 4).then(|| format!("did you mean '{}'?", best.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_stranger_is_not() {
        assert_eq!(
            did_you_mean("agregate", ["aggregate", "window"]).unwrap(),
            "did you mean 'aggregate'?"
        );
        assert_eq!(did_you_mean("colour", ["aggregate", "window"]), None);
    }
}
