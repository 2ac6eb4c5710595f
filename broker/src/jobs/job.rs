//! One job: its merge tasks and its combine task, from the logs of its topics.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use streamgauge_aggregator::declaration::Start;
use streamgauge_aggregator::plan::Plan;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::cluster::{JobCluster, TopicInfo};
use super::combine_task::CombineTask;
use super::error::JobError;
use super::internal::{Found, StartMark, scan};
use super::log::JobLog;
use super::merge_task::{MergeHandle, MergeTask};
use super::output::{OUTPUT_KINDS, OutputLogs};
use super::status::{JobState, StatusCell};
use super::{Clock, JobsConfig};

/// How long the other tasks of a job may take to end once one has.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// Between two looks whether a partition has a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Everything that a job depends on; when any of it changes the job is started anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSpec {
    /// The derived topic.
    pub name: String,
    pub derived: TopicInfo,
    pub internal: TopicInfo,
    pub source: TopicInfo,
    pub late: Option<TopicInfo>,
    pub dead_letter: Option<TopicInfo>,
    pub declaration: String,
    pub first_producer_id: i64,
}

/// Runs a job until it is stopped (`Ok`) or cannot go on.
pub async fn run_job(
    spec: JobSpec,
    plan: Arc<Plan>,
    cluster: Arc<dyn JobCluster>,
    config: JobsConfig,
    status: Arc<StatusCell>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), JobError> {
    let stopped = {
        let mut stop = stop.clone();
        async move { drop(stop.wait_for(|stop| *stop).await) }
    };
    let (tasks, stop_tasks) = tokio::select! {
        biased;
        () = stopped => return Ok(()),
        started = start(&spec, plan, &cluster, &config, &status) => started?,
    };
    let mut tasks = tasks;
    if status.set(JobState::Running, None) {
        tracing::info!(topic = %spec.name, "aggregation runs");
    }
    let first = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        ended = tasks.join_next() => match outcome(ended) {
            Ok(()) => Err(JobError::Retry("a task has ended by itself".to_owned())),
            failed => failed,
        },
    };
    stop_tasks.send_replace(true);
    let rest = async {
        let mut result = Ok(());
        while let Some(ended) = tasks.join_next().await {
            result = result.and(outcome(Some(ended)));
        }
        result
    };
    // Tasks that do not end in time are dropped with the set.
    let rest = tokio::time::timeout(STOP_TIME_MAX, rest)
        .await
        .unwrap_or(Ok(()));
    first.and(rest)
}

fn outcome(
    ended: Option<Result<Result<(), JobError>, tokio::task::JoinError>>,
) -> Result<(), JobError> {
    match ended {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(JobError::retry("a task has failed", error)),
    }
}

async fn start(
    spec: &JobSpec,
    plan: Arc<Plan>,
    cluster: &Arc<dyn JobCluster>,
    config: &JobsConfig,
    status: &Arc<StatusCell>,
) -> Result<(JoinSet<Result<(), JobError>>, watch::Sender<bool>), JobError> {
    let sources = logs(cluster, spec.source).await?;
    let internals = logs(cluster, spec.internal).await?;
    let derived = logs(cluster, spec.derived).await?;
    let late = optional_logs(cluster, spec.late).await?;
    let dead_letter = optional_logs(cluster, spec.dead_letter).await?;
    let first_internal = internals
        .first()
        .ok_or_else(|| JobError::Permanent("the internal topic has no partitions".to_owned()))?;
    first_internal.catch_up().await?;
    let found = scan(first_internal).await?;
    let mark = start_mark(spec, &plan, first_internal, &found, &sources, &config.clock).await?;
    let mark = Arc::new(mark);
    let mut found_first = Some(found);

    let (stop_tasks, stop) = watch::channel(false);
    let (refused_tx, refused) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let mut merges = Vec::with_capacity(internals.len());
    for (index, log) in internals.iter().enumerate() {
        let (requests_tx, requests) = mpsc::channel(4);
        let applied = Arc::new(AtomicI64::new(0));
        merges.push(MergeHandle {
            requests: requests_tx,
            applied: Arc::clone(&applied),
        });
        let derived = derived.get(index).cloned().ok_or_else(|| {
            JobError::Permanent(
                "the derived topic has fewer partitions than its internal topic".to_owned(),
            )
        })?;
        let output_logs: [_; OUTPUT_KINDS] = [
            Some(OutputLogs {
                target: derived,
                others: Vec::new(),
            }),
            shared(&late, index),
            shared(&dead_letter, index),
        ];
        let task = MergeTask {
            plan: Arc::clone(&plan),
            broker_id: config.broker_id,
            internal_partition: i32::try_from(index).unwrap_or(i32::MAX),
            source_partitions: spec.source.partitions,
            start: Arc::clone(&mark),
            log: Arc::clone(log),
            output_logs,
            first_producer_id: spec.first_producer_id,
            config: config.merger,
            policy: config.checkpoints,
            clock: Arc::clone(&config.clock),
            status: Arc::clone(status),
            requests,
            applied,
            refused: refused_tx.clone(),
            stop: stop.clone(),
        };
        let found: Option<Found> = found_first.take();
        tasks.spawn(async move {
            let found = match found {
                Some(found) => found,
                None => {
                    task.log.catch_up().await?;
                    scan(&task.log).await?
                }
            };
            task.run(found).await
        });
    }
    let combine = CombineTask {
        plan,
        combiner_id: config.broker_id,
        start: mark,
        sources,
        internals,
        merges,
        flush_interval_ms: config.flush_interval_ms,
        clock: Arc::clone(&config.clock),
        status: Arc::clone(status),
        refused,
        stop,
    };
    tasks.spawn(combine.run());
    Ok((tasks, stop_tasks))
}

