//! Thread priorities for times with more runnable threads than processors: the threads between a failed check and the
//! redirected packet come first.

use std::io;

/// The number by which the nice value is lowered.
pub(crate) const STEPS: i32 = 10;
/// The lowest possible nice value.
const LOWEST: i32 = -20;

/// Gives the calling thread precedence; threads and programs that it starts do not inherit it. If an operator has
/// chosen another scheduling policy, it stays; an operator's nice value is taken into account.
///
/// # Errors
/// If the kernel refuses the precedence.
pub(crate) fn take() -> io::Result<()> {
    let Some(wanted) = lowered(attributes()?) else { return Ok(()) };
    // SAFETY: the attributes contain their own size, and the kernel reads no more than this.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The attributes of the calling thread.
fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes, which is the size of the attributes.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Returns the attributes with precedence; `None` if the scheduling policy has no nice values.
fn lowered(attributes: libc::sched_attr) -> Option<libc::sched_attr> {
    let is_other = attributes.sched_policy == libc::SCHED_OTHER as u32;
    is_other.then(|| libc::sched_attr {
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        sched_nice: attributes.sched_nice.saturating_sub(STEPS).max(LOWEST),
        // Some kernels report a slice here, but accept one only from threads that have chosen it.
        sched_runtime: 0,
        ..attributes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice(nice: i32, policy: i32) -> Option<i32> {
        let attributes = libc::sched_attr { sched_nice: nice, sched_policy: policy as u32, ..attributes().unwrap() };
        lowered(attributes).map(|lowered| lowered.sched_nice)
    }

    #[test]
    fn when_an_operator_has_chosen_a_policy_or_nice_value_then_it_counts() {
        assert_eq!(nice(0, libc::SCHED_OTHER), Some(-10));
        assert_eq!(nice(5, libc::SCHED_OTHER), Some(-5));
        assert_eq!(nice(-15, libc::SCHED_OTHER), Some(-20));
        for policy in [libc::SCHED_RR, libc::SCHED_FIFO, libc::SCHED_BATCH, libc::SCHED_IDLE] {
            assert_eq!(nice(0, policy), None, "{policy}");
        }
    }
}
