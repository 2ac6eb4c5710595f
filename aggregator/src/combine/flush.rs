//! When an internal partition gets a batch, and what it then knows.

use super::{Combiner, SourceCover};
use crate::job::Job;
use crate::partial::{Cover, PartialBatch, PartialHeader};
use crate::watermark::{SourceWatermark, least_active};
use crate::window::WindowAssigner;

impl<J: Job> Combiner<J> {
    /// One batch if there are rows for the internal partition, if its covers close a window, or if the last are old enough.
    pub(super) fn flush_internal(&mut self, index: usize, now_ms: i64) -> Option<PartialBatch> {
        let sole = self.is_sole();
        let internal = self.internals.get_mut(index)?;
        let mut covers = Vec::new();
        for (partition, source) in &self.sources {
            let Some(sent) = internal.sent.get(partition) else {
                continue;
            };
            let behind = source.next_offset < sent.to_offset;
            let news = source.next_offset > sent.to_offset
                || source.state != sent.state
                || source.leader_epoch != sent.leader_epoch;
            if behind || !news {
                continue;
            }
            covers.push(Cover {
                source_partition: *partition,
                leader_epoch: source.leader_epoch,
                from_offset: sent.to_offset,
                to_offset: source.next_offset,
                // A watermark that merge has been told never goes back.
                watermark: source.state.watermark.max(sent.state.watermark),
                idle: source.state.idle,
                initial: internal.unreported.contains(partition),
            });
        }
        if covers.is_empty() {
            assert!(
                !internal.has_data,
                "rows for internal partition {index} without a cover of their records"
            );
            return None;
        }
        let due = internal
            .sent_at_ms
            .is_none_or(|sent| now_ms.saturating_sub(sent) >= self.config.empty_cover_interval_ms);
        let closes_window = match internal.open_windows.first() {
            Some(window) => window.is_closed_at(self.watermark),
            None => false,
        } || (!sole
            && crosses_window_end(self.assigner, internal.watermark, self.watermark));
        if !internal.has_data && !due && !closes_window {
            return None;
        }
        for cover in &covers {
            let state = SourceWatermark {
                watermark: cover.watermark,
                idle: cover.idle,
            };
            let sent = SourceCover {
                leader_epoch: cover.leader_epoch,
                to_offset: cover.to_offset,
                state,
                combiner_id: self.config.combiner_id,
            };
            internal.unreported.remove(&cover.source_partition);
            internal.sent.insert(cover.source_partition, sent);
        }
        internal.sent_at_ms = Some(now_ms);
        internal.has_data = false;
        let watermark_limit = match sole {
            true => internal.watermark,
            // The covers of others move it as well, and what could be closed by them goes whole.
            false => i64::MAX,
        };
        let sources = &self.sources;
        let told = internal
            .sent
            .iter()
            .filter(|(partition, _)| sources.contains_key(partition))
            .map(|(_, cover)| cover.state);
        if let Some(least) = least_active(told) {
            internal.watermark = internal.watermark.max(least);
        }
        let closed_at = internal.watermark;
        while internal
            .open_windows
            .first()
            .is_some_and(|window| window.is_closed_at(closed_at))
        {
            internal.open_windows.pop_first();
        }
        self.internal_watermark_max = self.internal_watermark_max.max(internal.watermark);
        let builder = std::mem::take(&mut internal.builder);
        for cover in covers.iter().filter(|cover| cover.idle) {
            if let Some(source) = self.sources.get_mut(&cover.source_partition) {
                source.unconfirmed = true;
            }
        }
        let header = PartialHeader {
            combiner_id: self.config.combiner_id,
            source_partition_count: self.config.source_partition_count,
            watermark_limit,
            records: 0,
            covers,
        };
        Some(builder.finish(index as i32, header))
    }
}

/// Between the two watermarks a window ends: not a window that is known to hold anything, but one that another combiner may have filled.
fn crosses_window_end(assigner: WindowAssigner, told: i64, now: i64) -> bool {
    if now <= told {
        return false;
    }
    match (
        assigner.pane_of(told.saturating_add(1)),
        assigner.pane_of(now.saturating_add(1)),
    ) {
        (Some(before), Some(after)) => before != after,
        _ => true,
    }
}
