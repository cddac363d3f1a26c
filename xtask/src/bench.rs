//! `cargo xtask bench`.

mod against;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::{
    build::{Aim, programs},
    command::{built, cargo, ensure_root, program, run},
    setup::{Purpose, classics, setup},
};

use self::against::Against;
pub(crate) use self::against::{build_baseline, check_paths, program_may_differ};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// The time to build a lookup table, and to handle a failure.
    Table,
    /// The probability that the balancer forgets a known client that sends rarely.
    Memory,
    /// A thousand health checks every 2 s.
    Checks,
    /// The kernel program, path by path; needs root.
    Path,
    /// Real frames over veth pairs, compared with a program that only sends them back; needs root.
    Live,
    /// The time from the detection of a failure to its effect, on the wire; needs root.
    Failover,
    /// The clients that nginx, HAProxy and the balancer move when servers change: the README's table; installs nginx
    /// and HAProxy; needs root.
    Sticky,
    /// The cost of a connection through the balancer, HAProxy, nginx and nftables, and without any of them; installs
    /// HAProxy, nginx and nftables; needs root.
    Proxy,
}

/// The program that measures the kernel program.
pub(crate) const PATH: &str = "bench-path";

/// What runs a benchmark.
enum Runner {
    /// A benchmark that `cargo bench` runs: its package and name.
    Bench([&'static str; 2]),
    /// A program that needs root, and the arguments that select the benchmark.
    Binary(&'static str, &'static [&'static str]),
}

impl Benchmark {
    const fn runner(self) -> Runner {
        match self {
            Self::Table => Runner::Bench(["balancer-control", "maglev"]),
            Self::Memory => Runner::Bench(["balancer-common", "seen"]),
            Self::Checks => Runner::Bench(["balancer-checks", "checks"]),
            Self::Path => Runner::Binary(PATH, &[]),
            Self::Live => Runner::Binary(PATH, &["--live"]),
            Self::Failover => Runner::Binary("bench-failover", &[]),
            Self::Sticky => Runner::Binary("bench-sticky", &[]),
            Self::Proxy => Runner::Binary("bench-proxy", &[]),
        }
    }
}

/// Installs the load balancers with which benchmarks compare this balancer, if possible. A benchmark reports and skips
/// load balancers that are missing.
fn install_classics() {
    if let Err(error) = classics() {
        eprintln!("{error:#}; what is missing is left out");
    }
}

/// Sets up and runs one benchmark.
pub(crate) fn bench(only: Benchmark, against: Option<&str>, options: &[String]) -> Result<()> {
    if let Some(revision) = against {
        ensure!(
            only == Benchmark::Path,
            "--against is about the kernel program: `cargo xtask bench path --against REV`"
        );
        return beside(&Against::revision(revision)?, options);
    }
    let (binary, what) = match only.runner() {
        Runner::Bench([package, name]) => {
            setup(Purpose::Run)?;
            let bench = ["bench", "--locked", "--package", package, "--bench", name, "--"];
            return run(cargo().args(bench).args(options));
        }
        Runner::Binary(binary, what) => (binary, what),
    };
    ensure_root("a benchmark of the kernel program", "bench")?;
    setup(Purpose::Run)?;
    if matches!(only, Benchmark::Proxy | Benchmark::Sticky) {
        install_classics();
    }
    // Also build the balancer, because the benchmark may run it.
    programs(&["balancer", binary], Aim::Release)?;
    run(program(built("release")?.join(binary)).args(what).args(options))
}

/// Measures the kernel program of this tree and the kernel program of another commit alternately.
fn beside(other: &Against, options: &[String]) -> Result<()> {
    ensure_root("a benchmark of the kernel program", "bench path --against REV")?;
    setup(Purpose::Run)?;
    programs(&[PATH], Aim::Test)?;
    other.build()?;
    other.compare(&built("debug")?.join(PATH), options)
}
