//! Measures the cost of the kernel program per packet: nanoseconds by `BPF_PROG_TEST_RUN`, net of a program that does
//! nothing.
//!
//! The kernel gives a program its own output again on each repeat, so that a forwarded packet's TTL would run out. A
//! *feeder*, a small program, therefore restores the frame (with the next client's source address) and continues with
//! the measured program by a tail call. The benchmark subtracts the cost of the same feeder in front of the empty
//! program. If the measured program adds an outer header, the empty program moves the start of the frame as well, and
//! the cost of that move, measured separately, is added again. Packets that the program passes need no feeder.
//!
//! Every run is checked against the program's counters: all its packets forwarded, or all passed.
//!
//! With `--live` real frames cross veth pairs instead, through the kernel program and through a bare program that only
//! sends them back.
//!
//! *Yardsticks*, small programs that do what other load balancers do, are measured in the same turns. With `--against`,
//! the benchmark also measures the same paths of another commit's program, and fails if this program's are slower.

mod against;
mod bench;
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

use crate::{bench::Bench, scene::Scene};

const XDP_TX: i32 = 3;

/// Measures every path of the kernel program, and yardsticks beside them; needs root.
#[derive(Parser)]
struct Options {
    /// Instead: send real frames from veth to veth, and count what comes back.
    #[arg(long, conflicts_with_all = ["against", "serve"])]
    live: bool,
    /// Print JSON.
    #[arg(long, conflicts_with_all = ["against", "serve"])]
    json: bool,
    /// Instead: measure in turns with this program, bench-path of another commit, and fail if a path has become slower.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Instead: measure what the input names, run by run.
    #[arg(long, hide = true, conflicts_with = "against")]
    serve: bool,
    /// Runs of each path, interleaved, of which the fastest counts (with --live and --against, the median).
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(9..))]
    rounds: u32,
    /// Only paths with this in their names, and the reference path.
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with_all = ["serve", "live"])]
    only: String,
}

fn main() -> ExitCode {
    outcome(perform(&Options::parse()))
}

fn perform(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it loads the program into the kernel");
    // Each CPU has its own counters and limits.
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    if options.live {
        return live::perform(options.rounds, options.json);
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
        report::print(&bench.series(options.rounds, wanted)?, options.json)
    }
}

/// Gives this thread priority over ordinary threads on this CPU. CPU time does not include those threads, but they
/// would displace data in the caches. The caller must do this after the set-up: while interfaces are created, the
/// kernel lets threads spin for a lock whose holder would never run.
pub(crate) fn go_first() {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the structure outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } < 0 {
        eprintln!("other work on this CPU will be felt: {}", io::Error::last_os_error());
    }
}
