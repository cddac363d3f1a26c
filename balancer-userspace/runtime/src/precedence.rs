//! Thread priorities, which matter while more threads are runnable than there are processors: the threads that react to
//! a failed check and redirect packets come first.

use std::io;

/// The number by which the balancer lowers the nice value of a thread.
pub const STEPS: i32 = 10;
/// The lowest possible nice value.
const LOWEST: i32 = -20;

/// Gives precedence to the calling thread; threads and programs that this thread starts do not inherit the precedence.
/// If the operator has chosen a scheduling policy without nice values, the function changes nothing. The new nice value
/// is relative to the nice value that the operator has set.
///
/// # Errors
/// Fails if this process may not lower the nice value.
pub fn take() -> io::Result<()> {
    let Some(wanted) = lowered(attributes()?) else { return Ok(()) };
    // SAFETY: the attributes contain their own size, and the kernel reads no more than this size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The scheduling attributes of the calling thread.
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
    // SAFETY: the kernel writes at most `size` bytes, which is the size of `attributes`.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// Returns the scheduling attributes with precedence; `None` if the scheduling policy has no nice values.
fn lowered(attributes: libc::sched_attr) -> Option<libc::sched_attr> {
    let is_other = attributes.sched_policy == libc::SCHED_OTHER as u32;
    is_other.then(|| libc::sched_attr {
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        sched_nice: attributes.sched_nice.saturating_sub(STEPS).max(LOWEST),
        // Some kernels report a time slice in this field, but accept a time slice only from threads that have chosen
        // one.
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
