//! `cargo xtask bench --all`: puts the results of all benchmarks on one page.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum as _};

use super::{BENCHES, BINARIES, Benchmark, cargo_bench, install_classics};
use crate::{
    build::{Aim, programs},
    command::{built, ensure_root, program, root, run, run_within},
    setup::{Purpose, setup},
};

/// The program that writes the page of results.
const REPORT: &str = "bench-report";
/// The directory of the book's pictures.
const BOOK: &str = "docs/src/charts";
/// The time limit of each benchmark: the longest benchmark takes less than half of this limit.
const LIMIT: Duration = Duration::from_secs(600);

/// The benchmarks on the page in order, with their options. The page leaves out long benchmarks that have further
/// requirements.
const WANTED: [(Benchmark, &[&str]); 11] = [
    (Benchmark::Path, &[]),
    (Benchmark::Live, &[]),
    (Benchmark::Proxy, &["--rounds", "15"]),
    (Benchmark::Sticky, &[]),
    (Benchmark::Even, &[]),
    (Benchmark::Slow, &["--rounds", "2"]),
    (Benchmark::Failover, &["--rounds", "15"]),
    (Benchmark::Scale, &[]),
    (Benchmark::Metrics, &[]),
    (Benchmark::Checks, &[]),
    (Benchmark::Table, &["--warm-up-time", "1", "--measurement-time", "3"]),
];

/// The options for running all benchmarks at once.
#[derive(Clone, Debug, Args)]
pub(crate) struct Page {
    /// Run all benchmarks but `memory` and `fleet`, and put samples, tables and pictures in one directory. Without a
    /// name, --all is the default.
    #[arg(long, conflicts_with = "only")]
    all: bool,
    /// The directory for the results, instead of target/bench.
    #[arg(long, value_name = "DIR", conflicts_with = "only")]
    out: Option<PathBuf>,
    /// Also replace the pictures in the book, docs/src/charts.
    #[arg(long, conflicts_with = "only")]
    book: bool,
}

impl Page {
    /// Builds everything, runs the benchmarks, and writes the page.
    pub(super) fn make(&self) -> Result<()> {
        ensure_root("a benchmark of the kernel program", "bench --all")?;
        let out = match &self.out {
            Some(out) => env::current_dir()?.join(out),
            None => built("bench")?,
        };
        setup(Purpose::Run)?;
        install_classics();
        build()?;
        let raw = out.join("raw");
        fs::create_dir_all(&raw).with_context(|| format!("cannot make {}", raw.display()))?;
        let load = load();
        let begin = Instant::now();
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (benchmark, options) in WANTED {
            let name = name(benchmark);
            eprintln!("{name}, after {} s", begin.elapsed().as_secs());
            match measure(benchmark, options, &raw.join(&name)) {
                Ok(()) => done.push(benchmark),
                Err(error) => {
                    eprintln!("{name}: {error:#}");
                    failed.push(name);
                }
            }
        }
        let mut report = program(built("release")?.join(REPORT));
        report.arg(&out).args(["--command", "cargo xtask bench --all", "--load", &load]);
        report.args(["--seconds", &begin.elapsed().as_secs().to_string()]);
        run(of(&mut report, &done, &failed, &raw)?)?;
        if self.book {
            copy_pictures(&out)?;
        }
        ensure!(failed.is_empty(), "failed, and not on the page: {}", failed.join(", "));
        Ok(())
    }
}

/// Adds three lists to the arguments of `report`: the page's parts, the finished benchmarks and the failed benchmarks.
fn of<'a>(report: &'a mut Command, done: &[Benchmark], failed: &[String], raw: &Path) -> Result<&'a mut Command> {
    for &benchmark in done {
        if benchmark == Benchmark::Table {
            report.arg("--criterion").arg(built("criterion")?);
        } else {
            report.arg("--printed").arg(raw.join(name(benchmark)).with_extension("json"));
        }
    }
    for name in failed {
        report.args(["--failed", name]);
    }
    Ok(report)
}

fn name(benchmark: Benchmark) -> String {
    benchmark.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn is_wanted(benchmark: Benchmark) -> bool {
    WANTED.iter().any(|(wanted, _)| *wanted == benchmark)
}

/// Builds all benchmarks before the first measurement.
fn build() -> Result<()> {
    let mut binaries = vec!["balancer", REPORT];
    binaries.extend(BINARIES.iter().filter(|(benchmark, ..)| is_wanted(*benchmark)).map(|(_, binary, _)| *binary));
    binaries.sort_unstable();
    binaries.dedup();
    programs(&binaries, Aim::Release)?;
    for (benchmark, bench) in BENCHES {
        if is_wanted(benchmark) {
            run(cargo_bench(bench).arg("--no-run"))?;
        }
    }
    Ok(())
}

/// Runs a benchmark, and writes the benchmark's output into a file.
fn measure(benchmark: Benchmark, options: &[&str], file: &Path) -> Result<()> {
    let mut command = if let Some((_, bench)) = BENCHES.iter().find(|(other, _)| *other == benchmark) {
        let mut command = cargo_bench(*bench);
        command.args(["--quiet", "--"]);
        command
    } else {
        let (_, binary, what) =
            BINARIES.iter().find(|(other, ..)| *other == benchmark).context("this benchmark has no program")?;
        let mut command = program(built("release")?.join(binary));
        command.args(*what);
        command
    };
    // Criterion stores samples in a directory of its own.
    let file = if benchmark == Benchmark::Table {
        file.with_extension("txt")
    } else {
        command.arg("--json");
        file.with_extension("json")
    };
    let output = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    run_within(LIMIT, command.args(options).stdout(output))
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn copy_pictures(out: &Path) -> Result<()> {
    let book = root().join(BOOK);
    fs::create_dir_all(&book).with_context(|| format!("cannot make {BOOK}"))?;
    for entry in fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|end| end == "svg")) else {
            continue;
        };
        fs::copy(&path, book.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::{BENCHES, BINARIES, Benchmark, WANTED, is_wanted, name};

    #[test]
    fn when_a_benchmark_exists_then_it_has_one_program() {
        for benchmark in Benchmark::value_variants() {
            let benches = BENCHES.iter().filter(|(other, _)| other == benchmark).count();
            let binaries = BINARIES.iter().filter(|(other, ..)| other == benchmark).count();
            assert_eq!(benches + binaries, 1, "{}", name(*benchmark));
        }
    }

    #[test]
    fn when_a_benchmark_does_not_take_long_then_it_is_on_the_page() {
        let missing = Benchmark::value_variants().iter().filter(|benchmark| !is_wanted(**benchmark));
        assert_eq!(missing.map(|benchmark| name(*benchmark)).collect::<Vec<_>>(), ["memory", "fleet"]);
        assert_eq!(WANTED.len() + 2, Benchmark::value_variants().len());
    }
}
