//! Combines results that benchmarks have printed with `--json` into one report. `cargo xtask bench --all` runs the
//! benchmarks and then this program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use balancer_bench::report::{Report, criterion, document::Document, setting::Setting};
use balancer_testkit::outcome::outcome;
use clap::Parser;

/// The groups of the benchmark of lookup tables.
const GROUPS: [&str; 3] = ["build", "failure", "decision"];

/// Makes results.json, results.md and pictures from the results that benchmarks have printed.
#[derive(Parser)]
struct Options {
    /// Directory for the report.
    out: PathBuf,
    /// A file with the JSON output of a benchmark.
    #[arg(long)]
    printed: Vec<PathBuf>,
    /// The directory of Criterion's results, if lookup tables were measured.
    #[arg(long)]
    criterion: Option<PathBuf>,
    /// The name of a benchmark that failed.
    #[arg(long)]
    failed: Vec<String>,
    /// The command line that ran the benchmarks.
    #[arg(long)]
    command: String,
    /// The load of the machine before the benchmarks began.
    #[arg(long, default_value = "unknown")]
    load: String,
    /// The duration of all benchmarks, in seconds.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

fn main() -> ExitCode {
    outcome(report(Options::parse()))
}

fn report(options: Options) -> Result<()> {
    let Options { out, printed, criterion, failed, command, load, seconds } = options;
    let mut benchmarks = printed.iter().map(|file| Document::read(file)).collect::<Result<Vec<_>>>()?;
    benchmarks.extend(criterion.as_deref().map(table).transpose()?);
    let report = Report::new(Setting::here(command, load, Duration::from_secs(seconds)), benchmarks, failed);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    write(&out, "results.json", &(serde_json::to_string_pretty(&report)? + "\n"))?;
    write(&out, "results.md", &report.markdown())?;
    report.pictures().iter().try_for_each(|(name, picture)| write(&out, &format!("{name}.svg"), picture))
}

fn table(directory: &Path) -> Result<Document> {
    Ok(Document {
        benchmark: "table".to_owned(),
        title: "Building lookup tables".to_owned(),
        about:
            "65,537 slots, by kind of weights and number of backends; a failure: the live table after it; a decision: \
                all that the controller's core works out when a check fails for the last time. By Criterion."
                .to_owned(),
        series: criterion::read(directory, &GROUPS)?,
        left_out: Vec::new(),
    })
}

fn write(out: &Path, name: &str, text: &str) -> Result<()> {
    let file = out.join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
