//! Runs programs on packets, and measures the time per packet.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::asm::{Program, ProgramArray, Register, constant};
use nix::time::{ClockId, clock_gettime};

use crate::{
    XDP_TX,
    both::{Beside, Both, Second},
    feeder::feeder,
    gate::{Took, median},
    ground, paced,
    paths::{self, Path},
    scene::{SCENES, Scene},
    yardsticks::{self, Yardstick},
};

/// The number of packets in one run. Ten runs cover a million clients with one packet each.
pub(crate) const PACKETS: u32 = 100_000;
/// A duration that is longer than a tick of the client memory.
const A_TICK: Duration = Duration::from_secs(10);
/// The empty program runs once in `TURNS_PER_EMPTY` rounds.
const TURNS_PER_EMPTY: usize = 4;

/// A program, its next frame, and the measured times.
struct Runner {
    program: OwnedFd,
    frame: Vec<u8>,
    /// The time per packet of every run, in ns.
    runs: Vec<f64>,
    /// The map through which a feeder calls the measured program. The kernel empties the map when the map's last
    /// descriptor is closed.
    _next: Option<ProgramArray>,
}

impl Runner {
    fn new(program: BorrowedFd<'_>, frame: &[u8]) -> Result<Self> {
        Ok(Self { program: program.try_clone_to_owned()?, frame: frame.to_vec(), runs: Vec::new(), _next: None })
    }

    /// Runs the program once, and returns the XDP action for the last packet. The kernel reports only whole nanoseconds
    /// per packet, and waits for RCU before and after the run. The benchmark therefore measures the CPU time of the
    /// thread. The system call itself takes the same time for all programs.
    fn run(&mut self) -> Result<u32> {
        let start = cpu_time()?;
        let ran = ground::run(self.program.as_fd(), &self.frame, PACKETS)?;
        let ns = (cpu_time()? - start).as_nanos() as f64 / f64::from(PACKETS);
        self.runs.push(ns);
        self.frame = ran.frame;
        Ok(ran.action)
    }

