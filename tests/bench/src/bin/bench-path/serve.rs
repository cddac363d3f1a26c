//! Measures single runs of paths when another process requests them. By such requests, one process can measure two
//! kernel programs alternately, each with the benchmark that was built with the program. Each input line names a path;
//! each output line contains the duration of one run.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Lines, Write as _, stdin, stdout},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{bench::Bench, gate::Took, go_first, scene::Scene};

/// The option that makes the benchmark measure runs on request.
pub(crate) const OPTION: &str = "--serve";

/// The first lines that the benchmark writes in this mode.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stage {
    /// The kernel has loaded the programs, but the clients of the programs are not known yet. Older versions of the
    /// benchmark do not write the line `Loaded`.
    Loaded { programs: usize },
    /// The server is ready to measure the listed paths.
    Ready { paths: Vec<String> },
}

/// The result that the process reports for one run.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Took { full: f64, empty: f64 },
    Failed(String),
}

/// Measures the paths that the input names, until the input ends.
pub(crate) fn serve() -> Result<()> {
    let scenes = Scene::load_all()?;
    say(&Stage::Loaded { programs: scenes.len() })?;
    let mut bench = Bench::new(scenes)?;
    go_first();
    say(&Stage::Ready { paths: bench.names().map(str::to_owned).collect() })?;
    for path in stdin().lock().lines() {
        say(&match bench.once(&path?) {
            Ok(Took { full, empty }) => Answer::Took { full, empty },
            Err(error) => Answer::Failed(format!("{error:#}")),
        })?;
    }
    Ok(())
}

fn say(line: &impl Serialize) -> Result<()> {
    let mut output = stdout().lock();
    writeln!(output, "{}", serde_json::to_string(line)?)?;
    Ok(output.flush()?)
}

/// A process that measures paths on request, until the input of the process ends.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    /// The paths that the process can measure, by their present names.
    pub(crate) paths: Vec<String>,
    /// The process's own names of paths whose names have changed.
    former: HashMap<String, String>,
}

/// The end of the names that paths with many clients had in older benchmarks.
const FED: &str = " (fed)";

/// The present names of `paths`, and the former names of those whose names have changed.
fn named(paths: Vec<String>) -> (Vec<String>, HashMap<String, String>) {
    let mut former = HashMap::new();
    for path in &paths {
        if let Some(name) = path.strip_suffix(FED)
            && !paths.iter().any(|path| path == name)
        {
            former.insert(name.to_owned(), path.clone());
        }
    }
    let present = paths.into_iter().map(|path| match path.strip_suffix(FED) {
        Some(name) if former.contains_key(name) => name.to_owned(),
        _ => path,
    });
    (present.collect(), former)
}

impl Server {
    /// Starts several processes, and waits until all processes are ready. The processes load their kernel programs one
    /// after another. If processes loaded their programs at the same time, the kernel would interleave the programs in
    /// memory. A path whose steps are far apart could then be a fifth slower.
    pub(crate) fn start<const COUNT: usize>(programs: [&Path; COUNT]) -> Result<[Self; COUNT]> {
        let mut servers = Vec::new();
        for program in programs {
            let mut server = Self::spawn(program)?;
            server.advance().with_context(|| {
                format!("{} cannot be driven: a benchmark of before there was {OPTION}?", program.display())
            })?;
            servers.push(server);
        }
        for (server, program) in servers.iter_mut().zip(programs) {
            while server.paths.is_empty() {
                server.advance().with_context(|| format!("{} is not ready", program.display()))?;
            }
        }
        servers.try_into().ok().context("as many servers as programs")
    }

    /// Waits until the process reports its next stage.
    fn advance(&mut self) -> Result<()> {
        let stage = self.listen()?;
        match serde_json::from_str(&stage).with_context(|| format!("the stage of a benchmark: {stage}"))? {
            Stage::Loaded { .. } => {}
            Stage::Ready { paths } => {
                ensure!(!paths.is_empty(), "it has no paths");
                (self.paths, self.former) = named(paths);
            }
        }
        Ok(())
    }

    fn spawn(program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(OPTION).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("the output is piped")?;
        let input = child.stdin.take();
        Ok(Self { child, input, output: BufReader::new(output).lines(), paths: Vec::new(), former: HashMap::new() })
    }

    /// Measures one run of a path. An inner error is an error of the measured path, after which other paths still work.
    pub(crate) fn run(&mut self, path: &str) -> Result<Result<Took, String>> {
        let own = self.former.get(path).map_or(path, String::as_str);
        writeln!(self.input.as_mut().context("the input is piped")?, "{own}").context("asking for a run")?;
        let line = self.listen()?;
        Ok(match serde_json::from_str(&line).with_context(|| format!("what a run took: {line}"))? {
            Answer::Took { full, empty } => {
                ensure!(full > 0.0, "{path}: a run that took no time");
                Ok(Took { full, empty })
            }
            Answer::Failed(why) => Err(why),
        })
    }

    fn listen(&mut self) -> Result<String> {
        Ok(self.output.next().context("it has ended")??)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.input.take();
        if let Err(error) = self.child.wait() {
            eprintln!("waiting for a benchmark's end: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_older_benchmark_names_a_path_otherwise_then_the_path_has_its_present_name() {
        let paths = ["a, 1 client", "a, 1 client (fed)", "a, 1M clients (fed)"].map(str::to_owned).to_vec();
        let (present, former) = named(paths);
        assert_eq!(present, ["a, 1 client", "a, 1 client (fed)", "a, 1M clients"]);
        assert_eq!(former, HashMap::from([("a, 1M clients".to_owned(), "a, 1M clients (fed)".to_owned())]));
    }
}
