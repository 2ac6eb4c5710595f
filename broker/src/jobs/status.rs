//! What each job is doing, for operators: state and reason, watermarks, lag, counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;

/// Whether a job runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Something that it needs is not there yet; the reason says what.
    #[default]
    Waiting,
    Running,
    /// Another broker runs it: the leader of its internal topic's first partition.
    Elsewhere,
    /// It has stopped for the reason given; where that may pass it is tried again.
    Failed,
}

/// One job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct JobStatus {
    /// The derived topic.
    pub name: String,
    pub source_topic: String,
    pub state: JobState,
    /// Why it does not run.
    pub reason: Option<String>,
    /// How often it was started again after a failure.
    pub restarts: u64,
    /// By source partition.
    pub sources: BTreeMap<i32, SourceStatus>,
    /// By internal partition, which is the derived topic's.
    pub merges: BTreeMap<i32, MergeStatus>,
    pub combine: CombineStatus,
}

/// A source partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    pub next_offset: i64,
    /// Committed records that have not been read.
    pub lag: i64,
    /// The partition's own watermark, in ms; `i64::MIN` before the first record.
    pub watermark_ms: i64,
    /// It does not hold the job's watermark back.
    pub idle: bool,
}

/// Counts of the combine stage since it was last started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CombineStatus {
    pub records_in: u64,
    pub filtered: u64,
    pub late_candidates: u64,
    /// Unreadable records by reason.
    pub bad: BTreeMap<String, u64>,
    pub rows_out: u64,
    /// The least watermark over the active source partitions, in ms.
    pub watermark_ms: i64,
}

/// An internal partition: the merge stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MergeStatus {
    pub watermark_ms: i64,
    /// Internal records that have not been applied.
    pub lag: i64,
    pub windows_open: usize,
    pub groups: usize,
    pub state_bytes: usize,
    /// Since the job was created.
    pub results: u64,
    pub late: u64,
    pub dead_letters: u64,
    pub rows_for_closed_windows: u64,
}

/// One job's status, shared by its tasks.
#[derive(Debug, Default)]
pub struct StatusCell(Mutex<JobStatus>);

impl StatusCell {
    pub fn read(&self) -> JobStatus {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn update<T>(&self, change: impl FnOnce(&mut JobStatus) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets state and reason; true if this is news.
    pub(super) fn set(&self, state: JobState, reason: Option<&str>) -> bool {
        self.update(|status| {
            let news = status.state != state || status.reason.as_deref() != reason;
            status.state = state;
            status.reason = reason.map(str::to_owned);
            news
        })
    }
}

/// All jobs of this broker.
#[derive(Debug, Default)]
pub struct StatusRegistry {
    jobs: RwLock<BTreeMap<String, Arc<StatusCell>>>,
}

impl StatusRegistry {
    /// Every job's status in the order of their names.
    pub fn all(&self) -> Vec<JobStatus> {
        self.jobs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .map(|cell| cell.read())
            .collect()
    }

    /// The status of the job that makes a derived topic.
    pub fn job(&self, derived_topic: &str) -> Option<JobStatus> {
        self.jobs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(derived_topic)
            .map(|cell| cell.read())
    }

    pub(super) fn cell(&self, derived_topic: &str) -> Arc<StatusCell> {
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let cell = StatusCell::default();
            cell.update(|status| status.name = derived_topic.to_owned());
            Arc::new(cell)
        };
        Arc::clone(jobs.entry(derived_topic.to_owned()).or_insert_with(new))
    }

    pub(super) fn remove(&self, derived_topic: &str) {
        self.jobs
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(derived_topic);
    }
}