    /// The time per packet of the program's fastest run.
    fn best(&self) -> f64 {
        self.runs.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// A path with the measured program and the empty program. If the path has a feeder, both programs use the same feeder.
pub(crate) struct Measured {
    path: Path,
    full: Runner,
    empty: Runner,
    /// Whether the program has already seen every client.
    is_warm: bool,
}

impl Measured {
    fn new(path: Path, program: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> Result<Self> {
        let frame = path.frame();
        let Some(feed) = &path.feed else {
            let (full, empty) = (Runner::new(program, &frame)?, Runner::new(empty, &frame)?);
            return Ok(Self { path, full, empty, is_warm: false });
        };
        let grower;
        let nothing = if path.grows == 0 {
            empty
        } else {
            let program = Program::default().copy(Register::R6, Register::R1).adjust_head(-path.grows);
            grower = program.set(Register::R0, XDP_TX).exit().load_frags()?;
            grower.as_fd()
        };
        // The frame begins with as many bytes as the program adds at the front.
        let fed = [vec![0; path.grows as usize], frame.clone()].concat();
        let behind = |program| -> Result<Runner> {
            let next = ProgramArray::new(program)?;
            let feeder = feeder(&frame, feed, path.grows, &next)
                .load_frags()
                .with_context(|| format!("{}: the feeder", path.name))?;
            Ok(Runner { _next: Some(next), ..Runner::new(feeder.as_fd(), &fed)? })
        };
        Ok(Self { full: behind(program)?, empty: behind(nothing)?, path, is_warm: false })
    }

    /// Sends one packet of every client through the program, because a client's first packet in a period makes the
    /// program read the client's entry. No period of the client memory ends during the warm-up, because the benchmark
    /// does not sweep.
    fn warm_up(&mut self) -> Result<()> {
        if !self.is_warm {
            self.is_warm = true;
            self.see_clients()?;
        }
        Ok(())
    }

    fn see_clients(&mut self) -> Result<()> {
        for _ in 0..self.path.clients().div_ceil(PACKETS) {
            self.full.run()?;
        }
        self.full.runs.clear();
        Ok(())
    }

    pub(crate) fn forget(&mut self) {
        self.full.runs.clear();
        self.empty.runs.clear();
    }

    pub(crate) fn run_empty(&mut self) -> Result<()> {
        ensure!(self.empty.run()? == XDP_TX as u32, "{}: the empty program did not answer XDP_TX", self.path.name);
        Ok(())
    }

    /// Runs the measured program and the empty program once.
    fn run_in(&mut self, scene: &Scene) -> Result<()> {
        self.run_empty()?;
        self.run_full(scene)
    }

    pub(crate) fn run_full(&mut self, scene: &Scene) -> Result<()> {
        self.run_counted(scene, |full| full.run().map(|_| PACKETS.into()))
    }

    /// Checks that the packets of a run, whose number `run` returns, have taken the path.
    fn run_counted(&mut self, scene: &Scene, run: impl FnOnce(&mut Runner) -> Result<u64>) -> Result<()> {
        if let Some(frame) = self.path.before() {
            ground::run(self.full.program.as_fd(), &frame, 1)?;
        }
        let before = scene.counted(&self.path)?;
        let packets = run(&mut self.full)?;
        let counted = scene.counted(&self.path)? - before;
        ensure!(
            counted == packets,
            "{}: {counted} of {packets} packets took the path that is measured",
            self.path.name
        );
        Ok(())
    }

    fn run_yardstick(&mut self, writes: bool) -> Result<()> {
        self.run_empty()?;
        let action = self.full.run()?;
        ensure!(action == XDP_TX as u32, "{}: the yardstick answered {action}, not XDP_TX", self.path.name);
        let written = self.full.frame.starts_with(&yardsticks::WRITTEN);
        ensure!(
            written == writes,
            "{}: the yardstick's MAC addresses are {:x?}",
            self.path.name,
            self.full.frame.get(..12)
        );
        Ok(())
    }

    /// Runs the measured program, and the empty program before it, while the second CPU runs the same program.
    fn run_beside(&mut self, scene: &Scene, second: Second, [full, empty]: &mut [Beside; 2]) -> Result<()> {
        empty.during(second, || self.run_empty())?;
        self.run_counted(scene, |runner| {
            let beside = full.during(second, || runner.run().map(drop))?;
            Ok(beside + u64::from(PACKETS))
        })
    }

    /// The runs of the second CPU, which are half of the clients ahead.
    fn beside(&self) -> Result<[Beside; 2]> {
        let of = |runner: &Runner, ahead| Beside::new(runner.program.as_fd(), &runner.frame, ahead);
        Ok([of(&self.full, self.path.clients() / 2)?, of(&self.empty, 0)?])
    }

    /// The mean time per packet over all runs in ns, without the time of the empty program.
    pub(crate) fn mean(&self) -> f64 {
        self.full.runs.iter().sum::<f64>() / self.full.runs.len() as f64 - self.empty.best()
    }

    /// The time per packet in ns, without the time of the empty program. `head` is the cost of moving the start of a
    /// frame.
    fn row(&self, head: f64) -> Row {
        let head = if self.path.grows == 0 { 0.0 } else { head };
        Row { path: self.path.clone(), net: self.full.best() - self.empty.best() + head }
    }
}

/// The cost of a path or of a yardstick.
pub(crate) struct Row {
    pub(crate) path: Path,
    /// The time per packet of the fastest runs in ns, without the time of the empty program.
    pub(crate) net: f64,
}

/// The results of paths and yardsticks, which the benchmark measured in the same rounds.
pub(crate) struct Series {
    /// The costs of the yardsticks, in the order of [`yardsticks::all`].
    pub(crate) yardsticks: Vec<Row>,
    /// The paths, in the order of [`paths::all`], followed by [`paths::paced`].
    pub(crate) paths: Vec<Row>,
}

/// The loaded programs and their paths.
pub(crate) struct Bench {
    scenes: [Scene; SCENES],
    yardsticks: Vec<(Measured, bool)>,
    paths: Vec<Measured>,
    moves: [Runner; 2],
}

impl Bench {
    /// Makes the clients of the loaded programs known. The function takes twenty seconds, and sleeps for most of that
    /// time.
    pub(crate) fn new(mut scenes: [Scene; SCENES]) -> Result<Self> {
        Scene::set_up(&mut scenes)?;
        let empty = constant(XDP_TX).load_frags()?;
        let mut yardsticks = Vec::new();
        for Yardstick { path, before, program, writes } in yardsticks::all()? {
            if let Some(before) = before {
                Measured::new(before, program.as_fd(), empty.as_fd())?.see_clients()?;
            }
            yardsticks.push((Measured::new(path, program.as_fd(), empty.as_fd())?, writes));
        }
        let mut paths = Vec::new();
        for path in paths::all() {
            let program = scenes[path.scene as usize].program();
            paths.push(Measured::new(path, program, empty.as_fd())?);
        }
        // A packet in a later tick than the client's first packet marks the client's entry as established.
        paths.iter_mut().try_for_each(Measured::see_clients)?;
        scenes.iter_mut().for_each(|scene| scene.pass(A_TICK));
        let moves = [Runner::new(moving(1)?.as_fd(), &[0; 64])?, Runner::new(moving(3)?.as_fd(), &[0; 64])?];
        Ok(Self { scenes, yardsticks, paths, moves })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(|measured| &*measured.path.name)
    }

    /// Runs a path once. Each run makes the kernel wait, so the benchmark runs the empty program only in some rounds.
    pub(crate) fn once(&mut self, path: &str) -> Result<Took> {
        let Self { scenes, paths, moves, .. } = self;
        let found = paths.iter_mut().find(|measured| measured.path.name == path);
        let measured = found.with_context(|| format!("there is no path {path}"))?;
        measured.warm_up()?;
        let grows = measured.path.grows != 0;
        if measured.full.runs.len().is_multiple_of(TURNS_PER_EMPTY) {
            measured.run_empty()?;
            if grows {
                moves.iter_mut().try_for_each(|runner| runner.run().map(drop))?;
            }
        }
        measured.run_full(&scenes[measured.path.scene as usize])?;
        let last = |runner: &Runner| runner.runs.last().copied().context("a run was recorded");
        let head = if grows { head(moves) } else { 0.0 };
        Ok(Took { full: last(&measured.full)?, empty: last(&measured.empty)? - head })
    }

    /// Runs all yardsticks and the `wanted` paths once in each of `rounds` rounds. Returns the results of the fastest
    /// runs.
    pub(crate) fn series(&mut self, rounds: u32, wanted: impl Fn(&str) -> bool) -> Result<Series> {
        let Self { scenes, yardsticks, paths, moves } = self;
        let mut paths: Vec<_> = paths.iter_mut().filter(|measured| wanted(&measured.path.name)).collect();
        for measured in
            yardsticks.iter_mut().map(|(measured, _)| measured).chain(paths.iter_mut().map(|path| &mut **path))
        {
            measured.warm_up()?;
            measured.forget();
        }
        for runner in moves.iter_mut() {
            runner.runs.clear();
        }
        for _ in 0..rounds {
            for runner in moves.iter_mut() {
                ensure!(runner.run()? == XDP_TX as u32, "the frame cannot be moved");
            }
            for (measured, writes) in yardsticks.iter_mut() {
                measured.run_yardstick(*writes)?;
            }
            for measured in &mut paths {
                measured.run_in(&scenes[measured.path.scene as usize])?;
            }
        }
        let head = head(moves);
        let mut rows: Vec<_> = paths.iter().map(|measured| measured.row(head)).collect();
        rows.extend(apart(rounds, wanted)?);
        Ok(Series { yardsticks: yardsticks.iter().map(|(measured, _)| measured.row(head)).collect(), paths: rows })
    }
}

impl Bench {
    /// Runs the `wanted` paths alone and beside the second CPU, in turns. Returns the results of the median runs: the
    /// CPUs do not always meet in the fastest run.
    pub(crate) fn on_two(&mut self, rounds: u32, wanted: impl Fn(&str) -> bool, second: Second) -> Result<Vec<Both>> {
        let Self { scenes, paths, .. } = self;
        let mut all = Vec::new();
        for measured in paths.iter_mut().filter(|measured| wanted(&measured.path.name)) {
            measured.warm_up()?;
            let mut beside = measured.beside()?;
            let (mut alone, mut together) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let scene = &scenes[measured.path.scene as usize];
                measured.forget();
                measured.run_in(scene)?;
                alone.push(measured.mean());
                measured.forget();
                measured.run_beside(scene, second, &mut beside)?;
                together.push(measured.mean());
            }
            let path = measured.path.name.clone();
            let of = |times| median(times).with_context(|| format!("{path} was not measured"));
            let (alone, together) = (of(alone)?, of(together)?);
            all.push(Both { path, alone, together });
        }
        Ok(all)
    }
}

/// Measures those `wanted` paths that need separate scenes.
fn apart(rounds: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let empty = constant(XDP_TX).load_frags()?;
    let path = paths::paced();
    if wanted(&path.name) {
        let mut scene = Scene::paced()?;
        let mut measured = Measured::new(path.clone(), scene.program(), empty.as_fd())?;
        rows.push(paced::row(path, &mut scene, &mut measured)?);
    }
    for path in paths::few().into_iter().filter(|path| wanted(&path.name)) {
        let mut scene = Scene::small(path.clone())?;
        let mut measured = Measured::new(path, scene.program(), empty.as_fd())?;
        measured.see_clients()?;
        scene.pass(A_TICK);
        measured.warm_up()?;
        for _ in 0..rounds {
            measured.run_in(&scene)?;
        }
        rows.push(measured.row(0.0));
    }
    Ok(rows)
}

/// Returns the cost in ns of moving the start of a frame once. The program `thrice` moves the start four times more
/// than the program `once`: twice forward and twice back.
fn head([once, thrice]: &[Runner; 2]) -> f64 {
    (thrice.best() - once.best()) / 4.0
}

/// Builds a program that moves the start of the frame forward and back `times` times.
fn moving(times: u32) -> Result<OwnedFd> {
    let program = Program::default().copy(Register::R6, Register::R1);
    let program = (0..times).fold(program, |program, _| program.adjust_head(20).adjust_head(-20));
    Ok(program.set(Register::R0, XDP_TX).exit().load_frags()?)
}
