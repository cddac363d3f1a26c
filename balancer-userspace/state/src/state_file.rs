//! The file that contains the controller's state, and the journal beside it.
//!
//! ```text
//! state.json                    {"balancer_state":2,"checksum":"…","body":{…}}    the CRC-32 covers the version and the body
//! state.json.journal            later changes, if the state is large
//! state.json.previous           the previous state, with its journal
//! state.json.previous.journal
//! state.json.lock               locked by the controller that works with them; holds its process id
//! ```
//!
//! To write a state, the balancer writes a temporary file, synchronises it, and renames it, so that a complete state
//! exists at every moment. Writing a whole state takes time in proportion to its size, so the balancer appends the
//! changes of a large state to the journal instead, until the journal is large as well.

mod journal;
mod sealed;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use balancer_control::state::{SavedClock, SavedState, VERSION};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use self::{journal::Journal, sealed::Bad};
pub use self::{
    journal::replay_lines,
    sealed::{open_sealed, sealed},
};
use crate::restorable::Restorable;

/// The interval at which the balancer writes the state if only counters have changed.
const COUNTS_EVERY: Duration = Duration::from_secs(300);
/// The maximum size in bytes of a state file that the balancer reads, which far exceeds the largest possible state.
const MAX_SIZE: u64 = 256 << 20;
/// The balancer always writes a state smaller than this size, in bytes, as a whole, because appending to a journal
/// would take as long.
const SMALL: u64 = 256 << 10;
/// The maximum difference between the progress of the wall clock and the progress of the uptime. Below this difference,
/// the timestamps in a journal refer to the clock of the journal's state.
const SLEW: Duration = Duration::from_secs(1);

/// A state file that this controller has locked.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Whether the current file may become the previous file at the next write.
    good: bool,
    /// The contents of the state file, if this process has written them.
    written: Option<Written>,
    /// The size of a state in bytes from which the balancer uses a journal.
    small: u64,
    _lock: Flock<File>,
}

/// The contents of a state file and its journal.
#[derive(Debug)]
struct Written {
    state: Restorable,
    /// The time of the last write of the whole state.
    at: Instant,
    clock: Option<SavedClock>,
    /// The size of the whole state in bytes.
    length: u64,
    journal: Journal,
}

/// The contents of a state file when it was loaded.
#[derive(Debug)]
pub enum Loaded {
    /// The state file and its journal contain no state.
    Nothing,
    /// The state in the state file.
    State(Box<SavedState>),
    /// The previous state, and the reason for using it.
    Older(Box<SavedState>, String),
}

/// The reason for writing a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The owner is about to make a change.
    Change,
    /// The state may have changed. If only counters have changed, the balancer writes nothing for five minutes.
    Refresh,
    /// The whole state must be in one file, because the process starts or ends.
    Whole,
}

