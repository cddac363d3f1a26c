//! Decides which time-outs of a backend's checks count.
//!
//! A server that pauses for a second or two answers none of the checks that packets ask for in the meantime. All these
//! checks are one look at the server. Once packets have asked for a check that timed out, further time-outs therefore
//! count only once in each interval of the check, until a check passes. A refusal always counts: the server or its
//! network sent it.

use std::time::Duration;

use tokio::time::Instant;

/// The time-outs since a check last passed.
#[derive(Debug, Default)]
pub(super) struct TimeOuts {
    /// The start of the last check whose time-out counted.
    last: Option<Instant>,
    /// Whether packets have asked for one of the checks that timed out.
    asked: bool,
}

impl TimeOuts {
    /// Whether the time-out of a check counts; the check began at `start`, and packets may have `asked` for it.
    pub(super) fn counts(&mut self, (start, asked): (Instant, bool), interval: Duration) -> bool {
        self.asked |= asked;
        let counts = !self.asked || self.last.is_none_or(|last| start.saturating_duration_since(last) >= interval);
        if counts {
            self.last = Some(start);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// Returns which time-outs count, of checks that began after so many milliseconds; packets asked for some.
    fn counted(checks: &[(u64, bool)]) -> Vec<u64> {
        let (mut time_outs, begun) = (TimeOuts::default(), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        checks.iter().filter(|&&(ms, asked)| time_outs.counts((at(ms), asked), INTERVAL)).map(|&(ms, _)| ms).collect()
    }

    #[test]
    fn when_packets_ask_for_checks_that_time_out_then_one_counts_in_each_interval() {
        let series = [0, 50, 100, 1100, 1150, 1200, 2200, 2250, 2300, 3300, 4300].map(|ms| (ms, true));
        assert_eq!(counted(&series), [0, 2200, 4300]);
        // Regular checks follow the series.
        assert_eq!(counted(&[(0, true), (50, true), (1000, false), (2000, false), (2050, true)]), [0, 2000]);
        assert_eq!(counted(&[(0, false), (50, true), (600, false), (2000, false)]), [0, 2000]);
    }

    #[test]
    fn when_packets_ask_for_no_check_then_every_time_out_counts() {
        assert_eq!(counted(&[(0, false), (1000, false), (1100, false)]), [0, 1000, 1100]);
    }
}
