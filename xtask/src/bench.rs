//! `cargo xtask bench`.

mod against;
mod page;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    build::{Aim, programs},
    command::{built, cargo, ensure_root, program, run},
    setup::{Purpose, classics, setup},
};

use self::against::Against;
pub(crate) use self::{
    against::{build_baseline, check_paths},
    page::Page,
};

/// The subject of a benchmark.
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
    /// The cost of starts and changes, and memory, with 1,000 services of 16 backends each; needs root.
    Scale,
    /// A scrape of 100 services with 100 backends each; needs root.
    Metrics,
    /// The time from the detection of a failure to its effect, on the wire; needs root.
    Failover,
    /// 32 members of a fleet that know a million clients, on a real etcd; needs root and etcd-server.
    Fleet,
    /// The clients that nginx, HAProxy and the balancer move when servers change: the README's table; installs nginx
    /// and HAProxy; needs root.
    Sticky,
    /// A simulated day of clients with uneven load, with and without `bounded_load`, and by HAProxy's rules.
    Even,
    /// The delays of new clients if one of four CPU-bound servers is slow, with and without `bounded_load` by latency;
    /// needs root.
    Slow,
    /// The cost of a connection through the balancer, HAProxy, nginx and nftables, and without any of them; installs
    /// HAProxy, nginx and nftables; needs root.
    Proxy,
}

/// The program that measures the kernel program.
pub(crate) const PATH: &str = "bench-path";

/// Benchmarks that are separate programs and need root, each with the argument that selects the benchmark.
const BINARIES: [(Benchmark, &str, &[&str]); 10] = [
    (Benchmark::Path, PATH, &[]),
    (Benchmark::Live, PATH, &["--live"]),
    (Benchmark::Scale, "bench-scale", &[]),
    (Benchmark::Metrics, "bench-metrics", &[]),
    (Benchmark::Failover, "bench-failover", &[]),
    (Benchmark::Fleet, "bench-fleet", &[]),
    (Benchmark::Sticky, "bench-sticky", &[]),
    (Benchmark::Proxy, "bench-proxy", &[]),
    (Benchmark::Even, "bench-even", &[]),
    (Benchmark::Slow, "bench-slow", &[]),
];

/// The package and the name of each benchmark that `cargo bench` runs.
const BENCHES: [(Benchmark, [&str; 2]); 3] = [
    (Benchmark::Table, ["balancer-control", "maglev"]),
    (Benchmark::Memory, ["balancer-common", "seen"]),
    (Benchmark::Checks, ["balancer-daemon", "checks"]),
];

/// Returns the `cargo bench` command for a benchmark.
fn cargo_bench([package, name]: [&str; 2]) -> Command {
    let mut command = cargo();
    command.args(["bench", "--locked", "--package", package, "--bench", name]);
    command
}

/// Installs the load balancers with which benchmarks compare this balancer, if possible. A benchmark reports and skips
/// load balancers that are missing.
fn install_classics() {
    if let Err(error) = classics() {
        eprintln!("{error:#}; what is missing is left out");
    }
}

/// Sets up and runs one benchmark, or all benchmarks of the page.
pub(crate) fn bench(only: Option<Benchmark>, against: Option<&str>, page: &Page, options: &[String]) -> Result<()> {
    let Some(only) = only else { return page.make() };
    if let Some(revision) = against {
        ensure!(
            only == Benchmark::Path,
            "--against is about the kernel program: `cargo xtask bench path --against REV`"
        );
        return beside(&Against::revision(revision)?, options);
    }
    if let Some((_, bench)) = BENCHES.iter().find(|(benchmark, _)| *benchmark == only) {
        setup(Purpose::Run)?;
        return run(cargo_bench(*bench).arg("--").args(options));
    }
    let found = BINARIES.iter().find(|(benchmark, ..)| *benchmark == only);
    let (_, binary, what) = found.context("this benchmark has no program")?;
    ensure_root("a benchmark of the kernel program", "bench")?;
    setup(Purpose::Run)?;
    if matches!(only, Benchmark::Proxy | Benchmark::Sticky) {
        install_classics();
    }
    // Also build the balancer, because the benchmark may run it.
    programs(&["balancer", binary], Aim::Release)?;
    run(program(built("release")?.join(binary)).args(*what).args(options))
}

/// Measures the kernel program of this tree and the kernel program of another commit alternately.
fn beside(other: &Against, options: &[String]) -> Result<()> {
    ensure_root("a benchmark of the kernel program", "bench path --against REV")?;
    setup(Purpose::Run)?;
    programs(&[PATH], Aim::Test)?;
    other.build()?;
    other.compare(&built("debug")?.join(PATH), options)
}
