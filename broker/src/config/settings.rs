//! Settings in text form and the layers that they come from. A layer nearer the front hides those
//! behind it: the topic's, this broker's at run time, the cluster's at run time, this broker's
//! start (file, environment, flags), the default.

use std::collections::BTreeMap;
use std::fmt;

use super::broker_table::broker_definition;
use super::definition::{ConfigValue, Definition, InvalidValue};

/// Settings by name, as clients send them and the controller keeps them.
pub type ConfigMap = BTreeMap<String, String>;

/// Where a value comes from; the numbers are DescribeConfigs' `config_source` (KIP-226).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum ConfigSource {
    Topic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
}

/// What the broker was started with: only what was said, each with who said it. Values have been
/// checked.
#[derive(Clone, Debug, Default)]
pub struct StaticSettings {
    values: BTreeMap<&'static str, StaticValue>,
}

#[derive(Clone, Debug)]
pub struct StaticValue {
    pub text: String,
    pub origin: Origin,
}

/// Who said a static setting, for error messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File {
        path: String,
        line: usize,
    },
    Environment {
        variable: String,
    },
    Flag {
        name: String,
    },
    /// The program's own choice, as in development mode.
    Program,
}

/// The broker's layers, as a topic setting's default or DescribeConfigs sees them.
#[derive(Clone, Copy, Debug)]
pub struct BrokerLayers<'a> {
    pub dynamic_broker: &'a ConfigMap,
    pub dynamic_default: &'a ConfigMap,
    pub fixed: &'a StaticSettings,
}

/// The settings made at run time, as the cluster's metadata holds them.
pub trait ConfigImage {
    /// Whether that broker is registered.
    fn knows_broker(&self, _broker: i32) -> bool {
        false
    }

    /// A topic's overrides, perhaps none; `None` if there is no such topic.
    fn topic_overrides(&self, topic: &str) -> Option<&ConfigMap>;
    /// One broker's settings, or with `None` those of all brokers; `None` if there are none.
    fn broker_overrides(&self, broker: Option<i32>) -> Option<&ConfigMap>;
}

/// A number that is set for a broker, or for all, while they run.
pub fn dynamic_long(image: &dyn ConfigImage, broker: i32, name: &str) -> Option<i64> {
    [Some(broker), None].into_iter().find_map(|broker| {
        let text = image.broker_overrides(broker)?.get(name)?;
        text.trim().parse().ok()
    })
}

static NO_SETTINGS: ConfigMap = ConfigMap::new();

impl StaticSettings {
    /// Sets a value unless it is invalid. Later calls win over earlier ones.
    pub fn set(
        &mut self,
        definition: &'static Definition,
        text: &str,
        origin: Origin,
    ) -> Result<(), InvalidValue> {
        definition.parse(text)?;
        self.values.insert(
            definition.name,
            StaticValue {
                text: text.trim().to_owned(),
                origin,
            },
        );
        Ok(())
    }

    /// What was said of a setting.
    pub fn get(&self, name: &str) -> Option<&StaticValue> {
        self.values.get(name)
    }

    /// The value in force: what was said, or else the default; `None` if there is neither.
    ///
    /// # Panics
    /// If `name` is not in the table: a mistake in this program.
    pub fn value(&self, name: &str) -> Option<ConfigValue> {
        let definition = broker_definition(name)
            .unwrap_or_else(|| panic!("{name} is not in the table of broker settings"));
        let text = self
            .get(name)
            .map(|value| value.text.as_str())
            .or(definition.default)?;
        match definition.parse(text) {
            Ok(value) => Some(value),
            Err(error) => panic!("a checked setting does not parse: {error}"),
        }
    }
}

impl<'a> BrokerLayers<'a> {
    /// The layers of a broker that has no settings made at run time.
    pub fn of_static(fixed: &'a StaticSettings) -> Self {
        Self {
            dynamic_broker: &NO_SETTINGS,
            dynamic_default: &NO_SETTINGS,
            fixed,
        }
    }

    /// The layers of one broker.
    pub fn new(image: &'a dyn ConfigImage, broker: i32, fixed: &'a StaticSettings) -> Self {
        Self {
            dynamic_broker: image.broker_overrides(Some(broker)).unwrap_or(&NO_SETTINGS),
            dynamic_default: image.broker_overrides(None).unwrap_or(&NO_SETTINGS),
            fixed,
        }
    }

    /// Everything said of the named settings, the value in force first. Defaults are not included.
    pub fn said<'n>(
        &self,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Vec<(&'n str, &'a str, ConfigSource)> {
        let Self {
            dynamic_broker,
            dynamic_default,
            fixed,
        } = *self;
        let mut said = Vec::new();
        for (map, source) in [
            (dynamic_broker, ConfigSource::DynamicBroker),
            (dynamic_default, ConfigSource::DynamicDefaultBroker),
        ] {
            for name in names.clone() {
                said.extend(map.get(name).map(|text| (name, text.as_str(), source)));
            }
        }
        for name in names {
            let text = fixed.get(name).map(|value| value.text.as_str());
            said.extend(text.map(|text| (name, text, ConfigSource::StaticBroker)));
        }
        said
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(formatter, "{path}:{line}"),
            Self::Environment { variable } => write!(formatter, "environment variable {variable}"),
            Self::Flag { name } => write!(formatter, "flag {name}"),
            Self::Program => formatter.write_str("the program"),
        }
    }
}
