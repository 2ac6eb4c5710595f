//! Starting a broker from its configuration, and stopping it in order.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use streamgauge_storage::StorageError;
use streamgauge_storage::checkpoint::{CheckpointError, MetaProperties};
use streamgauge_storage::disk::Disk;
use streamgauge_storage::disk::real::RealDisk;
use streamgauge_storage::lock::{DirectoryLock, LockError};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::accept;
use super::core::{self, Core, Ground, Identity, check_identity, jobs_config, shard_directory};
use crate::broker::{Broker, Endpoint};
use crate::cluster::{Cluster, ShardOutbound, Transport};
use crate::config::{BrokerConfig, Listener};
use crate::controller;
use crate::controller::decide::Refusal;
use crate::jobs::{self, BrokerCluster, JobsHandle};
use crate::peers::{Inbox, Limits, Peers, PeersConfig};
use crate::replication::throttle::ReplicationQuotas;
use crate::shard::core::ShardSettings;
use crate::shard::event::Event;
use crate::shard::handle::ShardHandle;
use crate::shard::runner::{self, Outbound, SyncPool};

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("log.dirs names no directory")]
    NoDirectory,
    #[error("this version keeps its data in one directory; log.dirs names {0}")]
    SeveralDirectories(usize),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    OtherNode(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Controller(#[from] controller::ControllerError),
    #[error("listener {listener}: {source}")]
    Listen { listener: String, source: io::Error },
    #[error("no listener is configured")]
    NoListener,
    #[error("the cluster refuses this broker: {0}")]
    Refused(Refusal),
    #[error("starting threads: {0}")]
    Threads(io::Error),
}

/// A broker that serves.
pub struct RunningBroker {
    pub broker: Arc<Broker>,
    /// Where it listens, with the port that the system chose if none was configured.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    jobs: JobsHandle,
    peers: Option<Peers>,
    shards: Vec<(ShardHandle, JoinHandle<()>)>,
    lock: DirectoryLock,
}

/// Runs a broker until the process is told to stop (SIGINT or SIGTERM).
pub async fn serve(config: BrokerConfig) -> Result<(), ServeError> {
    // A broker that waits for the others of its cluster can be told to stop, too.
    let running = tokio::select! {
        running = start(config) => running?,
        () = told_to_stop() => return Ok(()),
    };
    told_to_stop().await;
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}

/// Returns when the process gets SIGINT or SIGTERM.
pub async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// Starts a broker: data directory, shards, metadata, coordinators, and the listener last.
pub async fn start(config: BrokerConfig) -> Result<RunningBroker, ServeError> {
    let config = Arc::new(config);
    let directory = data_directory(&config)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    disk.create_dir_all(&directory)
        .map_err(|error| ServeError::Storage(StorageError::from(error)))?;
    let lock = DirectoryLock::acquire(&directory)?;
    // Refused before anything is opened.
    check_identity(&config, MetaProperties::read(&*disk, &directory)?.as_ref())?;
    raise_file_limit();

    let listener = config.listeners.first().ok_or(ServeError::NoListener)?;
    let listen_error = |source| ServeError::Listen {
        listener: format!("{}:{}", listener.host, listener.port),
        source,
    };
    // Bound before the data is opened, so that a port that is taken costs nothing; clients that
    // come early wait in the backlog.
    let socket = accept::listen(resolve(listener).map_err(listen_error)?).map_err(listen_error)?;
    let address = socket.local_addr().map_err(listen_error)?;

    let peer_socket = match &config.peer_address {
        Some(address) => {
            let failed = |source| ServeError::Listen {
                listener: format!("for other brokers, {address}"),
                source,
            };
            Some(
                tokio::net::TcpListener::bind(address)
                    .await
                    .map_err(failed)?,
            )
        }
        None => None,
    };

    let cluster = Arc::new(Cluster::new(config.node_id));
    let outbound: Arc<dyn Outbound> = Arc::new(ShardOutbound(Arc::clone(&cluster)));
    let shards = start_shards(&config, &directory, &disk, &outbound, &cluster.quotas)?;
    let ground = Ground {
        config: Arc::clone(&config),
        endpoint: endpoint(&config, listener, address),
        directory: directory.clone(),
        disk,
        shards: shards.iter().map(|(handle, _)| handle.clone()).collect(),
        cluster,
    };
    let mut peers = None;
    let connect = |identity: &Identity, inbox: Arc<dyn Inbox>| {
        let Some(listener) = peer_socket else {
            return Ok(None);
        };
        let started = Peers::start(
            PeersConfig {
                node_id: config.node_id,
                directory_id: identity.directory_id,
                cluster_id: identity.cluster_id.clone(),
                listener,
                peers: config.controller_quorum_voters.clone(),
                limits: Limits::default(),
            },
            inbox,
        )
        .map_err(ServeError::Threads)?;
        peers = Some(started.clone());
        Ok(Some(Arc::new(started) as Arc<dyn Transport>))
    };
    let Core {
        broker,
        cluster_id,
        stop,
        tasks,
    } = core::start(ground, connect).await?;
    let jobs = start_jobs(&broker).map_err(ServeError::Threads)?;
    let accepting = tokio::spawn(accept::run(Arc::clone(&broker), socket, stop.subscribe()));
    tracing::info!(
        %address,
        node_id = config.node_id,
        %cluster_id,
        data_dir = %directory.display(),
        "listening"
    );
    Ok(RunningBroker {
        broker,
        address,
        stop,
        accepting,
        tasks,
        jobs,
        peers,
        shards,
        lock,
    })
}

/// How long a stopping broker waits for others to take over what it leads.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(3);

impl RunningBroker {
    /// Hands the leadership of all partitions to replicas elsewhere, so that clients see one change
    /// of leader and no error.
    async fn hand_over(&self) {
        if self.peers.is_none() {
            return;
        }
        let deadline = tokio::time::Instant::now() + HAND_OVER_PATIENCE;
        loop {
            let mut led: Vec<_> = self
                .broker
                .topics
                .all()
                .iter()
                .flat_map(|topic| topic.handles())
                .filter(|partition| {
                    let view = partition.view();
                    view.is_serving() && view.in_sync().len() > 1
                })
                .collect();
            let log = self.broker.controller.log();
            if log.view().is_serving() && log.view().in_sync().len() > 1 {
                led.push(log.clone());
            }
            if led.is_empty() || tokio::time::Instant::now() >= deadline {
                return;
            }
            for partition in &led {
                partition.transfer(None);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops: no more requests, then everything that was appended is synced and the logs are
    /// closed, so that the next start need not scan them.
    pub async fn stop(self) {
        // Nobody left to tell is fine.
        let _ = self.stop.send(true);
        let patience = Duration::from_millis(self.broker.config.shutdown_timeout_ms.unsigned_abs());
        self.hand_over().await;
        // Nobody follows the leadership any more, and a member that waits for others would be waited for.
        self.broker.resign_coordinators();
        if tokio::time::timeout(patience, self.accepting)
            .await
            .is_err()
        {
            tracing::warn!("connections did not end in time");
        }
        // Aggregations leave checkpoints, for which the partitions have to be there.
        if tokio::time::timeout(patience, self.jobs.stop())
            .await
            .is_err()
        {
            tracing::warn!("aggregations did not end in time");
        }
        for task in &self.tasks {
            task.abort();
        }
        if let Some(peers) = &self.peers {
            peers.stop().await;
        }
        let mut closing = Vec::new();
        for (shard, _) in &self.shards {
            let (reply, closed) = oneshot::channel();
            shard.send(Event::Close { reply });
            closing.push(closed);
        }
        for closed in closing {
            // A shard that has ended already has nothing to close.
            drop(closed.await);
        }
        for (shard, thread) in self.shards {
            drop(shard);
            if thread.join().is_err() {
                tracing::error!("a shard ended with a panic");
            }
        }
        drop(self.lock);
        tracing::info!("stopped");
    }
}

fn start_jobs(broker: &Arc<Broker>) -> io::Result<JobsHandle> {
    let cluster = Arc::new(BrokerCluster::new(Arc::clone(broker)));
    let statuses = Arc::clone(&broker.job_statuses);
    jobs::start(cluster, jobs_config(broker), statuses)
}

fn data_directory(config: &BrokerConfig) -> Result<PathBuf, ServeError> {
    match config.log_dirs.as_slice() {
        [] => Err(ServeError::NoDirectory),
        [directory] => Ok(directory.clone()),
        several => Err(ServeError::SeveralDirectories(several.len())),
    }
}

/// Every open partition holds a file; the default limit of 1024 would be met early.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit on open files was not raised");
    }
}

fn start_shards(
    config: &BrokerConfig,
    directory: &std::path::Path,
    disk: &Arc<dyn Disk>,
    outbound: &Arc<dyn Outbound>,
    quotas: &Arc<ReplicationQuotas>,
) -> Result<Vec<(ShardHandle, JoinHandle<()>)>, ServeError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = config.shards.unwrap_or(cores);
    let count = shards_count(&**disk, directory, wanted)?;
    let syncs = SyncPool::start().map_err(ServeError::Threads)?;
    (0..count)
        .map(|number| {
            let settings = ShardSettings {
                broker_id: config.node_id,
                number: u32::try_from(number).unwrap_or(u32::MAX),
                directory: shard_directory(directory, number),
                retention_check_interval_ms: config.log_retention_check_interval_ms,
                producer_expiration_ms: config.producer_id_expiration_ms,
                seed: Uuid::new_v4().as_u128() as u64,
                quotas: Arc::clone(quotas),
            };
            runner::start(
                settings,
                Arc::clone(disk),
                &syncs,
                Arc::clone(outbound),
                number,
            )
            .map_err(ServeError::from)
        })
        .collect()
}

/// How many shards to start: as many as the data directory was created with, or `wanted` for a new
/// one. A partition belongs to a shard by its hash and the count, and its Raft state lies with the
/// shard: under another count, a group would not find its term and vote and could vote twice.
fn shards_count(
    disk: &dyn Disk,
    directory: &std::path::Path,
    wanted: usize,
) -> Result<usize, StorageError> {
    // One after another, since the directories of shards are made in order, and a first start that
    // was cut short has led no partition yet.
    let mut existing = 0;
    while disk.exists(&shard_directory(directory, existing))? {
        existing += 1;
    }
    if existing == 0 || existing == wanted {
        return Ok(wanted);
    }
    tracing::warn!(
        existing,
        wanted,
        "the data directory keeps the number of shards that it was created with"
    );
    Ok(existing)
}

fn resolve(listener: &Listener) -> io::Result<SocketAddr> {
    if listener.host.is_empty() {
        return Ok(SocketAddr::from((
            std::net::Ipv6Addr::UNSPECIFIED,
            listener.port,
        )));
    }
    (listener.host.as_str(), listener.port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

fn endpoint(config: &BrokerConfig, listener: &Listener, address: SocketAddr) -> Endpoint {
    let advertised = config
        .advertised_listeners
        .iter()
        .find(|advertised| advertised.name == listener.name)
        .or(config.advertised_listeners.first());
    match advertised {
        Some(advertised) => Endpoint {
            host: advertised.host.clone(),
            port: match advertised.port {
                0 => address.port(),
                port => port,
            },
        },
        None => Endpoint {
            host: address.ip().to_string(),
            port: address.port(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_keeps_its_number_of_shards() {
        let directory = tempfile::tempdir().unwrap();
        let count = |wanted| shards_count(&RealDisk, directory.path(), wanted).unwrap();
        assert_eq!(count(3), 3);
        for number in 0..3 {
            RealDisk
                .create_dir_all(&shard_directory(directory.path(), number))
                .unwrap();
        }
        assert_eq!(count(3), 3);
        assert_eq!(count(1), 3);
        assert_eq!(count(8), 3);
    }
}
