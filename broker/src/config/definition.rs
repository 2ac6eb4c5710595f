//! One setting's definition and how a text becomes its value, with the rules and error texts of
//! Kafka's `ConfigDef`, since tools show these to users and tests compare them.

use std::fmt;

use thiserror::Error;

/// A setting: what the tables of topic and broker settings are made of.
#[derive(Debug)]
pub struct Definition {
    pub name: &'static str,
    pub config_type: ConfigType,
    /// In text form; `None` is Kafka's null: not set, and something else decides.
    pub default: Option<&'static str>,
    pub validator: Validator,
    pub documentation: &'static str,
}

/// The type of a setting; the numbers are those of DescribeConfigs' `config_type` (KIP-569).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum ConfigType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Short = 4,
    Long = 5,
    Double = 6,
    List = 7,
    Class = 8,
    Password = 9,
}

/// What a value must satisfy beyond its type.
#[derive(Clone, Copy, Debug)]
pub enum Validator {
    Any,
    AtLeast(i64),
    Between(i64, i64),
    /// Between the first two, or equal to the third.
    BetweenOr(i64, i64, i64),
    OneOf(&'static [&'static str]),
    /// Every element of a list is one of these.
    EachOneOf(&'static [&'static str]),
    NotEmpty,
    /// `*`, or elements `partition:broker`.
    ThrottledReplicas,
    /// A feature that this broker does not have: only this value is taken.
    Only(&'static str, &'static str),
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigValue {
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Text(String),
    List(Vec<String>),
}

/// A value that a setting cannot take; shown as Kafka shows it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Invalid value {value} for configuration {name}: {reason}")]
pub struct InvalidValue {
    pub name: String,
    pub value: String,
    pub reason: String,
}

impl Definition {
    pub const fn new(
        name: &'static str,
        config_type: ConfigType,
        default: Option<&'static str>,
        validator: Validator,
        documentation: &'static str,
    ) -> Self {
        Self {
            name,
            config_type,
            default,
            validator,
            documentation,
        }
    }

    /// Whether the value must not be shown.
    pub fn is_sensitive(&self) -> bool {
        self.config_type == ConfigType::Password
    }

    /// Reads and checks a value.
    pub fn parse(&self, text: &str) -> Result<ConfigValue, InvalidValue> {
        let value = self.parse_type(text.trim())?;
        self.validate(&value)?;
        Ok(value)
    }

    fn parse_type(&self, text: &str) -> Result<ConfigValue, InvalidValue> {
        let integer = |min: i64, max: i64| {
            text.parse::<i64>()
                .ok()
                .filter(|value| (min..=max).contains(value))
                .map(ConfigValue::Integer)
                .ok_or_else(|| {
                    self.invalid(text, format!("Not a number of type {}", self.config_type))
                })
        };
        match self.config_type {
            ConfigType::Boolean if text.eq_ignore_ascii_case("true") => {
                Ok(ConfigValue::Boolean(true))
            }
            ConfigType::Boolean if text.eq_ignore_ascii_case("false") => {
                Ok(ConfigValue::Boolean(false))
            }
            ConfigType::Boolean => {
                Err(self.invalid(text, "Expected value to be either true or false"))
            }
            ConfigType::Short => integer(i64::from(i16::MIN), i64::from(i16::MAX)),
            ConfigType::Int => integer(i64::from(i32::MIN), i64::from(i32::MAX)),
            ConfigType::Long => integer(i64::MIN, i64::MAX),
            ConfigType::Double => text
                .parse::<f64>()
                .ok()
                .filter(|value| value.is_finite())
                .map(ConfigValue::Double)
                .ok_or_else(|| self.invalid(text, "Not a number of type DOUBLE")),
            ConfigType::List if text.is_empty() => Ok(ConfigValue::List(Vec::new())),
            ConfigType::List => Ok(ConfigValue::List(
                text.split(',')
                    .map(|element| element.trim().to_owned())
                    .collect(),
            )),
            ConfigType::String | ConfigType::Class | ConfigType::Password => {
                Ok(ConfigValue::Text(text.to_owned()))
            }
        }
    }

