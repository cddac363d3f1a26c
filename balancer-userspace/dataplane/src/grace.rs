//! Waits until the program has finished all packets for which it may still read discarded data. A separate thread
//! waits, so that the owner of the data can continue to work.

use std::{
    fmt,
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

#[cfg(not(test))]
use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(test)]
use shuttle::sync::{Condvar, Mutex, MutexGuard};

use anyhow::Context as _;

use super::threads::Threads;

/// The number of a grace period. A grace period is over when any later grace period is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grace(u64);

#[cfg(test)]
impl Grace {
    pub(super) const fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// The thread that waits for the ends of grace periods. Dropping this value ends the thread.
#[derive(Debug)]
pub(super) struct GracePeriods(Arc<Shared>);

struct Shared {
    periods: Mutex<Periods>,
    changed: Condvar,
    /// Waits until the program has finished every packet in progress.
    wait: Wait,
}

type Wait = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("periods", &self.periods).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Periods {
    wanted: u64,
    over: u64,
    /// Whether no more waiting is possible, because the thread or its owner has ended.
    ended: bool,
}

impl GracePeriods {
    /// Starts the thread that waits for grace periods.
    ///
    /// # Errors
    /// Fails if the system allows no more threads.
    pub(super) fn spawn(threads: &dyn Threads) -> anyhow::Result<Self> {
        Self::waiting_by(threads, Box::new(wait_for_packets))
    }

    /// Starts the thread, which calls `wait` to wait for packets in progress.
    pub(super) fn waiting_by(threads: &dyn Threads, wait: Wait) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { periods: Mutex::default(), changed: Condvar::new(), wait });
        let ending = Ending(Arc::clone(&shared));
        threads
            .start("the wait for grace periods", Box::new(move || ending.0.serve()))
            .context("cannot start the thread that waits for grace periods")?;
        Ok(Self(shared))
    }

    /// Begins a grace period that covers all actions of this thread so far.
    pub(super) fn begin(&self) -> Grace {
        let mut periods = self.0.lock();
        periods.wanted += 1;
        self.0.changed.notify_all();
        Grace(periods.wanted)
    }

    pub(super) fn is_over(&self, grace: Grace) -> bool {
        self.0.lock().over >= grace.0
    }

    /// Waits until a grace period is over.
    pub(super) fn wait(&self, grace: Grace) {
        let waiting = |periods: &mut Periods| periods.over < grace.0 && !periods.ended;
        let periods = self.0.changed.wait_while(self.0.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        if periods.over < grace.0 {
            drop(periods);
            (self.0.wait)();
        }
    }
}

impl Drop for GracePeriods {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// Wakes up waiting threads when this thread ends, even if it panics.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Periods> {
        self.periods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        loop {
            let waiting = |periods: &mut Periods| periods.over == periods.wanted && !periods.ended;
            let periods = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
            if periods.ended {
                return;
            }
            let wanted = periods.wanted;
            drop(periods);
            (self.wait)();
            self.lock().over = wanted;
            self.changed.notify_all();
        }
    }
}

/// Waits until the program has finished every packet for which it may be reading a discarded table.
fn wait_for_packets() {
    // SAFETY: the system call accesses no memory. MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and XDP programs
    // run inside RCU read-side critical sections.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        // This kernel (with `nohz_full`) does not provide the command. One run of the program takes only microseconds.
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::atomic::Ordering};

    use shuttle::sync::atomic::AtomicBool;

    use super::*;
    use crate::threads::Shuttled;

    const SCHEDULES: usize = 500;

    #[test]
    fn when_grace_periods_follow_each_other_then_they_end_in_order() {
        shuttle::check_random(
            || {
                let periods = GracePeriods::waiting_by(&Shuttled, Box::new(shuttle::thread::yield_now)).unwrap();
                let (first, second) = (periods.begin(), periods.begin());
                assert!(first < second);
                periods.wait(second);
                assert!(periods.is_over(first) && periods.is_over(second));
                let third = periods.begin();
                periods.wait(third);
                assert!(periods.is_over(third));
            },
            SCHEDULES,
        );
    }

    #[test]
    fn when_a_grace_period_begins_then_it_ends_only_after_a_later_wait() {
        shuttle::check_random(
            || {
                let packet_has_left = Arc::new(AtomicBool::new(true));
                let left = Arc::clone(&packet_has_left);
                let wait = move || {
                    while !left.load(Ordering::SeqCst) {
                        shuttle::thread::yield_now();
                    }
                };
                let periods = Arc::new(GracePeriods::waiting_by(&Shuttled, Box::new(wait)).unwrap());
                // The thread may already be waiting for this grace period, so this call begins another grace period.
                periods.begin();
                packet_has_left.store(false, Ordering::SeqCst);
                let grace = periods.begin();
                let left = Arc::clone(&packet_has_left);
                let packet = shuttle::thread::spawn(move || left.store(true, Ordering::SeqCst));
                periods.wait(grace);
                assert!(packet_has_left.load(Ordering::SeqCst));
                packet.join().unwrap();
            },
            SCHEDULES,
        );
    }

    /// In this test, the threads end immediately, as after a panic.
    struct Lost;

    impl Threads for Lost {
        fn start(&self, _: &'static str, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
            drop(work);
            Ok(())
        }
    }

    #[test]
    fn when_the_waiting_thread_is_gone_then_no_caller_waits_for_it() {
        shuttle::check_random(
            || {
                let periods = GracePeriods::spawn(&Lost).unwrap();
                let grace = periods.begin();
                periods.wait(grace);
            },
            1,
        );
    }
}
