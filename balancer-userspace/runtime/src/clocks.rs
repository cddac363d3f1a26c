//! The clocks that provide the times in the state file.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use balancer_control::state::{Clocks, SavedClock, SavedState};
use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// The current time of the wall clock. No decision of the core depends on the wall clock. The core uses the wall clock
/// only for timestamps that the next process or other members of a fleet read.
#[expect(clippy::disallowed_methods, reason = "moments in the state file must mean the same after a restart")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The current time by the monotonic clock and by the wall clock.
pub fn clocks() -> Clocks {
    Clocks { now: Instant::now().into_std(), wall: wall() }
}

/// The time since the machine was started. Like pinned counters, the uptime continues to rise when the process
/// restarts.
pub fn uptime() -> Duration {
    // Linux has had `CLOCK_BOOTTIME` since version 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The boot id of the machine; `None` if the kernel reports no boot id.
fn boot() -> Option<&'static str> {
    static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    });
    BOOT.as_deref()
}

/// Returns `clocks` together with the machine's uptime, which no user can set; `None` if the kernel does not report the
/// boot id.
pub fn saved(clocks: Clocks) -> Option<SavedClock> {
    let boot = boot()?.to_owned();
    Some(SavedClock { boot, uptime: uptime(), wall: clocks.moment(clocks.now) })
}

/// Returns the current time by the clocks that were used for the moments in `state`. If the machine has been rebooted
/// in the meantime, only the wall clock has continued, so the function limits each remaining time to its planned
/// duration.
pub fn as_saved(state: &mut SavedState) -> Clocks {
    let now = clocks();
    let kept = state.clock.as_ref().filter(|clock| Some(clock.boot.as_str()) == boot());
    match kept.and_then(|clock| clock.wall_at(uptime())) {
        Some(wall) => Clocks { wall, ..now },
        None => {
            state.bound(now.moment(now.now));
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn when_the_wall_clock_was_set_then_saved_moments_are_not_affected() {
        let was = Clocks { wall: UNIX_EPOCH + Duration::from_secs(1000), ..clocks() };
        let clock = saved(was).unwrap();
        let wall = clock.wall_at(clock.uptime + Duration::from_secs(5)).unwrap();
        assert_eq!(wall, UNIX_EPOCH + Duration::from_secs(1005));
        assert_eq!(clock.wall_at(clock.uptime.saturating_sub(Duration::from_secs(1))), None, "not of this start");
    }
}
