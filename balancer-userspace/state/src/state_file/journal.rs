//! The journal, which contains the changes since the last write of a whole state, one change per line.
//!
//! Every line names its state by the state's checksum, and has a consecutive number, so that the reader detects missing
//! lines and lines of another state. If the machine fails during a write, the line is incomplete, and no requester has
//! received a confirmation of the change.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use balancer_control::state::{SavedChanges, SavedState, VERSION};
use serde::{Deserialize, Serialize};

use super::{
    sealed::{self, Bad, sealed},
    with_suffix,
};

/// The maximum size in bytes of a journal that the balancer reads, which far exceeds the largest journal that it
/// writes.
const MAX_SIZE: u64 = 256 << 20;

/// A line of the journal. A line that is being written borrows its changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<C> {
    /// The checksum of the state to which the line belongs.
    of: String,
    /// The number of the line, starting at 1.
    number: u64,
    changes: C,
}

/// A journal to which the balancer writes.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// The checksum of the state to which the journal belongs.
    of: String,
    /// The file of the journal, after the first line was written.
    file: Option<File>,
    pub(super) length: u64,
    records: u64,
}

impl Journal {
    /// Starts a journal for the state in `state_file`, which has this checksum and was just written.
    pub(super) fn begin(state_file: &Path, of: String) -> Self {
        Self { path: of_state(state_file), of, file: None, length: 0, records: 0 }
    }

    /// Formats changes as the next line of the journal.
    pub(super) fn line(&self, changes: &SavedChanges) -> serde_json::Result<String> {
        let record = Record { of: self.of.clone(), number: self.records + 1, changes };
        Ok(sealed(VERSION, &serde_json::to_string(&record)?))
    }

    /// Appends a line durably before it returns.
    ///
    /// # Errors
    /// Fails if the write fails. After a failure, the journal may end with an incomplete line, so the caller must write
    /// a whole state next.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        match &mut self.file {
            Some(file) => {
                let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
                if let Err(error) = written {
                    // Without this step, the next start would find a line with a refused change.
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

/// The path of the journal for the state in `state_file`.
pub(super) fn of_state(state_file: &Path) -> PathBuf {
    with_suffix(state_file, "journal")
}

/// Applies the journal to `state`, which was read from `state_file` and has this checksum. If the journal is unusable,
/// the function returns the problem.
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

/// Does the same as `replay`, with `bytes` as the contents of the journal.
pub fn replay_lines(state: &mut SavedState, checksum: &str, bytes: &[u8]) -> Result<(), String> {
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        let wrong = |why: &str| format!("line {number} cannot be used: {why}");
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(()) };
        let record = read(line).map_err(|bad| wrong(&bad.to_string()))?;
        if record.of != checksum {
            // If the first line belongs to another state, the whole journal is left from an earlier state.
            return if number == 1 { Ok(()) } else { Err(wrong("it belongs to another state")) };
        }
        if record.number != number {
            return Err(wrong(&format!("the change before change {} is missing", record.number)));
        }
        state.apply(record.changes);
    }
    Ok(())
}

fn read(line: &[u8]) -> Result<Record<SavedChanges>, Bad> {
    serde_json::from_str(sealed::open(line)?.body).map_err(sealed::broken)
}
