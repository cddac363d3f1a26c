//! Measures paths while a second CPU runs the same path, on one program and one set of maps. What the CPUs share costs
//! more then than on one CPU alone.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{bench::PACKETS, go_first, ground};

/// The number of the second CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Second(usize);

impl Second {
    /// Returns a CPU that this process may use beside the calling thread's. Call this function before the thread stays
    /// on one CPU.
    ///
    /// # Errors
    /// Fails if there is no such CPU.
    pub(crate) fn find() -> Result<Self> {
        let (own, all) = (sched_getcpu()?, nix::sched::sched_getaffinity(Pid::from_raw(0))?);
        let mut others = (0..CpuSet::count()).filter(|&cpu| cpu != own && all.is_set(cpu).unwrap_or(false));
        others.next().map(Self).context("--cpus 2 needs a second CPU")
    }
}

/// The times per packet of a path in ns, without the times of the empty program in the same situation.
pub(crate) struct Both {
    pub(crate) path: String,
    /// The time on one CPU while the other CPU has nothing to do.
    pub(crate) alone: f64,
    /// The time on one CPU while the other CPU runs the same path.
    pub(crate) together: f64,
}

/// The runs of a program on the second CPU.
pub(crate) struct Beside {
    program: OwnedFd,
    frame: Vec<u8>,
}

impl Beside {
    /// Makes runs that begin `ahead` packets after the packet in `frame`.
    pub(crate) fn new(program: BorrowedFd<'_>, frame: &[u8], ahead: u32) -> Result<Self> {
        let frame = if ahead == 0 { frame.to_vec() } else { ground::run(program, frame, ahead)?.frame };
        Ok(Self { program: program.try_clone_to_owned()?, frame })
    }

    /// Runs the program on the second CPU, again and again, during all of `measure`. Returns the number of packets on
    /// the second CPU.
    pub(crate) fn during(&mut self, Second(cpu): Second, measure: impl FnOnce() -> Result<()>) -> Result<u64> {
        let (ends, (began, begun)) = (AtomicBool::new(false), mpsc::channel());
        thread::scope(|scope| {
            let runs = scope.spawn(|| self.repeat(cpu, &ends, &began));
            // If the thread fails, its error says more than the closed channel.
            let measured = begun.recv().context("the second CPU does not run").and_then(|()| measure());
            ends.store(true, Ordering::Relaxed);
            let packets = runs.join().map_err(|_| anyhow!("the second CPU's thread panicked"))??;
            measured.map(|()| packets)
        })
    }

    fn repeat(&mut self, cpu: usize, ends: &AtomicBool, began: &mpsc::Sender<()>) -> Result<u64> {
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        go_first();
        let mut packets = 0;
        while !ends.load(Ordering::Relaxed) {
            self.frame = ground::run(self.program.as_fd(), &self.frame, PACKETS)?.frame;
            packets += u64::from(PACKETS);
            // The receiver is gone after the first message that it needs.
            let _ = began.send(());
        }
        ensure!(packets > 0, "the second CPU has run nothing");
        Ok(packets)
    }
}
