//! Reads logs, and shows the progress on the terminal.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use balancer_simulate::{
    census::{self, Census, Tally},
    format::{self, Format, Reader},
    lines::Lines,
};

use crate::Failure;

/// The number of lines from which the command guesses the format.
const GUESSED_FROM: usize = 100;

/// The overlap in seconds that consecutive logs of one program may have, because a program writes a line when the
/// request ends.
const ORDINARY_OVERLAP: i64 = 600;

/// The number of bytes read between two updates of the progress bar.
const STEP: u64 = 16 << 20;

/// The width of a full progress bar, in characters.
const WIDTH: u64 = 40;

/// A log whose first lines were read.
pub(super) struct Log {
    name: String,
    lines: Lines<Bar>,
    /// The format; `None` if the log is empty.
    format: Option<Format>,
    /// The first time in the log.
    begins: Option<i64>,
}

/// Opens logs, and sorts them by the times at which they begin. Logs without times stay in the order of the command
/// line.
pub(super) fn open(paths: &[PathBuf], format: Option<&Format>) -> Result<Vec<Log>, Failure> {
    let mut logs = paths.iter().map(|path| Log::open(path, format)).collect::<Result<Vec<_>, _>>()?;
    if logs.iter().all(|log| log.begins.is_some()) {
        logs.sort_by_key(|log| log.begins);
    }
    Ok(logs)
}

impl Log {
    fn open(path: &Path, format: Option<&Format>) -> Result<Self, Failure> {
        let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        let (from, size): (Box<dyn Read>, Option<u64>) = if path == Path::new("-") {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path).with_context(|| format!("{name} cannot be opened"))?;
            let about = file.metadata().with_context(|| format!("cannot examine {name}"))?;
            let size = about.is_file().then_some(about.len());
            (Box::new(file), size)
        };
        let is_shown = io::stderr().is_terminal();
        let bar = Bar { from, name: name.clone(), size, done: 0, drawn: 0, is_shown };
        let mut lines = Lines::new(bar).map_err(|error| broken(&name, &error))?;
        let first = lines.peek(GUESSED_FROM).map_err(|error| broken(&name, &error))?;
        let format = match format {
            Some(format) => Some(format.clone()),
            None => guessed(&name, &first)?,
        };
        let begins = format.clone().and_then(|format| {
            let mut reader = Reader::new(format);
            first.iter().find_map(|line| reader.read(line)?.at)
        });
        Ok(Self { name, lines, format, begins })
    }

    pub(super) fn count(self, census: &mut Census) -> Result<Tally, Failure> {
        let Self { name, lines, format, begins } = self;
        let Some(format) = format else { return Ok(Tally::default()) };
        let overlap = census.times.zip(begins).map(|((_, end), begins)| i64::from(end) - begins);
        if let Some(overlap) = overlap.filter(|&overlap| overlap > ORDINARY_OVERLAP) {
            // If standard error is closed, the report is still right about everything but gaps.
            let _ = writeln!(
                io::stderr(),
                "balancer: warning: {name} begins {overlap} s before the end of another log: gaps between requests in both are \
                 not counted"
            );
        }
        let tally = census.read(lines, &mut Reader::new(format)).map_err(|error| broken(&name, &error));
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        let tally = tally?;
        if let Some(first) = tally.first.as_ref() {
            let what = format!(
                "{name}: {} of {} lines could not be read; the first is line {}: {}",
                tally.unreadable, tally.lines, first.line, first.text
            );
            if tally.unreadable == tally.lines {
                return Err(anyhow!("{what}\nis it of another format? --format says which").into());
            }
            // If standard error is closed, the report still contains the number of unreadable lines.
            let _ = writeln!(io::stderr(), "balancer: warning: {what}");
        }
        Ok(tally)
    }
}

fn broken(name: &str, error: &io::Error) -> anyhow::Error {
    anyhow!("{name} cannot be read: {error}")
}

/// Guesses the format of a log from its first lines; `None` if the log is empty.
fn guessed(name: &str, first: &[Vec<u8>]) -> Result<Option<Format>, Failure> {
    let guessed = format::guess(first);
    let line = first.iter().find(|line| !line.is_empty());
    match (guessed, line) {
        (None, Some(line)) => Err(anyhow!(
            "{name}: the first lines are of no format that is known: {}\ngive --format combined, haproxy, list, or json:FIELD \
             with the field that has the client's address",
            census::shown(line)
        )
        .into()),
        (guessed, _) => Ok(guessed),
    }
}

/// Counts the bytes that were read, and draws the progress bar.
struct Bar {
    from: Box<dyn Read>,
    name: String,
    size: Option<u64>,
    done: u64,
    drawn: u64,
    is_shown: bool,
}

impl Read for Bar {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.done += count as u64;
        if self.is_shown && self.done - self.drawn >= STEP {
            self.drawn = self.done;
            let _ = write!(io::stderr(), "\r{}\x1b[K", shown(&self.name, self.done, self.size));
        }
        Ok(count)
    }
}

fn shown(name: &str, done: u64, size: Option<u64>) -> String {
    let of = |bytes: u64| bytes >> 20;
    match size.filter(|&size| size > 0) {
        Some(size) => {
            let (part, full) = (done.min(size) * 100 / size, (done.min(size) * WIDTH / size) as usize);
            let bar = "#".repeat(full) + &".".repeat(WIDTH as usize - full);
            format!("[{bar}] {part}% of {} MiB, {name}", of(size))
        }
        None => format!("{} MiB, {name}", of(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn when_a_log_is_read_then_the_bar_shows_the_progress() {
        assert_eq!(
            shown("a.log", 50 << 20, Some(200 << 20)),
            format!("[{}{}] 25% of 200 MiB, a.log", "#".repeat(10), ".".repeat(30))
        );
        // The test case is a log that grows while the command reads it.
        assert_eq!(shown("a.log", 3 << 20, Some(2 << 20)), format!("[{}] 100% of 2 MiB, a.log", "#".repeat(40)));
        assert_eq!(shown("standard input", 50 << 20, None), "50 MiB, standard input");
    }
}
