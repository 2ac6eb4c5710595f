//! Which window an event time falls into, and when a window is over. Flink's rules (`TimeWindow`, `TumblingEventTimeWindows`).
//!
//! A window is `[start, end)` in milliseconds since the epoch; its last instant, `end - 1`, is the timestamp of its result.
//! It fires once the watermark is at or past that instant, and a record that comes for it afterwards is late
//! (Flink's `isWindowLate` with an allowed lateness of 0).
//!
//! State is kept by *pane*, the stretch of time that one record touches. A tumbling window is one pane; a hopping or cumulative
//! window will be several panes, so that a record costs the same however many windows it is in; a session is a pane that can grow.

use serde::{Deserialize, Serialize};

/// `[start, end)`, milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Window {
    // `end` first: windows fire in the order of their ends.
    end: i64,
    start: i64,
}

impl Window {
    /// `None` unless `start < end` and both lie within the range of timestamps that watermarks can pass.
    pub fn new(start: i64, end: i64) -> Option<Window> {
        (start < end && start > i64::MIN && end < i64::MAX).then_some(Window { start, end })
    }

    pub fn start(&self) -> i64 {
        self.start
    }

    pub fn end(&self) -> i64 {
        self.end
    }

    /// The last millisecond of the window, which is its result's timestamp (`TimeWindow.maxTimestamp`).
    pub fn max_timestamp(&self) -> i64 {
        self.end - 1
    }

    /// The window has fired, or must fire now: a record that comes for it is late.
    pub fn is_closed_at(&self, watermark: i64) -> bool {
        self.max_timestamp() <= watermark
    }
}

/// How event times are assigned to windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowAssigner {
    /// Windows of `size_ms` that neither overlap nor leave gaps, the one at the epoch starting `offset_ms` after it.
    Tumbling { size_ms: i64, offset_ms: i64 },
}

impl WindowAssigner {
    /// A tumbling assigner; `None` unless `size_ms > 0` and `|offset_ms| < size_ms`, as Flink demands.
    pub fn tumbling(size_ms: i64, offset_ms: i64) -> Option<WindowAssigner> {
        (size_ms > 0 && offset_ms.checked_abs()? < size_ms)
            .then_some(WindowAssigner::Tumbling { size_ms, offset_ms })
    }

    /// The pane that a record with this event time is accumulated in; `None` if the time is so near an end of the 64-bit range
    /// that its window would not fit.
    #[inline]
    pub fn pane_of(&self, timestamp: i64) -> Option<Window> {
        match *self {
            WindowAssigner::Tumbling { size_ms, offset_ms } => {
                let into_window = timestamp.checked_sub(offset_ms)?.rem_euclid(size_ms);
                let start = timestamp.checked_sub(into_window)?;
                Window::new(start, start.checked_add(size_ms)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(timestamp: i64, size_ms: i64, offset_ms: i64) -> i64 {
        WindowAssigner::tumbling(size_ms, offset_ms)
            .unwrap()
            .pane_of(timestamp)
            .unwrap()
            .start()
    }

    #[test]
    fn a_window_holds_its_start_and_not_its_end() {
        assert_eq!(start(0, 5000, 0), 0);
        assert_eq!(start(4999, 5000, 0), 0);
        assert_eq!(start(5000, 5000, 0), 5000);
        let window = WindowAssigner::tumbling(5000, 0)
            .unwrap()
            .pane_of(4999)
            .unwrap();
        assert_eq!(
            (window.start(), window.end(), window.max_timestamp()),
            (0, 5000, 4999)
        );
    }

    #[test]
    fn an_offset_moves_the_start() {
        // The cases of Flink's TumblingEventTimeWindowsTest, with an offset of 100 and of -100.
        assert_eq!(start(100, 5000, 100), 100);
        assert_eq!(start(5099, 5000, 100), 100);
        assert_eq!(start(5100, 5000, 100), 5100);
        assert_eq!(start(0, 5000, -100), -100);
        assert_eq!(start(4899, 5000, -100), -100);
        assert_eq!(start(4900, 5000, -100), 4900);
    }

    #[test]
    fn times_before_1970_fall_into_the_window_below() {
        assert_eq!(start(-1, 5000, 0), -5000);
        assert_eq!(start(-5000, 5000, 0), -5000);
        assert_eq!(start(-5001, 5000, 0), -10000);
        assert_eq!(start(-4900, 5000, 100), -4900);
        assert_eq!(start(-4901, 5000, 100), -9900);
    }

    #[test]
    fn a_size_that_is_not_positive_and_an_offset_of_a_whole_size_are_refused() {
        assert_eq!(WindowAssigner::tumbling(0, 0), None);
        assert_eq!(WindowAssigner::tumbling(-1, 0), None);
        assert_eq!(WindowAssigner::tumbling(10, 10), None);
        assert_eq!(WindowAssigner::tumbling(10, -10), None);
        assert_eq!(WindowAssigner::tumbling(10, i64::MIN), None);
    }

    #[test]
    fn times_at_the_ends_of_the_range_have_no_window() {
        let assigner = WindowAssigner::tumbling(1000, 7).unwrap();
        assert_eq!(assigner.pane_of(i64::MIN), None);
        assert_eq!(assigner.pane_of(i64::MAX), None);
        assert!(assigner.pane_of(i64::MAX - 3000).is_some());
    }

    #[test]
    fn a_window_closes_when_the_watermark_reaches_its_last_millisecond() {
        let window = Window::new(0, 1000).unwrap();
        assert!(!window.is_closed_at(998));
        assert!(window.is_closed_at(999));
        assert!(!window.is_closed_at(i64::MIN));
    }

    #[test]
    fn windows_are_ordered_by_their_end() {
        assert!(Window::new(5, 10).unwrap() < Window::new(0, 11).unwrap());
    }
}
