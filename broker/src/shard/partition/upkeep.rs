//! What happens to a log beside appends: records are deleted, checkpoints written, segments removed.

use std::sync::Arc;

use streamgauge_storage::{RaftIndex, StorageError};

use super::{DeleteReply, EARLIER_FAILURE, Life, Partition};
use crate::replication::group::GroupError;
use crate::shard::event::DeleteRecordsError;

impl Partition {
    /// Notes on disk how far the log is durable, for a later recovery.
    pub fn write_recovery_point(&mut self) {
        let topic = Arc::clone(&self.topic);
        if let Some(log) = self.log_mut()
            && let Err(error) = log.write_recovery_point()
        {
            tracing::warn!(%topic, %error, "recovery point could not be written");
        }
    }

    /// Moves the log start offset up to `before_offset`; -1 means the high watermark. All replicas
    /// do so: it goes through the log, and is answered once it is committed and done here.
    pub fn delete_records(&mut self, before_offset: i64, reply: DeleteReply) {
        match self.propose_log_start(before_offset) {
            Ok(index) => self.pending_deletes.push_back((index, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn propose_log_start(&mut self, before_offset: i64) -> Result<RaftIndex, DeleteRecordsError> {
        let high_watermark = self.view.high_watermark();
        let group = match &mut self.life {
            Life::Running(group) if self.leads && group.may_serve() => group,
            Life::Running(_) => return Err(DeleteRecordsError::NotLeader),
            _ => return Err(DeleteRecordsError::Storage(EARLIER_FAILURE.to_owned())),
        };
        let target = match before_offset {
            -1 => high_watermark,
            offset => offset,
        };
        if target < 0 || target > high_watermark {
            return Err(DeleteRecordsError::OffsetOutOfRange);
        }
        group
            .propose_log_start(target)
            .map_err(|error| match error {
                GroupError::NotLeader => DeleteRecordsError::NotLeader,
                other => DeleteRecordsError::Storage(other.to_string()),
            })
    }

    pub(super) fn answer_deletes(&mut self, committed: RaftIndex) {
        while let Some((_, reply)) = self
            .pending_deletes
            .pop_front_if(|(index, _)| *index <= committed)
        {
            drop(reply.send(Ok(self.view.log_start_offset())));
        }
    }

    /// Removes what retention lets go, and forgets producers that have been silent too long.
    pub fn maintain(&mut self, now_ms: i64, producer_expiration_ms: i64) {
        self.producers.expire(now_ms, producer_expiration_ms);
        self.verifications.expire(now_ms, producer_expiration_ms);
        let limit = self.view.high_watermark();
        let topic = Arc::clone(&self.topic);
        let expired = match &mut self.life {
            Life::Running(group) => {
                let committed = group.committed();
                let log = group.log_mut();
                let expires = log.expired_count(now_ms, limit, committed) > 0;
                // What producers wrote must stay known when their batches are gone, and a restart
                // should not read the whole log again (Kafka writes a snapshot at every roll).
                if (expires || log.active_base_offset() > self.snapshot_offset)
                    && self.snapshot_offset < limit
                {
                    if let Err(error) = log.write_producer_snapshot(&self.producers, limit) {
                        tracing::warn!(%topic, %error, "producer snapshot could not be written");
                        return;
                    }
                    self.snapshot_offset = limit;
                }
                log.expire_committed(now_ms, limit, committed)
            }
            // What may go is decided once the group runs again.
            Life::Suspended { .. } | Life::Failed | Life::Moving => return,
        };
        match expired {
            Ok(deleted) if deleted.is_empty() => {}
            Ok(deleted) => {
                tracing::info!(%topic, segments = deleted.len(), "retention removed segments");
                self.view.publish_change();
            }
            Err(error) => tracing::warn!(%topic, %error, "retention could not remove segments"),
        }
    }

    /// Writes the producers' snapshot and marks the log clean. Everything must have been synced.
    pub fn close(&mut self) -> Result<(), StorageError> {
        let Life::Running(group) = &mut self.life else {
            return Ok(());
        };
        let high_watermark = group.log().offset_after(group.committed())?;
        let log = group.log_mut();
        log.write_producer_snapshot(&self.producers, high_watermark)?;
        log.close()
    }
}
