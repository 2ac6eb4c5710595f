//! Passes what crate `raft` logs through `slog` on to `tracing`.
//!
//! Raft tells of every election of every group at info; with thousands of groups that is noise, so
//! all but its warnings and errors goes to debug and trace.

use slog::{Drain, Level, Logger, OwnedKVList, Record};

struct TracingDrain;

impl Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", record.msg()),
            Level::Warning => tracing::warn!(target: "raft", "{}", record.msg()),
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{}", record.msg()),
            Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
        }
        Ok(())
    }
}

/// The logger for all Raft groups.
pub fn logger() -> Logger {
    static LOGGER: std::sync::LazyLock<Logger> =
        std::sync::LazyLock::new(|| Logger::root(TracingDrain, slog::o!()));
    LOGGER.clone()
}
