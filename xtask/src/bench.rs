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
}

/// Sets up and runs one benchmark, or all of them.
pub(crate) fn bench(only: Option<Benchmark>) -> Result<()> {
    let wanted = |benchmark| only.is_none_or(|only| only == benchmark);
    if wanted(Benchmark::Path) {
        ensure_root("the benchmark of the kernel program", "bench")?;
    }
    setup(false)?;
    if wanted(Benchmark::Table) {
        run(cargo().args(["bench", "--package", "balancer-userspace", "--bench", "maglev"]))?;
    }
    if wanted(Benchmark::Checks) {
        run(cargo().args(["bench", "--package", "balancer-userspace", "--bench", "checks"]))?;
    }
    if wanted(Benchmark::Path) {
        run(cargo().args(["build", "--release", "--package", "balancer-tests", "--bin", "bench-path"]))?;
        run(&mut program(built("release")?.join("bench-path")))?;
    }
    Ok(())
}
