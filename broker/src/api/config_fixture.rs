//! Metadata and settings for the tests of the config APIs.

use std::collections::BTreeMap;

use kafka_protocol::protocol::StrBytes;

use crate::config::{BrokerConfig, ConfigImage, ConfigLoader, ConfigMap};

#[derive(Default)]
pub struct Image {
    topics: BTreeMap<String, ConfigMap>,
    brokers: BTreeMap<Option<i32>, ConfigMap>,
}

impl Image {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn topic(mut self, name: &str, overrides: &[(&str, &str)]) -> Self {
        self.topics.insert(name.to_owned(), map(overrides));
        self
    }

    pub fn broker(mut self, broker: Option<i32>, overrides: &[(&str, &str)]) -> Self {
        self.brokers.insert(broker, map(overrides));
        self
    }
}

impl ConfigImage for Image {
    fn topic_overrides(&self, topic: &str) -> Option<&ConfigMap> {
        self.topics.get(topic)
    }

    fn broker_overrides(&self, broker: Option<i32>) -> Option<&ConfigMap> {
        self.brokers.get(&broker)
    }
}

pub fn config(yaml: &str) -> BrokerConfig {
    let mut loader = ConfigLoader::new();
    loader.yaml("s.yaml", yaml);
    loader.finish("here").unwrap()
}

pub fn map(settings: &[(&str, &str)]) -> ConfigMap {
    settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
