//! What the kernel program costs per packet: nanoseconds by `BPF_PROG_TEST_RUN`, net of a program that does nothing.
//!
//! The kernel gives a program its own output again on each repeat. For what leaves a packet as it was but for its MACs
//! that is the same packet again. Everything else runs behind a *feeder*, a small program that makes the frame what it
//! was (and its source the next client's), then goes on with the program by a tail call; the same feeder in front of the
//! empty program is what is taken off. Where the program puts an outer header in front, the empty program moves the start
//! of the frame as well, and what that costs, measured by itself, is added again.
//!
//! Every run is checked against the program's counters: all its packets forwarded, or all passed.

mod feeder;
mod paths;
mod report;
mod scene;

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_tests::{
    asm::{Program, ProgramArray, Register, constant},
    outcome::outcome,
    prog_run,
};
use clap::Parser;
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use crate::{
    feeder::feeder,
    paths::Path,
    scene::{LOOPBACK, Scene},
};

const XDP_TX: i32 = 3;
/// Packets of one run: ten of them see a million clients.
const PACKETS: u32 = 100_000;

/// Measures every path of the kernel program; needs root.
#[derive(Parser)]
struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Runs of each path, interleaved, of which the fastest counts.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(9..))]
    rounds: u32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    outcome(measure(options.rounds).and_then(|rows| report::print(&rows, options.json)))
}

/// A program, the frame it gets next, and its fastest run.
struct Runner {
    program: OwnedFd,
    frame: Vec<u8>,
    /// ns per packet.
    best: f64,
    /// What a feeder goes on with: the kernel empties the map with its last descriptor.
    _next: Option<ProgramArray>,
}

impl Runner {
    fn new(program: BorrowedFd<'_>, frame: &[u8]) -> Result<Self> {
        Ok(Self { program: program.try_clone_to_owned()?, frame: frame.to_vec(), best: f64::INFINITY, _next: None })
    }

    /// One run; the action of its last packet. The kernel answers in whole nanoseconds and waits for its RCU before and
    /// after, so what counts is the thread's CPU time; the system call's own is the same for all.
    fn run(&mut self) -> Result<u32> {
        let start = cpu_time()?;
        let ran = prog_run::run(self.program.as_fd(), &self.frame, LOOPBACK, PACKETS)?;
        let ns = (cpu_time()? - start).as_nanos() as f64 / f64::from(PACKETS);
        self.best = self.best.min(ns);
        self.frame = ran.frame;
        Ok(ran.action)
    }
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// A path with its program and the empty one, each behind the same feeder if it has one.
struct Measured {
    path: Path,
    full: Runner,
    empty: Runner,
}

/// What a path costs.
pub(crate) struct Row {
    /// The path.
    pub(crate) path: Path,
    /// ns per packet, net.
    pub(crate) net: f64,
}

fn measure(rounds: u32) -> Result<Vec<Row>> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it loads the program into the kernel");
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    // The program's counters and its limits are each CPU's own.
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;

    let scenes = Scene::all()?;
    let empty = constant(XDP_TX).load_frags()?;
    let mut measured = Vec::new();
    for path in paths::all() {
        let scene = &scenes[path.scene as usize];
        measured.push(prepare(path, scene, empty.as_fd())?);
    }
    let mut moves = [Runner::new(moving(1)?.as_fd(), &[0; 64])?, Runner::new(moving(3)?.as_fd(), &[0; 64])?];

    // The first packet of a client in a period of the memory reads its entry. No period ends here, as nobody sweeps.
    for Measured { path, full, .. } in &mut measured {
        for _ in 0..path.clients().div_ceil(PACKETS) {
            full.run()?;
        }
        full.best = f64::INFINITY;
    }
    for _ in 0..rounds {
        for runner in &mut moves {
            ensure!(runner.run()? == XDP_TX as u32, "the frame cannot be moved");
        }
        for Measured { path, full, empty } in &mut measured {
            ensure!(empty.run()? == XDP_TX as u32, "{}: the empty program did not answer XDP_TX", path.name);
            let scene = &scenes[path.scene as usize];
            let before = scene.counted(path)?;
            full.run()?;
            let counted = scene.counted(path)? - before;
            ensure!(
                counted == u64::from(PACKETS),
                "{}: {counted} of {PACKETS} packets took the path that is measured",
                path.name
            );
        }
    }
    // Two moves there and back more.
    let head = (moves[1].best - moves[0].best) / 4.0;
    Ok(measured
        .into_iter()
        .map(|Measured { path, full, empty }| {
            let head = if path.grows == 0 { 0.0 } else { head };
            Row { net: full.best - empty.best + head, path }
        })
        .collect())
}

fn prepare(path: Path, scene: &Scene, empty: BorrowedFd<'_>) -> Result<Measured> {
    let frame = path.frame();
    let Some(feed) = &path.feed else {
        let (full, empty) = (Runner::new(scene.program(), &frame)?, Runner::new(empty, &frame)?);
        return Ok(Measured { path, full, empty });
    };
    let grower;
    let nothing = if path.grows == 0 {
        empty
    } else {
        let program = Program::default().copy(Register::R6, Register::R1).adjust_head(-path.grows);
        grower = program.set(Register::R0, XDP_TX).exit().load_frags()?;
        grower.as_fd()
    };
    // What the program would have put in front.
    let fed = [vec![0; path.grows as usize], frame.clone()].concat();
    let behind = |program| -> Result<Runner> {
        let next = ProgramArray::new(program)?;
        let feeder = feeder(&frame, feed, path.grows, &next)
            .load_frags()
            .with_context(|| format!("{}: the feeder", path.name))?;
        Ok(Runner { _next: Some(next), ..Runner::new(feeder.as_fd(), &fed)? })
    };
    Ok(Measured { full: behind(scene.program())?, empty: behind(nothing)?, path })
}

/// A program that moves the start of the frame there and back so many times.
fn moving(times: u32) -> Result<OwnedFd> {
    let program = Program::default().copy(Register::R6, Register::R1);
    let program = (0..times).fold(program, |program, _| program.adjust_head(20).adjust_head(-20));
    Ok(program.set(Register::R0, XDP_TX).exit().load_frags()?)
}
