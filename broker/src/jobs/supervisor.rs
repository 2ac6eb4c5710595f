//! Keeps the jobs that run in step with the topics that are declared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use streamgauge_aggregator::plan::Plan;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use super::check::compile;
use super::cluster::{DerivedTopic, JobCluster, NewJobTopic, TopicInfo};
use super::error::JobError;
use super::job::{JobSpec, run_job};
use super::output::producer_ids;
use super::status::{JobState, StatusCell, StatusRegistry};
use super::{INTERNAL_TOPIC_PREFIX, JobsConfig, internal_topic};

const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// One that has run for so long does not fail at once again.
const STEADY_AFTER: Duration = Duration::from_secs(5);

/// Follows the metadata until it is stopped; then ends all jobs in good order.
pub async fn supervise(
    cluster: Arc<dyn JobCluster>,
    config: JobsConfig,
    statuses: Arc<StatusRegistry>,
    mut stop: watch::Receiver<bool>,
) {
    let mut changes = cluster.changes();
    let mut supervisor = Supervisor {
        cluster,
        config,
        statuses,
        jobs: BTreeMap::new(),
        tasks: JoinSet::new(),
        names: BTreeMap::new(),
        sweep_at: None,
    };
    loop {
        changes.borrow_and_update();
        supervisor.reconcile().await;
        let retry_at = supervisor.retry_at();
        let places = places_changed(Arc::clone(&supervisor.cluster), supervisor.places());
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            changed = changes.changed() => if changed.is_err() { break },
            Some(ended) = supervisor.tasks.join_next_with_id(), if !supervisor.tasks.is_empty() => {
                supervisor.ended(ended);
            }
            () = sleep_until(retry_at), if retry_at.is_some() => {}
            () = places => {}
        }
    }
    for job in supervisor.jobs.values() {
        job.stop.send_replace(true);
    }
    while supervisor.tasks.join_next().await.is_some() {}
}

