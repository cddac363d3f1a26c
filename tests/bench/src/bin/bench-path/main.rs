//! What the kernel program costs per packet: nanoseconds by `BPF_PROG_TEST_RUN`, net of a program that does nothing.
//!
//! The kernel gives a program its own output again on each repeat. For what leaves a packet as it was but for its MACs
//! that is the same packet again. Everything else runs behind a *feeder*, a small program that makes the frame what it
//! was (and its source the next client's), then goes on with the program by a tail call; the same feeder in front of the
//! empty program is what is taken off. Where the program puts an outer header in front, the empty program moves the start
//! of the frame as well, and what that costs, measured by itself, is added again.
//!
//! Every run is checked against the program's counters: all its packets forwarded, or all passed.
//!
//! With `--live` real frames cross veth pairs instead, through the kernel program and through one that sends them back.
//!
//! *Yardsticks*, small programs that do what other load balancers do, are measured in the same turns. With `--check` each
//! path's ratio to one of them is compared with `tests/bench/path.json`, which `--record` writes.

mod bench;
mod feeder;
mod gate;
mod ground;
mod live;
mod many;
mod paths;
mod recorded;
mod report;
mod scene;
mod services;
mod yardsticks;

use std::{io, process::ExitCode};

use anyhow::{Result, bail, ensure};
use balancer_bench::machine;
use balancer_testkit::outcome::outcome;
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::{bench::Bench, gate::Judged, yardsticks::LRU_HASH};

const XDP_TX: i32 = 3;
/// Series that are recorded.
const RECORDED: usize = 5;

/// Measures every path of the kernel program, and yardsticks beside them; needs root.
#[derive(Parser)]
struct Options {
    /// Instead: send real frames from veth to veth, and count what comes back.
    #[arg(long, conflicts_with_all = ["check", "record"])]
    live: bool,
    /// Print JSON.
    #[arg(long, conflicts_with_all = ["check", "record"])]
    json: bool,
    /// Fail if a path has become slower in comparison with its yardstick.
    #[arg(long, conflicts_with = "record")]
    check: bool,
    /// Write what `--check` compares with.
    #[arg(long)]
    record: bool,
    /// Runs of each path, interleaved, of which the fastest counts (with --live, the median).
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(9..))]
    rounds: u32,
    /// Only paths whose names have this in them, and the one that the others are compared with.
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with_all = ["check", "record", "live"])]
    only: String,
}

fn main() -> ExitCode {
    outcome(perform(&Options::parse()))
}

fn perform(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it loads the program into the kernel");
    // The program's counters and its limits are each CPU's own.
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    if let Err(error) = go_first() {
        eprintln!("other work on this CPU will be felt: {error}");
    }
    if options.live {
        return live::perform(options.rounds, options.json);
    }
    ground::enter()?;
    if options.check {
        check(options.rounds)
    } else if options.record {
        record(options.rounds)
    } else {
        let wanted = |name: &str| name == paths::REFERENCE || name.contains(&options.only);
        report::print(&Bench::new()?.series(options.rounds, wanted)?, options.json)
    }
}

/// Goes before ordinary threads on this CPU: CPU time leaves theirs out, but not the caches that they have used.
fn go_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the structure lives through the call.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(rounds: u32) -> Result<()> {
    let processor = machine::generation();
    let (committed, foreign) = recorded::committed(&processor)?;
    let measured: Vec<_> = paths::all().into_iter().map(|path| (LRU_HASH.to_owned(), path.name)).collect();
    gate::ensure_complete(&committed, &measured)?;
    let first = Bench::new()?.series(rounds, |_| true)?;
    let judged = gate::judge(&committed, first.figures()?, |suspects| {
        println!("measured again, as they were beyond their limits: {}", suspects.join("; "));
        // Anew, as where things lie in memory makes a difference as well.
        Bench::new()?.series(rounds, |name| suspects.iter().any(|suspect| suspect == name))?.figures()
    })?;
    report::print_judged(&first, &judged);
    let complaints: Vec<_> = judged.iter().filter(|judged| judged.slower).map(Judged::complaint).collect();
    if foreign {
        println!(
            "nothing is recorded for {processor}, so nothing fails; `cargo xtask bench path --record` does. In comparison with \
             other processors, {} of {} paths are slower:\n{}",
            complaints.len(),
            judged.len(),
            complaints.join("\n")
        );
        return Ok(());
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!(
        "slower than recorded, in each of {} series:\n{}\nIf this is what a change is worth, record it with `cargo xtask \
         bench path --record`",
        1 + gate::FURTHER_SERIES,
        complaints.join("\n")
    )
}

fn record(rounds: u32) -> Result<()> {
    let mut all = Vec::new();
    for number in 1..=RECORDED {
        let series = Bench::new()?.series(rounds, |_| true)?;
        println!("series {number} of {RECORDED}");
        report::print(&series, false)?;
        all.push(series.figures()?);
    }
    recorded::record(&machine::generation(), gate::medians(&all))
}
