//! A small Kafka client: what the command line, the demonstration and checks need, over Kafka's protocol and nothing else.
//!
//! `connection` is one socket, `cluster` finds the broker for a request and retries, `producer`, `consumer`, `group` and `admin`
//! are what one does with it. Everything takes `&mut self`: who wants two things at once opens two clients.

pub mod admin;
pub mod cluster;
pub(crate) mod connection;
pub mod consumer;
pub mod error;
pub mod group;
pub mod producer;
mod range_assignor;
pub mod retry;

#[cfg(test)]
mod tests;

pub use cluster::{Client, ClientOptions, TopicMetadata};
pub use consumer::{ConsumedRecord, Consumer, ConsumerOptions, StartOffset};
pub use error::ClientError;
pub use group::{GroupConsumer, GroupOptions};
pub use producer::{Acks, Producer, ProducerOptions, ProducerRecord};

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition {
            topic: topic.to_owned(),
            partition,
        }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}