/// Returns when a job has come to be this broker's to run, or no longer is.
async fn places_changed(cluster: Arc<dyn JobCluster>, places: Vec<(String, bool)>) {
    loop {
        tokio::time::sleep(PLACES_INTERVAL).await;
        let mut places = places.iter();
        if places.any(|(internal, here)| cluster.runs_here(internal) != *here) {
            return;
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

struct Supervisor {
    cluster: Arc<dyn JobCluster>,
    config: JobsConfig,
    statuses: Arc<StatusRegistry>,
    jobs: BTreeMap<String, SupervisedJob>,
    tasks: JoinSet<Result<(), JobError>>,
    names: BTreeMap<Id, String>,
    /// There are internal topics to be deleted.
    sweep_at: Option<Instant>,
}

struct SupervisedJob {
    plan: Result<Arc<Plan>, String>,
    declaration: String,
    running: Option<JobSpec>,
    stop: watch::Sender<bool>,
    /// With what it ended for good; a change may mend that.
    dead: Option<JobSpec>,
    /// As it was last looked at.
    runs_here: bool,
    retry_at: Option<Instant>,
    retry_delay: Duration,
    started_at: Option<Instant>,
}

/// Between two looks at who is to run which job.
const PLACES_INTERVAL: Duration = Duration::from_millis(100);
/// Between two tries to delete internal topics that nobody needs.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why a job is not started.
enum NotYet {
    /// It is another broker's.
    Elsewhere,
    /// The metadata has to change.
    Waiting(String),
    Failed(String),
    Retry(String),
}

impl Supervisor {
    async fn reconcile(&mut self) {
        let declared = self.cluster.derived_topics();
        let names: BTreeSet<String> = declared.iter().map(|topic| topic.name.clone()).collect();
        for topic in declared {
            self.reconcile_job(topic).await;
        }
        self.drop_undeclared(&names).await;
    }

    async fn reconcile_job(&mut self, topic: DerivedTopic) {
        let job = self
            .jobs
            .entry(topic.name.clone())
            .or_insert_with(SupervisedJob::new);
        if job.declaration != topic.declaration {
            job.plan = compile(&topic.name, &topic.declaration).map(Arc::new);
            job.declaration = topic.declaration.clone();
            job.retry_at = None;
            job.retry_delay = RETRY_MIN;
        }
        if job.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        job.retry_at = None;
        let plan = job.plan.clone();
        let status = self.statuses.cell(&topic.name);
        job.runs_here = self.cluster.runs_here(&internal_topic(&topic.name));
        if !job.runs_here {
            self.hold(&topic.name, NotYet::Elsewhere, &status);
            return;
        }
        let prepared = match plan {
            Ok(plan) => {
                status.update(|status| status.source_topic.clone_from(&plan.source.topic));
                prepare(&self.cluster, &topic, &plan)
                    .await
                    .map(|spec| (spec, plan))
            }
            Err(mistakes) => Err(NotYet::Failed(mistakes)),
        };
        match prepared {
            // The internal topic has just been made, and another broker leads it.
            Ok(_) if !self.cluster.runs_here(&internal_topic(&topic.name)) => {
                self.hold(&topic.name, NotYet::Elsewhere, &status);
            }
            Ok((spec, plan)) => self.start_or_replace(spec, plan, status),
            Err(reason) => self.hold(&topic.name, reason, &status),
        }
    }

    fn start_or_replace(&mut self, spec: JobSpec, plan: Arc<Plan>, status: Arc<StatusCell>) {
        let Some(job) = self.jobs.get_mut(&spec.name) else {
            return;
        };
        if let Some(running) = &job.running {
            if *running != spec {
                // The next is started when this one has ended.
                if !job.stop.send_replace(true) {
                    tracing::info!(topic = %spec.name, "aggregation is handed over to a changed one");
                }
            }
            return;
        }
        if job.dead.as_ref() == Some(&spec) {
            return;
        }
        job.dead = None;
        let (stop, stopped) = watch::channel(false);
        job.stop = stop;
        job.running = Some(spec.clone());
        job.started_at = Some(Instant::now());
        let name = spec.name.clone();
        let run = run_job(
            spec,
            plan,
            Arc::clone(&self.cluster),
            self.config.clone(),
            status,
            stopped,
        );
        let handle = self.tasks.spawn(run);
        self.names.insert(handle.id(), name);
    }

    /// A job that lacks something is stopped, and says what.
    fn hold(&mut self, name: &str, reason: NotYet, status: &StatusCell) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if job.running.is_some() {
            job.stop.send_replace(true);
        }
        let (state, reason) = match reason {
            NotYet::Elsewhere => {
                job.dead = None;
                status.set(JobState::Elsewhere, None);
                return;
            }
            NotYet::Waiting(reason) => (JobState::Waiting, reason),
            NotYet::Failed(reason) => (JobState::Failed, reason),
            NotYet::Retry(reason) => {
                job.retry_later();
                (JobState::Failed, reason)
            }
        };
        if status.set(state, Some(&reason)) {
            tracing::warn!(topic = %name, reason, "aggregation does not run");
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<(), JobError>), tokio::task::JoinError>) {
        let (id, result) = match ended {
            Ok(ended) => ended,
            Err(error) => (
                error.id(),
                Err(JobError::retry("the job's task has failed", error)),
            ),
        };
        let Some(name) = self.names.remove(&id) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&name) else {
            return;
        };
        let spec = job.running.take();
        let Err(error) = result else { return };
        let status = self.statuses.cell(&name);
        let was_asked = *job.stop.borrow();
        match &error {
            JobError::Retry(_) if was_asked => return,
            JobError::Retry(_) => {
                job.retry_later();
                status.update(|status| status.restarts += 1);
            }
            JobError::Permanent(_) => job.dead = spec,
            JobError::Stale => {
                // Deleting it is part of the next round.
                job.retry_later();
                job.dead = None;
                tracing::info!(topic = %name, "deleting the state of an earlier topic of this name");
                if let Some(spec) = spec {
                    let cluster = Arc::clone(&self.cluster);
                    let internal = spec.internal.topic_id;
                    self.tasks.spawn(async move {
                        cluster
                            .delete_topic(internal)
                            .await
                            .map_err(JobError::Retry)
                    });
                }
            }
        }
        let reason = error.to_string();
        if status.set(JobState::Failed, Some(&reason)) {
            tracing::warn!(topic = %name, reason, "aggregation has stopped");
        }
    }

    /// Stops the jobs of topics that are gone and deletes what they leave, also what an earlier life of the broker left.
    async fn drop_undeclared(&mut self, declared: &BTreeSet<String>) {
        let gone: Vec<String> = self
            .jobs
            .keys()
            .filter(|name| !declared.contains(*name))
            .cloned()
            .collect();
        for name in gone {
            let Some(job) = self.jobs.get(&name) else {
                continue;
            };
            if job.running.is_some() {
                job.stop.send_replace(true);
                continue;
            }
            self.jobs.remove(&name);
            self.statuses.remove(&name);
        }
        self.sweep_at = None;
        let internal = self.cluster.topics_with_prefix(INTERNAL_TOPIC_PREFIX);
        // Asked for after the internal topics, which are made after theirs: one whose derived topic is not there then has none.
        let declared = self.cluster.derived_topics();
        let declared: BTreeSet<String> = declared.into_iter().map(|topic| topic.name).collect();
        for (topic, topic_id) in internal {
            let Some(name) = topic.strip_prefix(INTERNAL_TOPIC_PREFIX) else {
                continue;
            };
            if declared.contains(name) || self.jobs.contains_key(name) {
                continue;
            }
            // Whoever leads it does so; until it is done it may come to be this broker.
            self.sweep_at = Some(Instant::now() + SWEEP_INTERVAL);
            if !self.cluster.runs_here(&topic) {
                continue;
            }
            if let Err(reason) = self.cluster.delete_topic(topic_id).await {
                tracing::warn!(
                    topic,
                    reason,
                    "internal topic of a deleted topic cannot be deleted"
                );
            }
        }
    }

    /// By internal topic, whether its job was found to be this broker's.
    fn places(&self) -> Vec<(String, bool)> {
        let jobs = self.jobs.iter();
        jobs.map(|(name, job)| (internal_topic(name), job.runs_here))
            .collect()
    }

    fn retry_at(&self) -> Option<Instant> {
        let retries = self.jobs.values().filter_map(|job| job.retry_at);
        retries.chain(self.sweep_at).min()
    }
}

impl SupervisedJob {
    fn new() -> SupervisedJob {
        SupervisedJob {
            plan: Err(String::new()),
            declaration: String::new(),
            running: None,
            stop: watch::channel(false).0,
            dead: None,
            runs_here: false,
            retry_at: None,
            retry_delay: RETRY_MIN,
            started_at: None,
        }
    }

    fn retry_later(&mut self) {
        if self
            .started_at
            .take()
            .is_some_and(|at| at.elapsed() > STEADY_AFTER)
        {
            self.retry_delay = RETRY_MIN;
        }
        self.retry_at = Some(Instant::now() + self.retry_delay);
        self.retry_delay = (self.retry_delay * 2).min(RETRY_MAX);
    }
}

/// Makes sure that everything is there that the job needs.
async fn prepare(
    cluster: &Arc<dyn JobCluster>,
    topic: &DerivedTopic,
    plan: &Plan,
) -> Result<JobSpec, NotYet> {
    let source = cluster.topic(&plan.source.topic).ok_or_else(|| {
        NotYet::Waiting(format!(
            "source topic '{}' does not exist",
            plan.source.topic
        ))
    })?;
    let internal_name = internal_topic(&topic.name);
    let internal = ensure_topic(
        cluster,
        NewJobTopic {
            name: internal_name.clone(),
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            configs: internal_configs(),
            internal: true,
        },
    )
    .await?;
    if internal.partitions > topic.partitions {
        return Err(NotYet::Failed(format!(
            "topic '{internal_name}' has {} partitions, its derived topic {}",
            internal.partitions, topic.partitions
        )));
    }
    let late = side_topic(cluster, topic, plan.late_topic.as_deref()).await?;
    let dead_letter = side_topic(cluster, topic, plan.dead_letter_topic.as_deref()).await?;
    let first_producer_id = match topic.producer_id {
        Some(first) => first,
        None => cluster
            .assign_producer_ids(topic.topic_id, producer_ids(internal.partitions))
            .await
            .map_err(NotYet::Retry)?,
    };
    Ok(JobSpec {
        name: topic.name.clone(),
        derived: TopicInfo {
            topic_id: topic.topic_id,
            partitions: topic.partitions,
        },
        internal,
        source,
        late,
        dead_letter,
        declaration: topic.declaration.clone(),
        first_producer_id,
    })
}

async fn side_topic(
    cluster: &Arc<dyn JobCluster>,
    derived: &DerivedTopic,
    name: Option<&str>,
) -> Result<Option<TopicInfo>, NotYet> {
    let Some(name) = name else { return Ok(None) };
    let new = NewJobTopic {
        name: name.to_owned(),
        partitions: -1,
        replication_factor: derived.replication_factor,
        configs: BTreeMap::new(),
        internal: false,
    };
    ensure_topic(cluster, new).await.map(Some)
}

async fn ensure_topic(
    cluster: &Arc<dyn JobCluster>,
    new: NewJobTopic,
) -> Result<TopicInfo, NotYet> {
    let name = new.name.clone();
    if let Some(there) = cluster.topic(&name) {
        return Ok(there);
    }
    cluster
        .create_topic(new)
        .await
        .map_err(|reason| NotYet::Retry(format!("topic '{name}' cannot be created: {reason}")))?;
    cluster
        .topic(&name)
        .ok_or_else(|| NotYet::Retry(format!("topic '{name}' was created and is not there")))
}

/// Nothing is removed but by checkpoints; segments are small, since only whole ones give their space back.
fn internal_configs() -> BTreeMap<String, String> {
    [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("segment.bytes", "67108864"),
        ("compression.type", "producer"),
        ("message.timestamp.type", "CreateTime"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}
