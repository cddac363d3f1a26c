//! `cargo xtask bench`.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    build::programs,
    command::{built, cargo, ensure_root, program, run},
    setup::{Purpose, setup},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// Building a lookup table, and a failure.
    Table,
    /// How probably a known client with sparse packets is forgotten.
    Memory,
    /// A thousand health checks every 2 s.
    Checks,
    /// The kernel program, path by path; needs root.
    Path,
    /// Starts, changes and memory with 1,000 services of 16 backends each; needs root.
    Scale,
    /// A scrape of 100 services with 100 backends each; needs root.
    Metrics,
    /// From the detection of a failure to its effect, on the wire; needs root.
    Failover,
    /// 32 members of a fleet that know a million clients, on a real etcd; needs root and etcd-server.
    Fleet,
    /// Whom a change of the servers moves, by nginx, HAProxy and the balancer: the README's table; needs root, and as many
    /// of the two as are to be compared.
    Sticky,
    /// What a connection costs through the balancer, HAProxy, nginx, nftables and nobody; needs root, and as many of the
    /// three as are to be compared.
    Proxy,
}

/// What is done with ratios of the kernel program's speed to yardsticks that are measured beside it.
#[derive(Clone, Copy, Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct Gate {
    /// Of `path`: fail if a path is more than 15% slower, in comparison with its yardstick, than tests/bench/path.json says.
    #[arg(long, requires = "only")]
    check: bool,
    /// Of `path`: write tests/bench/path.json.
    #[arg(long, requires = "only")]
    record: bool,
}

impl Gate {
    fn option(self) -> Option<&'static str> {
        match self {
            Self { check: true, .. } => Some("--check"),
            Self { record: true, .. } => Some("--record"),
            Self { check: false, record: false } => None,
        }
    }
}

/// The program that measures the kernel program.
const PATH: &str = "bench-path";

/// Compares the kernel program's speed with what is committed, by the unoptimized program that the tests' build has made:
/// the kernel program is optimized in every build, and the time is the kernel's.
pub(crate) fn check_paths() -> Result<()> {
    run(program(built("debug")?.join(PATH)).arg("--check"))
}

/// Benchmarks that are programs of their own, and need root.
const BINARIES: [(Benchmark, &str); 7] = [
    (Benchmark::Path, PATH),
    (Benchmark::Scale, "bench-scale"),
    (Benchmark::Metrics, "bench-metrics"),
    (Benchmark::Failover, "bench-failover"),
    (Benchmark::Fleet, "bench-fleet"),
    (Benchmark::Sticky, "bench-sticky"),
    (Benchmark::Proxy, "bench-proxy"),
];

/// Sets up and runs one benchmark, or all of them.
pub(crate) fn bench(only: Option<Benchmark>, gate: Gate, options: &[String]) -> Result<()> {
    if let Some(option) = gate.option() {
        ensure!(
            only == Some(Benchmark::Path),
            "{option} is about the kernel program: `cargo xtask bench path {option}`"
        );
        ensure_root("a benchmark of the kernel program", &format!("bench path {option}"))?;
        setup(Purpose::Run)?;
        programs(&[PATH], false)?;
        return run(program(built("debug")?.join(PATH)).arg(option).args(options));
    }
    let wanted = |benchmark| only.is_none_or(|only| only == benchmark);
    if BINARIES.iter().any(|&(benchmark, _)| wanted(benchmark)) {
        ensure_root("a benchmark of the kernel program", "bench")?;
    }
    ensure!(
        options.is_empty() || BINARIES.iter().any(|&(benchmark, _)| only == Some(benchmark)),
        "{} goes to a benchmark's program, which this one has not",
        options.join(" ")
    );
    setup(Purpose::Run)?;
    if wanted(Benchmark::Table) {
        run(cargo().args(["bench", "--locked", "--package", "balancer-core", "--bench", "maglev"]))?;
    }
    if wanted(Benchmark::Memory) {
        run(cargo().args(["bench", "--locked", "--package", "balancer-common", "--bench", "seen"]))?;
    }
    if wanted(Benchmark::Checks) {
        run(cargo().args(["bench", "--locked", "--package", "balancer-daemon", "--bench", "checks"]))?;
    }
    for (benchmark, binary) in BINARIES {
        if wanted(benchmark) {
            // With the balancer that it may run.
            programs(&["balancer", binary], true)?;
            run(program(built("release")?.join(binary)).args(options))?;
        }
    }
    Ok(())
}
