//! Reads logs, and shows the progress on the terminal.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    path::Path,
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

/// The number of bytes read between two updates of the progress bar.
const STEP: u64 = 16 << 20;

/// The width of a full progress bar, in characters.
const WIDTH: u64 = 40;

/// Counts the clients of a log.
pub(super) fn read(path: &Path, format: Option<&Format>, census: &mut Census) -> Result<Tally, Failure> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let (from, size): (Box<dyn Read>, Option<u64>) = if path == Path::new("-") {
        (Box::new(io::stdin().lock()), None)
    } else {
        let file = File::open(path).with_context(|| format!("{name} cannot be opened"))?;
        let about = file.metadata().with_context(|| format!("{name} cannot be looked at"))?;
        let size = about.is_file().then_some(about.len());
        (Box::new(file), size)
    };
    let is_shown = io::stderr().is_terminal();
    let mut bar = Bar { from, name: name.clone(), size, done: 0, drawn: 0, is_shown };
    let broken = |error: io::Error| anyhow!("{name} cannot be read: {error}");
    let tally = counted(&mut bar, format, census, &name, broken);
    bar.clear();
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

fn counted(
    bar: &mut Bar,
    asked: Option<&Format>,
    census: &mut Census,
    name: &str,
    broken: impl Fn(io::Error) -> anyhow::Error,
) -> Result<Tally, Failure> {
    let mut lines = Lines::new(bar).map_err(&broken)?;
    let format = match asked {
        Some(format) => Some(format.clone()),
        None => {
            let first = lines.peek(GUESSED_FROM).map_err(&broken)?;
            let is_empty = first.iter().all(Vec::is_empty);
            let guessed = format::guess(&first);
            if guessed.is_none() && !is_empty {
                let shown =
                    first.iter().find(|line| !line.is_empty()).map(|line| census::shown(line)).unwrap_or_default();
                return Err(anyhow!(
                    "{name}: the first lines are of no format that is known: {shown}\ngive --format combined, haproxy, \
                     list, or json:FIELD with the field that has the client's address"
                )
                .into());
            }
            guessed
        }
    };
    let Some(format) = format else { return Ok(Tally::default()) };
    census.read(lines, &mut Reader::new(format)).map_err(|error| broken(error).into())
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

impl Bar {
    fn clear(&self) {
        if self.drawn > 0 {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
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
