//! The runtime of the aggregator: feeds jobs from partitions and appends what they make.
//!
//! A topic with the config `aggregation` is derived: it has a job. The supervisor keeps the jobs that run in step with the metadata. A
//! job is one combine task over all source partitions and one merge task for each partition of its internal topic
//! `__aggregation-<derived topic>`, which has as many as the derived topic:
//!
//! ```text
//! source partitions -> combine task -> internal partitions -> merge tasks -> derived, late and dead-letter partitions
//! ```
//!
//! Jobs see logs and metadata through two narrow traits ([`log::JobLog`], [`cluster::JobCluster`]). They run on threads of their
//! own, since folding, decompressing and reading cold logs would hold up connections.

mod broker_cluster;
pub mod check;
mod checkpoint;
pub mod cluster;
mod cluster_log;
mod combine_task;
mod error;
mod internal;
mod job;
pub mod log;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod memory_brokers;
mod merge_task;
mod output;
pub mod status;
mod supervisor;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_brokers;

use std::sync::Arc;

use streamgauge_aggregator::merge::MergerConfig;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use broker_cluster::BrokerCluster;
pub use check::{check_aggregation, check_partition_growth};
pub use checkpoint::CheckpointPolicy;
use cluster::JobCluster;
pub use status::StatusRegistry;
pub use supervisor::supervise;

/// The prefix of internal topics.
pub const INTERNAL_TOPIC_PREFIX: &str = "__aggregation-";

/// The internal topic of a derived one. Whoever deletes the derived topic may delete it in the same breath; else the supervisor does.
pub fn internal_topic(derived_topic: &str) -> String {
    format!("{INTERNAL_TOPIC_PREFIX}{derived_topic}")
}

/// Milliseconds since the epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Settings of the runtime.
#[derive(Clone)]
pub struct JobsConfig {
    pub broker_id: i32,
    /// How often partials are passed on while records come.
    pub flush_interval_ms: i64,
    pub checkpoints: CheckpointPolicy,
    /// Bounds of the state of one internal partition.
    pub merger: MergerConfig,
    pub clock: Clock,
}

/// The running runtime.
pub struct JobsHandle {
    stop: watch::Sender<bool>,
    supervisor: JoinHandle<()>,
    /// There until it is dropped.
    runtime: Option<Runtime>,
}

/// Starts the runtime on threads of its own; what each job is doing is kept in `statuses`. Errors: the system gives no threads.
pub fn start(
    cluster: Arc<dyn JobCluster>,
    config: JobsConfig,
    statuses: Arc<StatusRegistry>,
) -> std::io::Result<JobsHandle> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("jobs")
        .enable_time()
        .build()?;
    let (stop, stopped) = watch::channel(false);
    let supervisor = runtime.spawn(supervise(cluster, config, statuses, stopped));
    Ok(JobsHandle {
        stop,
        supervisor,
        runtime: Some(runtime),
    })
}

impl JobsHandle {
    /// Ends all jobs in good order: everything sent is answered and a checkpoint is left. To be called while partitions still take
    /// appends.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.supervisor).await {
            tracing::error!(%error, "the supervisor of aggregations has failed");
        }
    }
}

impl Drop for JobsHandle {
    /// A runtime must not be dropped where one may not block, so that its tasks are only told to end.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
