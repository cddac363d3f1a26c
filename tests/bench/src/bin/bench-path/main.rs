//! Measures the cost of the kernel program per packet in nanoseconds, with `BPF_PROG_TEST_RUN`. The benchmark subtracts
//! the cost of an empty program from all results.
//!
//! The kernel passes a program's output to the program again on each repetition, so a forwarded packet would soon run
//! out of TTL. A small program, the *feeder*, therefore restores the frame (with the next client's source address), and
//! then calls the measured program by a tail call. From the result with a feeder, the benchmark subtracts the cost of
//! the same feeder in front of the empty program. If the measured program adds an outer header, the empty program also
//! moves the start of the frame by the same amount. The benchmark measures the cost of moving the frame's start
//! separately, and adds this cost to the result. Packets that the program passes need no feeder.
//!
//! The benchmark checks every run by the program's counters: the program must have forwarded or passed all packets.
//!
//! With `--live`, the benchmark sends real frames through veth pairs instead of repeating frames in the kernel's test
//! run. The real frames go through the kernel program, and for comparison through a bare program that only sends frames
//! back.
//!
//! *Yardsticks* are small programs that do the work of other load balancers. The benchmark measures yardsticks and
//! paths in the same rounds. With `--against`, the benchmark also measures the paths with the kernel program of another
//! commit, and fails if the current commit's program is slower.

mod against;
mod bench;
mod both;
mod feeder;
mod gate;
mod ground;
mod live;
mod many;
mod paced;
mod paths;
mod report;
mod scene;
mod serve;
mod services;
mod yardsticks;

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use balancer_testkit::outcome::outcome;
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{bench::Bench, both::Second, scene::Scene};

const XDP_TX: i32 = 3;

/// Measures every path of the kernel program, and yardsticks beside them; needs root.
#[derive(Parser)]
struct Options {
    /// Instead: send real frames through veth pairs, and count the frames that come back.
    #[arg(long, conflicts_with_all = ["against", "serve"])]
    live: bool,
    /// Instead: compare with PROGRAM, the bench-path of another commit, in turns, and fail if a path has become slower.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Instead: measure the paths that the input names, run by run.
    #[arg(long, hide = true, conflicts_with = "against")]
    serve: bool,
    /// Instead: measure each path on one CPU, and on two CPUs at the same time, which share the program and its maps.
    #[arg(long, value_name = "2", value_parser = clap::value_parser!(u32).range(2..=2))]
    #[arg(conflicts_with_all = ["against", "serve", "live"])]
    cpus: Option<u32>,
    /// Number of runs of each path, in turns. The result is the fastest run, or the median with --live and --against.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(9..))]
    rounds: u32,
    /// Only paths whose names contain TEXT, and the reference path.
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with_all = ["serve", "live"])]
    only: String,
}

fn main() -> ExitCode {
    outcome(perform(&Options::parse()))
}

fn perform(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it loads the program into the kernel");
    // Each CPU has separate counters and limits, so the benchmark stays on one CPU.
    let second = options.cpus.map(|_| Second::find()).transpose()?;
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    if options.live {
        return live::perform(options.rounds);
    }
    if let Some(before) = &options.against {
        return against::perform(before, options.rounds, &options.only);
    }
    ground::enter()?;
    if options.serve {
        serve::serve()
    } else {
        let wanted = |name: &str| name == paths::REFERENCE || name.contains(&options.only);
        let mut bench = Bench::new(Scene::load_all()?)?;
        go_first();
        if let Some(second) = second {
            return report::print_both(&bench.on_two(options.rounds, wanted, second)?);
        }
        report::print(&bench.series(options.rounds, wanted)?)
    }
}

/// Gives the calling thread priority over ordinary threads on the same CPU. CPU time does not include the time of
/// ordinary threads, but ordinary threads would displace data in the caches. The caller must finish the set-up before
/// this call: while the kernel creates interfaces, threads spin for locks, and the owner of a lock would never run.
pub(crate) fn go_first() {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the structure with the parameters outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } < 0 {
        eprintln!("other work on this CPU will be felt: {}", io::Error::last_os_error());
    }
}
