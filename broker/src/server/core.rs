//! All of a broker but sockets, threads and the lock on its directory: metadata, groups, and the tasks
//! that keep them in step. The simulator starts the same on disks and networks of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use streamgauge_protocol::error::ErrorCode;
use streamgauge_storage::checkpoint::MetaProperties;
use streamgauge_storage::disk::Disk;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::memory::MemoryBudget;
use super::start::ServeError;
use crate::api::fetch::session::FetchSessions;
use crate::broker::{Broker, Endpoint};
use crate::clock;
use crate::cluster::{self, Cluster, ClusterInbox, Transport};
use crate::config::BrokerConfig;
use crate::controller::decide::Refusal;
use crate::controller::image::BrokerInfo;
use crate::controller::{self, Controller, ControllerError, Placed};
use crate::group::config::GroupConfig;
use crate::group::service::GroupCoordinator;
use crate::group::topics::ImageLookup;
use crate::jobs::JobsConfig;
use crate::peers::Inbox;
use crate::shard::handle::ShardHandle;
use crate::topics::TopicRegistry;
use crate::transaction::service::TransactionCoordinator;

/// Memory for requests in flight where the configuration sets no bound.
const UNBOUNDED_REQUEST_BYTES: usize = usize::MAX >> 8;

/// What a broker stands on.
pub struct Ground {
    pub config: Arc<BrokerConfig>,
    /// Where clients reach it.
    pub endpoint: Endpoint,
    /// The data directory, which is there.
    pub directory: PathBuf,
    pub disk: Arc<dyn Disk>,
    /// They run.
    pub shards: Vec<ShardHandle>,
    /// Not connected yet.
    pub cluster: Arc<Cluster>,
}

/// As whom a broker meets the others.
pub struct Identity {
    pub directory_id: Uuid,
    /// `None` if it has yet to learn it.
    pub cluster_id: Option<String>,
}

/// A broker that is one of its cluster, and for which nobody listens yet.
pub struct Core {
    pub broker: Arc<Broker>,
    pub cluster_id: String,
    /// Tells all tasks to end.
    pub stop: watch::Sender<bool>,
    pub tasks: Vec<JoinHandle<()>>,
}

/// Opens the metadata, has `connect` reach the other brokers (none, if it gives no transport), and
/// returns when the cluster knows this broker. To be called on a tokio runtime.
pub async fn start(
    ground: Ground,
    connect: impl FnOnce(&Identity, Arc<dyn Inbox>) -> Result<Option<Arc<dyn Transport>>, ServeError>,
) -> Result<Core, ServeError> {
    let Ground {
        config,
        endpoint,
        directory,
        disk,
        shards,
        cluster,
    } = ground;
    let properties = MetaProperties::read(&*disk, &directory)?;
    check_identity(&config, properties.as_ref())?;
    let placed = Placed {
        shards,
        config: Arc::clone(&config),
        directory: directory.clone(),
    };
    let directory_id = properties
        .as_ref()
        .and_then(|properties| crate::ids::from_base64(&properties.directory_id))
        .unwrap_or_else(crate::ids::new_id);
    let topics = Arc::new(TopicRegistry::default());
    let (controller, writer, applier, known_to) =
        controller::open(placed.clone(), Arc::clone(&topics)).await?;
    let mut tasks = vec![
        tokio::spawn(writer.run()),
        tokio::spawn(applier.run()),
        tokio::spawn(cluster::quorum::follow(
            Arc::clone(&cluster),
            controller.clone(),
            Arc::clone(&config),
        )),
    ];
    // Others are listened to once it is known with which directories the cluster knows them, and while
    // the partitions are opened: the metadata's group goes on without waiting for that.
    let inbox = Arc::new(ClusterInbox {
        cluster: Arc::clone(&cluster),
        placed,
        controller: controller.clone(),
        broker: OnceLock::new(),
    });
    let identity = Identity {
        directory_id,
        cluster_id: properties
            .as_ref()
            .map(|properties| properties.cluster_id.clone()),
    };
    if let Some(transport) = connect(&identity, Arc::clone(&inbox) as Arc<dyn Inbox>)? {
        cluster.connect(transport);
    }
    let refused = |reason| {
        let code = ErrorCode::DuplicateBrokerRegistration;
        ServeError::Refused(Refusal::new(code, reason))
    };
    let info = BrokerInfo {
        node_id: config.node_id,
        directory_id,
        host: endpoint.host.clone(),
        port: endpoint.port,
        rack: config.broker_rack.clone(),
        peer: config.peer_address.clone(),
    };
    let joins = !config.voters().contains(&config.node_id);
    let mut properties = properties;
    if joins && controller.read(|image| image.cluster_id().is_empty()) {
        tracing::info!(voters = ?config.voters(), "joining the cluster");
        if properties.is_none() {
            // Kept before it is told, or a second start would come with another directory.
            let cluster_id = cluster::quorum::cluster_to_join(&cluster, &config).await;
            let joining = meta_properties(&config, cluster_id, directory_id);
            joining.write(&*disk, &directory)?;
            properties = Some(joining);
        }
        tokio::select! {
            biased;
            joined = cluster::quorum::join(&cluster, &config, &info) => {
                joined.map_err(ServeError::Refused)?;
            }
            reason = cluster.disowned() => return Err(refused(reason)),
        }
    }
    let cluster_id = tokio::select! {
        biased;
        joined = joined_cluster(&config, &controller, properties.as_ref()) => joined?,
        reason = cluster.disowned() => return Err(refused(reason)),
    };
    if let Some(peers) = cluster.peers() {
        peers.set_cluster_id(cluster_id.clone());
    }
    if properties.is_none() {
        meta_properties(&config, cluster_id.clone(), directory_id).write(&*disk, &directory)?;
    }

    // Clients are served once all that is known to be here is open.
    controller.wait_applied(known_to).await;

    let (stop, stopping) = watch::channel(false);
    let groups = GroupCoordinator::new(
        group_config(&config),
        Arc::new(ImageLookup(controller.clone())),
        Arc::new(clock::now_ms),
    );
    let transactions = TransactionCoordinator::new(&config, Arc::new(clock::now_ms));
    let broker = Arc::new(Broker {
        endpoint,
        directory: directory.clone(),
        controller,
        topics,
        groups,
        transactions,
        fetch_sessions: FetchSessions::new(config.max_incremental_fetch_session_cache_slots),
        producer_ids: Default::default(),
        memory: MemoryBudget::new(
            config
                .queued_max_request_bytes
                .unwrap_or(UNBOUNDED_REQUEST_BYTES),
        ),
        job_statuses: Arc::default(),
        stopping,
        cluster,
        coordinating: Default::default(),
        config: Arc::clone(&config),
    });
    broker.transactions.connect(&broker);
    let _ = inbox.broker.set(Arc::downgrade(&broker));
    tokio::select! {
        biased;
        registered = broker.register(info) => registered.map_err(ServeError::Refused)?,
        reason = broker.cluster.disowned() => return Err(refused(reason)),
    }
    broker.follow_coordinators();
    tasks.push(tokio::spawn(Arc::clone(&broker).follow_leadership()));
    tasks.push(tokio::spawn(cluster::announce(Arc::clone(&broker))));
    tasks.push(tokio::spawn(Arc::clone(&broker).balance_leaders()));
    tasks.push(tokio::spawn(cluster::throttle::follow(Arc::clone(&broker))));
    tasks.push(tokio::spawn(cluster::damage::report(Arc::clone(&broker))));
    tasks.push(tokio::spawn(cluster::reassignments::report(Arc::clone(
        &broker,
    ))));
    Ok(Core {
        broker,
        cluster_id,
        stop,
        tasks,
    })
}

