//! What the runtime needs of the cluster's metadata, so that it runs beside the controller and beside a cluster in memory alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use super::log::JobLog;

/// Topics, and the wish to change them.
pub trait JobCluster: Send + Sync + 'static {
    /// Changes when the metadata does.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Every topic with a declaration.
    fn derived_topics(&self) -> Vec<DerivedTopic>;

    /// Topics whose names begin with `prefix`, with their ids.
    fn topics_with_prefix(&self, prefix: &str) -> Vec<(String, Uuid)>;

    fn topic(&self, name: &str) -> Option<TopicInfo>;

    /// The log of a partition; `None` if there is none.
    fn log(&self, topic_id: Uuid, partition: i32) -> Option<Arc<dyn JobLog>>;

    /// Whether this broker is the one to run the job with that internal topic.
    fn runs_here(&self, internal_topic: &str) -> bool;

    /// Creates a topic; one that exists already is no error.
    fn create_topic(&self, new: NewJobTopic) -> BoxFuture<'static, Result<(), String>>;

    /// Deletes a topic; one that does not exist is no error.
    fn delete_topic(&self, topic_id: Uuid) -> BoxFuture<'static, Result<(), String>>;

    /// Gives a derived topic a block of `count` producer ids of its own, in the metadata, and says the first. A topic that has one keeps it.
    fn assign_producer_ids(
        &self,
        topic_id: Uuid,
        count: i64,
    ) -> BoxFuture<'static, Result<i64, String>>;
}

/// A topic with a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerivedTopic {
    pub name: String,
    pub topic_id: Uuid,
    pub partitions: i32,
    pub replication_factor: i16,
    /// The config `aggregation`.
    pub declaration: String,
    /// The first of its producer ids, if it has been given any.
    pub producer_id: Option<i64>,
}

/// Which topic a name means now, and how many partitions it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicInfo {
    pub topic_id: Uuid,
    pub partitions: i32,
}

/// A topic that a job needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJobTopic {
    pub name: String,
    /// -1: the broker's default.
    pub partitions: i32,
    /// -1: the broker's default.
    pub replication_factor: i16,
    pub configs: BTreeMap<String, String>,
    pub internal: bool,
}
