//! How far event time has come: per source partition, and the least of them for the job. Flink's rules
//! (`BoundedOutOfOrdernessWatermarks`, `WatermarkOutputMultiplexer`).
//!
//! A partition's watermark is the greatest event time seen, less the bound on out-of-orderness, less 1 ms: no record at or below it
//! is expected any more. The job's watermark is the least over its partitions; idle ones do not hold it back, one that has
//! not reported yet does. When *every* partition is idle the job's watermark stays where it is, as it does in Flink's
//! multiplexer of the partitions of one source: a window then stays open until a record comes or a bound known to the broker
//! moves it. No watermark ever goes back.

/// Before any record: lower than every event time.
pub const WATERMARK_MIN: i64 = i64::MIN;

/// What one source partition's records have shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceWatermark {
    pub watermark: i64,
    pub idle: bool,
}

impl SourceWatermark {
    /// A partition of which nothing is known: active, and holding everything back.
    pub const NEW: SourceWatermark = SourceWatermark {
        watermark: WATERMARK_MIN,
        idle: false,
    };

    /// Takes a record's event time into account (`onEvent`), with the bound on how much out of order records come.
    #[inline]
    pub fn observe(&mut self, event_time: i64, max_out_of_orderness_ms: i64) {
        let watermark = event_time
            .saturating_sub(max_out_of_orderness_ms)
            .saturating_sub(1);
        self.watermark = self.watermark.max(watermark);
    }

    /// A bound from elsewhere, for instance append times, below which no record can come any more.
    pub fn raise(&mut self, at_least: i64) {
        self.watermark = self.watermark.max(at_least);
    }
}

/// The least watermark over the sources that are not idle; `None` if all are idle, or there are none.
pub fn least_active(sources: impl IntoIterator<Item = SourceWatermark>) -> Option<i64> {
    sources
        .into_iter()
        .filter(|source| !source.idle)
        .map(|source| source.watermark)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(watermark: i64, idle: bool) -> SourceWatermark {
        SourceWatermark { watermark, idle }
    }

    #[test]
    fn the_watermark_is_the_greatest_event_time_less_the_bound_less_one() {
        let mut state = SourceWatermark::NEW;
        state.observe(10_000, 5_000);
        assert_eq!(state.watermark, 4_999);
        state.observe(9_000, 5_000);
        assert_eq!(
            state.watermark, 4_999,
            "an older record does not take it back"
        );
        state.observe(10_001, 0);
        assert_eq!(state.watermark, 10_000);
    }

    #[test]
    fn the_least_time_there_is_does_not_wrap_round() {
        let mut state = SourceWatermark::NEW;
        state.observe(i64::MIN + 1, 5_000);
        assert_eq!(state.watermark, WATERMARK_MIN);
    }

    #[test]
    fn a_bound_from_elsewhere_only_raises() {
        let mut state = source(100, false);
        state.raise(50);
        assert_eq!(state.watermark, 100);
        state.raise(150);
        assert_eq!(state.watermark, 150);
    }

    #[test]
    fn the_least_active_source_counts() {
        assert_eq!(least_active([source(5, false), source(3, false)]), Some(3));
        assert_eq!(least_active([source(5, false), source(3, true)]), Some(5));
        assert_eq!(
            least_active([source(5, false), SourceWatermark::NEW]),
            Some(WATERMARK_MIN)
        );
        assert_eq!(least_active([source(5, true), source(3, true)]), None);
        assert_eq!(least_active([]), None);
    }
}
