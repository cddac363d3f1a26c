//! `cargo xtask bench`.

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    command::{built, cargo, ensure_root, program, run},
    setup::setup,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// Building a lookup table, and a failure.
    Table,
    /// A thousand health checks every 2 s.
    Checks,
    /// The kernel program, path by path; needs root.
    Path,
    /// A scrape of 100 services with 100 backends each; needs root.
    Metrics,
}

/// Sets up and runs one benchmark, or all of them.
pub(crate) fn bench(only: Option<Benchmark>) -> Result<()> {
    let wanted = |benchmark| only.is_none_or(|only| only == benchmark);
    if wanted(Benchmark::Path) || wanted(Benchmark::Metrics) {
        ensure_root("a benchmark of the kernel program", "bench")?;
    }
    setup(false)?;
    if wanted(Benchmark::Table) {
        run(cargo().args(["bench", "--package", "balancer-userspace", "--bench", "maglev"]))?;
    }
    if wanted(Benchmark::Checks) {
        run(cargo().args(["bench", "--package", "balancer-userspace", "--bench", "checks"]))?;
    }
    for (benchmark, binary) in [(Benchmark::Path, "bench-path"), (Benchmark::Metrics, "bench-metrics")] {
        if wanted(benchmark) {
            run(cargo().args(["build", "--release", "--package", "balancer-tests", "--bin", binary]))?;
            run(&mut program(built("release")?.join(binary)))?;
        }
    }
    Ok(())
}
