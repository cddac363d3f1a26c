//! Measures single runs of paths when another process requests them. By such requests, one process can measure two
//! kernel programs alternately, each with the benchmark that was built with the program. Each input line names a path;
//! each output line contains the duration of one run.

use std::{
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
    /// The paths that the process can measure.
    pub(crate) paths: Vec<String>,
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
                format!("{} cannot be driven; a benchmark without {OPTION} is too old", program.display())
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
                self.paths = paths;
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
        Ok(Self { child, input, output: BufReader::new(output).lines(), paths: Vec::new() })
    }

    /// Measures one run of a path. An inner error is an error of the measured path, after which other paths still work.
    pub(crate) fn run(&mut self, path: &str) -> Result<Result<Took, String>> {
        writeln!(self.input.as_mut().context("the input is piped")?, "{path}").context("asking for a run")?;
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