/// The mark in the log, or a new one if the job begins now.
async fn start_mark(
    spec: &JobSpec,
    plan: &Plan,
    log: &Arc<dyn JobLog>,
    found: &Found,
    sources: &[Arc<dyn JobLog>],
    clock: &Clock,
) -> Result<StartMark, JobError> {
    if let Some(mark) = found.start_mark() {
        check_mark(spec, plan, mark)?;
        return Ok(mark.clone());
    }
    if found.end_offset > 0 {
        return Err(JobError::Permanent(
            "the internal topic does not say where the job began: records were deleted from it"
                .to_owned(),
        ));
    }
    let start_offset = |source: &Arc<dyn JobLog>| match plan.source.start {
        Start::Earliest => source.start_offset(),
        Start::Latest => source.stable_offset(),
    };
    let mark = StartMark {
        derived_topic_id: id_text(spec.derived.topic_id),
        source_topic_id: id_text(spec.source.topic_id),
        fingerprint: plan.fingerprint(),
        start_offsets: sources.iter().map(start_offset).collect(),
    };
    log.append(mark.to_batch((clock)())?).await?;
    // Another broker may have begun the job at the same time.
    log.catch_up().await?;
    let found = scan(log).await?;
    let mark = found
        .start_mark()
        .ok_or_else(|| JobError::Retry("the job's beginning is not in its log yet".to_owned()))?;
    check_mark(spec, plan, mark)?;
    Ok(mark.clone())
}

fn check_mark(spec: &JobSpec, plan: &Plan, mark: &StartMark) -> Result<(), JobError> {
    if !mark.is_of_derived(spec.derived.topic_id) {
        return Err(JobError::Stale);
    }
    if !mark.is_of_source(spec.source.topic_id) {
        return Err(JobError::Permanent(format!(
            "source topic '{}' was deleted and created again; delete topic '{}' and create it again to begin anew",
            plan.source.topic, spec.name
        )));
    }
    if mark.fingerprint != plan.fingerprint() {
        return Err(JobError::Permanent(format!(
            "the state was made under another declaration; delete topic '{}' and create it again",
            spec.name
        )));
    }
    Ok(())
}

fn id_text(id: Uuid) -> String {
    id.to_string()
}

/// Several internal partitions may share a partition of a side topic; each has its own producer id there.
fn shared(logs: &[Arc<dyn JobLog>], index: usize) -> Option<OutputLogs> {
    let at = index % logs.len().max(1);
    let target = Arc::clone(logs.get(at)?);
    let others = logs.iter().enumerate().filter(|(other, _)| *other != at);
    Some(OutputLogs {
        target,
        others: others.map(|(_, log)| Arc::clone(log)).collect(),
    })
}

async fn optional_logs(
    cluster: &Arc<dyn JobCluster>,
    topic: Option<TopicInfo>,
) -> Result<Vec<Arc<dyn JobLog>>, JobError> {
    match topic {
        Some(topic) => logs(cluster, topic).await,
        None => Ok(Vec::new()),
    }
}

/// The logs of all partitions, once they have leaders.
async fn logs(
    cluster: &Arc<dyn JobCluster>,
    topic: TopicInfo,
) -> Result<Vec<Arc<dyn JobLog>>, JobError> {
    let mut logs = Vec::new();
    for partition in 0..topic.partitions {
        let log = cluster.log(topic.topic_id, partition).ok_or_else(|| {
            JobError::Retry(format!(
                "partition {partition} of a topic of the job is offline"
            ))
        })?;
        let notify = Arc::new(Notify::new());
        loop {
            log.wake(&notify);
            if log.is_serving() {
                break;
            }
            // That a leader elsewhere has become known wakes nobody.
            drop(tokio::time::timeout(LOOK_INTERVAL, notify.notified()).await);
        }
        logs.push(log);
    }
    Ok(logs)
}