    fn validate(&self, value: &ConfigValue) -> Result<(), InvalidValue> {
        let shown = value.to_string();
        let at_least = |min: i64| format!("Value must be at least {min}");
        let no_more = |max: i64| format!("Value must be no more than {max}");
        match (self.validator, value) {
            (Validator::AtLeast(min), ConfigValue::Integer(n)) if *n < min => {
                Err(self.invalid(&shown, at_least(min)))
            }
            (Validator::Between(min, _), ConfigValue::Integer(n)) if *n < min => {
                Err(self.invalid(&shown, at_least(min)))
            }
            (Validator::Between(_, max), ConfigValue::Integer(n)) if *n > max => {
                Err(self.invalid(&shown, no_more(max)))
            }
            (Validator::Between(min, _), ConfigValue::Double(n)) if *n < min as f64 => {
                Err(self.invalid(&shown, at_least(min)))
            }
            (Validator::Between(_, max), ConfigValue::Double(n)) if *n > max as f64 => {
                Err(self.invalid(&shown, no_more(max)))
            }
            (Validator::BetweenOr(min, max, or), ConfigValue::Integer(n))
                if !(min..=max).contains(n) && *n != or =>
            {
                Err(self.invalid(
                    &shown,
                    format!("Value must be between {min} and {max} or equal to {or}"),
                ))
            }
            (Validator::OneOf(allowed), ConfigValue::Text(text))
                if !allowed.contains(&text.as_str()) =>
            {
                Err(self.not_one_of(text, allowed))
            }
            (Validator::EachOneOf(allowed), ConfigValue::List(list)) => {
                match list.iter().find(|text| !allowed.contains(&text.as_str())) {
                    Some(text) => Err(self.not_one_of(text, allowed)),
                    None => Ok(()),
                }
            }
            (Validator::NotEmpty, value) if shown.is_empty() => {
                debug_assert!(!matches!(value, ConfigValue::Integer(_)));
                Err(self.invalid(&shown, "Value must not be empty"))
            }
            (Validator::ThrottledReplicas, ConfigValue::List(list))
                if !list.is_empty() && *list != ["*"] && !list.iter().all(|r| is_replica(r)) =>
            {
                Err(self.invalid(
                    &format!("[{}]", list.join(", ")),
                    format!(
                        "{} must be the literal '*' or a list of replicas in the following format: \
                         [partitionId]:[brokerId],[partitionId]:[brokerId],...",
                        self.name
                    ),
                ))
            }
            (Validator::Only(only, reason), _) if shown != only => {
                Err(self.invalid(&shown, reason))
            }
            _ => Ok(()),
        }
    }

    fn not_one_of(&self, value: &str, allowed: &[&str]) -> InvalidValue {
        self.invalid(
            value,
            format!("String must be one of: {}", allowed.join(", ")),
        )
    }

    /// The error that says why this setting cannot have `value`.
    pub fn invalid(&self, value: &str, reason: impl Into<String>) -> InvalidValue {
        InvalidValue {
            name: self.name.to_owned(),
            value: value.to_owned(),
            reason: reason.into(),
        }
    }
}

/// `partition:broker`, both decimal.
fn is_replica(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.split_once(':')
        .is_some_and(|(partition, broker)| is_number(partition) && is_number(broker))
}

impl fmt::Display for ConfigType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Boolean => "BOOLEAN",
            Self::String => "STRING",
            Self::Int => "INT",
            Self::Short => "SHORT",
            Self::Long => "LONG",
            Self::Double => "DOUBLE",
            Self::List => "LIST",
            Self::Class => "CLASS",
            Self::Password => "PASSWORD",
        })
    }
}

/// The text form that DescribeConfigs sends (Kafka's `ConfigDef.convertToString`).
impl fmt::Display for ConfigValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(formatter, "{value}"),
            Self::Integer(value) => write!(formatter, "{value}"),
            // As Java: a whole number keeps its ".0".
            Self::Double(value) => write!(formatter, "{value:?}"),
            Self::Text(value) => formatter.write_str(value),
            Self::List(value) => formatter.write_str(&value.join(",")),
        }
    }
}

impl ConfigValue {
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Boolean(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_double(&self) -> Option<f64> {
        match self {
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[String]> {
        match self {
            Self::List(value) => Some(value),
            _ => None,
        }
    }
}
