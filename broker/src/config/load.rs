//! Gathers the broker's settings from file, environment and flags, in that order of rising
//! precedence, and reports everything that is wrong at once. Reads nothing itself: text in.

use std::fmt;

use thiserror::Error;

use super::broker::BrokerConfig;
use super::broker_table::{ALIASES, BROKER_DEFINITIONS, broker_definition, is_dynamic_only};
use super::definition::{Definition, InvalidValue};
use super::settings::{Origin, StaticSettings};
use super::yaml::{self, YamlProblem};

/// Environment variables that begin so are settings: `STREAMGAUGE_LOG_DIRS` is `log.dirs`, and
/// `STREAMGAUGE_SHARDS` is `streamgauge.shards`.
pub const ENVIRONMENT_PREFIX: &str = "STREAMGAUGE_";

/// Variables that are the command line's, not settings.
const ENVIRONMENT_OF_COMMAND_LINE: &[&str] =
    &["STREAMGAUGE_CONFIG", "STREAMGAUGE_BOOTSTRAP_SERVER"];

/// Collects settings; later calls win over earlier ones.
#[derive(Debug, Default)]
pub struct ConfigLoader {
    settings: StaticSettings,
    problems: Vec<ConfigProblem>,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Error)]
pub struct ConfigError {
    pub problems: Vec<ConfigProblem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigProblem {
    #[error("{origin}: unknown setting {key}{}", suggested(suggestion))]
    Unknown {
        key: String,
        origin: Origin,
        suggestion: Option<&'static str>,
    },
    #[error("{origin}: {error}")]
    Invalid { error: InvalidValue, origin: Origin },
    #[error("{origin}: {key} is set twice")]
    Twice { key: String, origin: Origin },
    #[error("{origin}: {reason}")]
    Syntax { origin: Origin, reason: String },
    /// Two settings that do not go together, or one whose content is wrong.
    #[error("{}{reason}", named_origin(origin))]
    Conflict {
        origin: Option<Origin>,
        reason: String,
    },
}

impl ConfigLoader {
    pub fn new() -> Self {
        Self::default()
    }

    /// A default of the program's own, as development mode has; call it first.
    pub fn program(&mut self, key: &str, value: &str) {
        self.set(key, value, Origin::Program);
    }

    /// The text of a YAML file: Kafka's names flat (`log.dirs: …`), nested
    /// (`log: { dirs: … }`), or mixed; lists as sequences or comma-separated.
    pub fn yaml(&mut self, path: &str, text: &str) {
        let parsed = yaml::flatten(text);
        let at = |line| Origin::File {
            path: path.to_owned(),
            line,
        };
        let mut seen: Vec<&'static str> = Vec::new();
        for setting in parsed.settings {
            match find(&setting.key) {
                Some(definition) if seen.contains(&definition.name) => {
                    self.problems.push(ConfigProblem::Twice {
                        key: setting.key,
                        origin: at(setting.line),
                    });
                }
                found => {
                    seen.extend(found.map(|definition| definition.name));
                    self.set(&setting.key, &setting.value, at(setting.line));
                }
            }
        }
        for YamlProblem { line, reason } in parsed.problems {
            self.problems.push(ConfigProblem::Syntax {
                origin: at(line),
                reason,
            });
        }
    }

    /// The environment; variables without [`ENVIRONMENT_PREFIX`] are passed over.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (variable, value) in variables {
            let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
                continue;
            };
            if ENVIRONMENT_OF_COMMAND_LINE.contains(&variable.as_str()) {
                continue;
            }
            let plain = rest.to_ascii_lowercase().replace('_', ".");
            let own = format!("streamgauge.{plain}");
            let key = if find(&plain).is_none() && find(&own).is_some() {
                own
            } else {
                plain
            };
            self.set(&key, &value, Origin::Environment { variable });
        }
    }

    /// A command-line flag, `flag` as the user wrote it (`--data-dir`), that sets `key`.
    pub fn flag(&mut self, flag: &str, key: &str, value: &str) {
        let name = flag.to_owned();
        self.set(key, value, Origin::Flag { name });
    }

    /// The settings with types, or all that is wrong. `hostname` is what a listener on every
    /// interface is advertised as when nothing else is said.
    pub fn finish(mut self, hostname: &str) -> Result<BrokerConfig, ConfigError> {
        if self.problems.is_empty() {
            match BrokerConfig::from_settings(self.settings, hostname) {
                Ok(config) => return Ok(config),
                Err(problems) => self.problems = problems,
            }
        } else {
            // Conflicts are reported along with the rest; what was refused stands at its default.
            let conflicts = BrokerConfig::from_settings(self.settings, hostname).err();
            self.problems.extend(conflicts.into_iter().flatten());
        }
        Err(ConfigError {
            problems: self.problems,
        })
    }

    fn set(&mut self, key: &str, value: &str, origin: Origin) {
        let Some(definition) = find(key) else {
            self.problems.push(ConfigProblem::Unknown {
                suggestion: suggestion(key),
                key: key.to_owned(),
                origin,
            });
            return;
        };
        if is_dynamic_only(definition.name) {
            self.problems.push(ConfigProblem::Conflict {
                origin: Some(origin),
                reason: format!(
                    "{} is set while the broker runs (kafka-configs --alter --entity-type brokers)",
                    definition.name
                ),
            });
            return;
        }
        if let Err(error) = self.settings.set(definition, value, origin.clone()) {
            self.problems.push(ConfigProblem::Invalid { error, origin });
        }
    }
}

/// A setting by its name or an alias.
fn find(key: &str) -> Option<&'static Definition> {
    let name = ALIASES
        .iter()
        .find(|(alias, _)| *alias == key)
        .map_or(key, |(_, name)| name);
    broker_definition(name)
}

/// The known name nearest to a wrong one, if one is near.
fn suggestion(key: &str) -> Option<&'static str> {
    let aliases = ALIASES.iter().map(|(alias, _)| *alias);
    BROKER_DEFINITIONS
        .iter()
        .map(|definition| definition.name)
        .chain(aliases)
        .map(|name| (strsim::jaro_winkler(key, name), name))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

fn suggested(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

fn named_origin(origin: &Option<Origin>) -> String {
    origin
        .as_ref()
        .map_or_else(String::new, |origin| format!("{origin}: "))
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}
