//! One file an API: validate, do, answer.

pub mod alter_configs;
pub mod describe_configs;

#[cfg(test)]
mod config_fixture;
