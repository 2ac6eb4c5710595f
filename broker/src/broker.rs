//! A running broker: what the handlers of requests reach.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{OnceCell, watch};

use crate::api::create_topics;
use crate::api::fetch::session::FetchSessions;
use crate::api::init_producer_id::ProducerIds;
use crate::config::BrokerConfig;
use crate::controller::Controller;
use crate::controller::decide::{GROUP_METADATA_TOPIC, NewTopic, Placement, Refusal};
use crate::group::service::GroupCoordinator;
use crate::jobs::StatusRegistry;
use crate::offsets_log::OffsetsLog;
use crate::server::memory::MemoryBudget;
use crate::topics::TopicRegistry;
use streamgauge_protocol::error::ErrorCode;

/// Where clients reach a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}

/// Everything that a request may need. Shared by all connections.
pub struct Broker {
    pub config: Arc<BrokerConfig>,
    pub endpoint: Endpoint,
    pub directory: PathBuf,
    pub controller: Controller,
    pub topics: Arc<TopicRegistry>,
    pub groups: GroupCoordinator,
    pub fetch_sessions: FetchSessions,
    pub producer_ids: ProducerIds,
    pub memory: MemoryBudget,
    /// What each aggregation is doing.
    pub job_statuses: Arc<StatusRegistry>,
    pub stopping: watch::Receiver<bool>,
    /// Set once this broker has taken up the work of the group coordinators.
    pub coordinating: OnceCell<()>,
}

impl Broker {
    pub fn id(&self) -> i32 {
        self.config.node_id
    }

    pub fn data_directory(&self) -> &Path {
        &self.directory
    }

    /// Returns when the broker begins to stop.
    pub async fn stopping(&self) {
        let mut stopping = self.stopping.clone();
        // A sender that is gone has stopped as well.
        drop(stopping.wait_for(|stop| *stop).await);
    }

    /// Where new partitions may go.
    pub fn placement(&self) -> Placement {
        Placement {
            brokers: vec![self.id()],
            partitions_default: self.config.num_partitions,
            replication_factor_default: self.config.default_replication_factor,
        }
    }

    /// Makes sure that groups have coordinators: their topic exists and its partitions' work has
    /// been taken up. Nobody is sent to a coordinator before.
    pub async fn coordinate_groups(self: &Arc<Self>) -> Result<(), Refusal> {
        let taken_up = self.coordinating.get_or_try_init(|| async {
            if self.topics.by_name(GROUP_METADATA_TOPIC).is_none() {
                self.create_offsets_topic().await?;
            }
            self.lead_groups();
            Ok(())
        });
        taken_up.await.map(|_| ())
    }

    /// Makes the topic of the group coordinators, with Kafka's settings for it.
    async fn create_offsets_topic(self: &Arc<Self>) -> Result<(), Refusal> {
        let config = &self.config;
        let new = NewTopic {
            name: GROUP_METADATA_TOPIC.to_owned(),
            partitions: config.offsets_topic_num_partitions,
            // As many as there are brokers, up to what is configured.
            replication_factor: config.offsets_topic_replication_factor.min(1),
            assignments: Vec::new(),
            configs: BTreeMap::from([
                ("cleanup.policy".into(), "compact".into()),
                ("compression.type".into(), "producer".into()),
                (
                    "segment.bytes".into(),
                    config.offsets_topic_segment_bytes.to_string(),
                ),
            ]),
            internal: true,
        };
        let outcome = create_topics::create(self, vec![new], false)
            .await
            .into_iter()
            .next();
        match outcome {
            Some((_, Err(refusal))) if refusal.code != ErrorCode::TopicAlreadyExists => {
                Err(refusal)
            }
            _ => Ok(()),
        }
    }

    /// Takes up the work of the coordinators whose partitions are led here.
    fn lead_groups(&self) {
        let Some(topic) = self.topics.by_name(GROUP_METADATA_TOPIC) else {
            return;
        };
        for (index, partition) in (0..).zip(topic.partitions().iter()) {
            if let Some(partition) = partition {
                let log = OffsetsLog::new(partition.clone());
                self.groups.become_leader(index, Arc::new(log));
            }
        }
    }
}
