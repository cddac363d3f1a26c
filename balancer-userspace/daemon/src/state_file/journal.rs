//! Changes since a state was written whole, a line each.
//!
//! Every line names the state that it belongs to by its checksum, and has the next number, so that lines of another state
//! and lines that are missing are noticed. A line that was being written when the machine ended is not a whole one: nobody
//! was told that its change was made.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use balancer_core::state::{SavedChanges, SavedState, VERSION};
use serde::{Deserialize, Serialize};

use super::{
    sealed::{self, Bad, sealed},
    with_suffix,
};

/// Largest journal read, in bytes; far above the largest written.
const MAX_SIZE: u64 = 256 << 20;

/// A line. Its changes are borrowed where it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<C> {
    /// The checksum of the state that it belongs to.
    of: String,
    /// From 1.
    number: u64,
    changes: C,
}

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// The checksum of the state that it belongs to.
    of: String,
    /// The file with its lines, once there are some.
    file: Option<File>,
    pub(super) length: u64,
    records: u64,
}

impl Journal {
    /// For the state in `state_file` with this checksum, which was just written.
    pub(super) fn begin(state_file: &Path, of: String) -> Self {
        Self { path: of_state(state_file), of, file: None, length: 0, records: 0 }
    }

    /// The changes as the next line.
    pub(super) fn line(&self, changes: &SavedChanges) -> serde_json::Result<String> {
        let record = Record { of: self.of.clone(), number: self.records + 1, changes };
        Ok(sealed(VERSION, &serde_json::to_string(&record)?))
    }

    /// Appends a line; it is on disk when this returns.
    ///
    /// # Errors
    /// Where the kernel refuses. What is there then may be torn: the next thing to write is a whole state.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        match &mut self.file {
            Some(file) => {
                let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
                if let Err(error) = written {
                    // A line that is there, though its change is refused, would be found by the next start.
                    let _ = file.set_len(self.length);
                    return Err(error);
                }
            }
            None => {
                let mut file = super::create(&self.path)?;
                file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
                    let _ = fs::remove_file(&self.path);
                })?;
                super::sync_directory(&self.path)?;
                self.file = Some(file);
            }
        }
        self.length += line.len() as u64;
        self.records += 1;
        Ok(())
    }
}

/// The journal that belongs to the state in `state_file`.
pub(super) fn of_state(state_file: &Path) -> PathBuf {
    with_suffix(state_file, "journal")
}

/// Brings `state`, which was in `state_file` under this checksum, up to date. Gives what stands in the way of that.
pub(super) fn replay(state: &mut SavedState, state_file: &Path, checksum: &str) -> Result<(), String> {
    let path = of_state(state_file);
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    }
    replay_lines(state, checksum, &bytes).map_err(|why| format!("{}: {why}", path.display()))
}

/// As [`replay`], of what is in a journal.
pub(crate) fn replay_lines(state: &mut SavedState, checksum: &str, bytes: &[u8]) -> Result<(), String> {
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        let wrong = |why: &str| format!("line {number} is of no use: {why}");
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(()) };
        let record = read(line).map_err(|bad| wrong(&bad.to_string()))?;
        if record.of != checksum {
            // It is left from a state before, unless the beginning belonged to this one.
            return if number == 1 { Ok(()) } else { Err(wrong("it belongs to another state")) };
        }
        if record.number != number {
            return Err(wrong(&format!("it is change {}, and the one before it is missing", record.number)));
        }
        state.apply(record.changes);
    }
    Ok(())
}

fn read(line: &[u8]) -> Result<Record<SavedChanges>, Bad> {
    serde_json::from_str(sealed::open(line)?.body).map_err(sealed::broken)
}