impl StateFile {
    /// Locks the state file at `path` for this process, and creates its directory if necessary.
    ///
    /// # Errors
    /// Fails if another controller has the lock, or if a system call fails; the error names the path.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot keep the state in {}", path.display());
        if let Some(directory) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("cannot create {} for the state file", directory.display()))?;
        }
        let lock = with_suffix(path, "lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .with_context(cannot)?;
        let mut holder = String::new();
        let read = (&file).take(16).read_to_string(&mut holder);
        let lock = Flock::lock(file.try_clone().with_context(cannot)?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, error)| {
            if error != nix::errno::Errno::EWOULDBLOCK {
                return anyhow!("{}: cannot lock the file: {error}", cannot());
            }
            let pid = holder.trim().parse::<u32>().ok().filter(|_| read.is_ok());
            let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            anyhow!(
                "the state file {} is in use by another controller{pid}; stop that one first, or give this one \
                 another state_file",
                path.display()
            )
        })?;
        let pid = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all_at(pid.as_bytes(), 0)).with_context(cannot)?;
        let this = Self { path: path.to_owned(), good: true, written: None, small: SMALL, _lock: lock };
        this.probe().with_context(cannot)?;
        Ok(this)
    }

    /// Whether files can be created beside the state file.
    fn probe(&self) -> io::Result<()> {
        let new = with_suffix(&self.path, "new");
        create(&new).and_then(|_| fs::remove_file(&new))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state file and its journal.
    ///
    /// # Errors
    /// Fails if neither the current nor the previous state is usable: the error describes the faults of both states and
    /// the remedy.
    pub fn load(&mut self) -> anyhow::Result<Loaded> {
        let previous = with_suffix(&self.path, "previous");
        let (path, before) = (self.path.display(), previous.display());
        let why = match read(&self.path) {
            Ok((state, None)) => return Ok(Loaded::State(Box::new(state))),
            Ok((state, Some(why))) => {
                let warning = format!("cannot use all of the journal: {why}; later changes are lost");
                return Ok(Loaded::Older(Box::new(state), warning));
            }
            Err(Bad::Missing) => return Ok(Loaded::Nothing),
            Err(Bad::Foreign(version)) => bail!(
                "the state file {path} is of version {version}, this controller reads version {VERSION}: start the \
                 balancer that wrote it, or move the file away to start with the configuration file alone"
            ),
            Err(Bad::Broken(why)) => why,
        };
        self.good = false;
        let then = match read(&previous) {
            Ok((state, _)) => {
                let date = fs::metadata(&previous)
                    .and_then(|metadata| metadata.modified())
                    .map(|modified| format!(" of {}", humantime::format_rfc3339_seconds(modified)));
                let warning = format!(
                    "cannot use the state file {path} ({why}): using {before}{}; changes after that are lost",
                    date.unwrap_or_default()
                );
                return Ok(Loaded::Older(Box::new(state), warning));
            }
            Err(Bad::Missing) => "is not there".to_owned(),
            Err(Bad::Foreign(version)) => format!("is of version {version}"),
            Err(Bad::Broken(why)) => format!("cannot be used either ({why})"),
        };
        bail!(
            "cannot use the state file {path} ({why}), and {before} {then}: replace it by a good one, or move both \
             away to start with the configuration file alone, without the changes made at run time"
        )
    }

    /// Writes `state` durably before it returns.
    ///
    /// # Errors
    /// Fails if a write fails; the files are then unchanged.
    pub fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()> {
        let before = self.written.take().filter(|_| occasion != Occasion::Whole);
        let Some(mut written) = before else { return self.keep_whole(state) };
        let now = state.clocks.now;
        let aged = now >= written.at + COUNTS_EVERY;
        let changes = state.changes_since(&written.state);
        let counted = aged && !state.controller.is_untouched_since(&written.state.controller);
        if occasion == Occasion::Refresh && changes.is_empty() && !counted {
            self.written = Some(written);
            return Ok(());
        }
        let small = written.length < self.small;
        if small || counted || !goes_on(written.clock.as_ref(), state.clock.as_ref()) {
            return self.keep_whole(state);
        }
        let line = written.journal.line(&changes).with_context(|| self.cannot())?;
        if written.journal.length + line.len() as u64 > written.length / 2 {
            return self.keep_whole(state);
        }
        written.journal.append(&line).with_context(|| self.cannot())?;
        self.written = Some(Written { state, ..written });
        Ok(())
    }

    fn keep_whole(&mut self, state: Restorable) -> anyhow::Result<()> {
        let (checksum, length) = self.save(&state.state())?;
        let journal = Journal::begin(&self.path, checksum);
        self.written = Some(Written { at: state.clocks.now, clock: state.clock.clone(), state, length, journal });
        Ok(())
    }

    fn cannot(&self) -> String {
        format!("cannot write the state file {}", self.path.display())
    }

    /// Replaces the state file; returns the checksum and the size in bytes of the new file.
    fn save(
        &mut self,
        state: &SavedState<impl Serialize, impl Serialize, impl Serialize>,
    ) -> anyhow::Result<(String, u64)> {
        let written = self.replace(state.version, state).with_context(|| self.cannot())?;
        self.good = true;
        Ok(written)
    }

    fn replace(&self, version: u32, state: &impl Serialize) -> io::Result<(String, u64)> {
        let new = with_suffix(&self.path, "new");
        let file = create(&new)?;
        let written = sealed::write(&file, version, state)?;
        file.sync_all()?;
        let journal = journal::of_state(&self.path);
        if self.good {
            let previous = with_suffix(&self.path, "previous");
            keep(&journal, &journal::of_state(&previous))?;
            keep(&self.path, &previous)?;
        }
        fs::rename(&new, &self.path)?;
        sync_directory(&self.path)?;
        // If the journal cannot be removed, its contents show that it belongs to the previous state.
        let _ = remove(&journal);
        Ok(written)
    }
}

/// Whether the wall clock has advanced as much as the uptime between two moments.
fn goes_on(from: Option<&SavedClock>, to: Option<&SavedClock>) -> bool {
    match (from, to) {
        (None, None) => true,
        (Some(from), Some(to)) if from.boot == to.boot => {
            let (wall, uptime) = (to.wall.0, to.uptime.saturating_sub(from.uptime));
            wall.abs_diff(from.wall.0 + uptime) < SLEW
        }
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// Creates a file that only its owner can read, because it may contain the hash key.
fn create(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Keeps the file at `path` under the name `previous`, as a hard link; does nothing if the file does not exist.
fn keep(path: &Path, previous: &Path) -> io::Result<()> {
    remove(previous)?;
    match fs::hard_link(path, previous) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Some file systems do not support hard links.
        Err(_) => fs::copy(path, previous).map(drop),
        Ok(()) => Ok(()),
    }
}

/// Makes changes in the directory of `path` durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Reads the state in the file at `path` with its journal; if the journal is unusable, also returns its problem.
fn read(path: &Path) -> Result<(SavedState, Option<String>), Bad> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Bad::Missing),
        Err(error) => return Err(Bad::Broken(format!("it cannot be read: {error}"))),
    }
    let opened = sealed::open(&bytes)?;
    let mut state = sealed::state(&opened)?;
    let replayed = journal::replay(&mut state, path, opened.checksum);
    Ok((state, replayed.err()))
}

#[cfg(test)]
mod tests;