fn meta_properties(
    config: &BrokerConfig,
    cluster_id: String,
    directory_id: Uuid,
) -> MetaProperties {
    MetaProperties {
        cluster_id,
        node_id: config.node_id,
        directory_id: crate::ids::to_base64(directory_id),
    }
}

/// Waits until this broker knows which cluster it is of: the one that its directory and its
/// configuration name, or the one that its voters form now.
async fn joined_cluster(
    config: &BrokerConfig,
    controller: &Controller,
    properties: Option<&MetaProperties>,
) -> Result<String, ServeError> {
    let mut changes = controller.changes();
    let mut said = false;
    let found = loop {
        let found = controller.read(|image| image.cluster_id().to_owned());
        if !found.is_empty() {
            break found;
        }
        if !said {
            said = true;
            tracing::info!(
                voters = ?config.voters(),
                "waiting for a majority of the voters to form the cluster"
            );
        }
        if changes.changed().await.is_err() {
            return Err(ServeError::Controller(ControllerError::Open(
                "the metadata log has stopped".into(),
            )));
        }
    };
    let expected = config
        .cluster_id
        .as_ref()
        .or(properties.map(|properties| &properties.cluster_id));
    match expected {
        Some(expected) if *expected != found => {
            Err(ServeError::Controller(ControllerError::OtherCluster {
                found,
                expected: expected.clone(),
            }))
        }
        _ => Ok(found),
    }
}

/// How a broker's jobs run.
pub fn jobs_config(broker: &Broker) -> JobsConfig {
    JobsConfig {
        broker_id: broker.id(),
        flush_interval_ms: broker.config.aggregation_combine_interval_ms,
        checkpoints: Default::default(),
        merger: Default::default(),
        clock: Arc::new(clock::now_ms),
    }
}

/// A data directory belongs to one node of one cluster.
pub(super) fn check_identity(
    config: &BrokerConfig,
    properties: Option<&MetaProperties>,
) -> Result<(), ServeError> {
    let Some(properties) = properties else {
        return Ok(());
    };
    if properties.node_id != config.node_id {
        return Err(ServeError::OtherNode(format!(
            "the data directory is that of node {}, but node.id is {}",
            properties.node_id, config.node_id
        )));
    }
    if let Some(expected) = &config.cluster_id
        && *expected != properties.cluster_id
    {
        return Err(ServeError::OtherNode(format!(
            "the data directory belongs to cluster {}, but cluster.id is {expected}",
            properties.cluster_id
        )));
    }
    Ok(())
}

/// Where a shard keeps the hard states of its groups.
pub fn shard_directory(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("raft-state-{number}"))
}

fn group_config(config: &BrokerConfig) -> GroupConfig {
    GroupConfig {
        session_timeout_ms_min: config.group_min_session_timeout_ms,
        session_timeout_ms_max: config.group_max_session_timeout_ms,
        initial_rebalance_delay_ms: config.group_initial_rebalance_delay_ms,
        group_size_max: config.group_max_size,
        offset_metadata_max: config.offset_metadata_max_bytes,
        offsets_retention_ms: config.offsets_retention_minutes.saturating_mul(60_000),
        offsets_retention_check_interval_ms: config.offsets_retention_check_interval_ms,
        offsets_topic_partitions: config.offsets_topic_num_partitions,
        commit_timeout_ms: config.offsets_commit_timeout_ms,
        ..GroupConfig::default()
    }
}
