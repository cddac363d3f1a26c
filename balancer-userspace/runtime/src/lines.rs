//! Files of lines; a separate thread writes each file, so that a hanging disk delays no other thread. When a file is
//! full, it becomes the previous file, and a new file replaces it.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use tracing::warn;

use super::supervisor::{Supervisor, Thread};

/// The maximum number of lines that wait to be written; further lines are dropped.
const WAITING: usize = 4096;

/// A kind of line file, with the limits for its files.
#[derive(Clone, Copy, Debug)]
pub struct LineFileKind {
    /// The name of the kind for the log, in the plural.
    pub name: &'static str,
    /// The name of the writing thread, for the report of its end.
    pub writer: &'static str,
    /// The maximum size of a file, in bytes.
    pub bytes: u64,
    /// The maximum number of lines that one process writes to a file.
    pub lines: u64,
}

/// The writer of the current and the previous file.
#[derive(Debug)]
pub struct LineFile {
    kind: LineFileKind,
    path: PathBuf,
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<Thread>,
    lagging: bool,
}

impl LineFile {
    pub fn open(path: PathBuf, kind: LineFileKind, supervisor: &Supervisor) -> Self {
        let (lines, inbox) = sync_channel(WAITING);
        let to = path.clone();
        let writer = supervisor.thread(kind.writer, move || write(&to, kind, &inbox));
        if let Err(error) = &writer {
            warn!("cannot write {} to {}: {error}", kind.name, path.display());
        }
        Self { kind, path, lines: Some(lines), writer: writer.ok(), lagging: false }
    }

    /// Queues a line, which is given without a line end, for writing.
    pub fn append(&mut self, mut line: Vec<u8>) {
        let Some(lines) = &self.lines else { return };
        line.push(b'\n');
        let lags = self.writer.is_some() && lines.try_send(line).is_err();
        if lags && !self.lagging {
            let (path, name) = (self.path.display(), self.kind.name);
            warn!("{path} lacks some {name}, because writing is too slow");
        }
        self.lagging = lags;
    }
}

impl Drop for LineFile {
    /// Waits until the writing thread has written all queued lines.
    fn drop(&mut self) {
        let writer = self.writer.take().inspect(Thread::release);
        drop(self.lines.take());
        if let Some(writer) = writer {
            writer.join();
        }
    }
}

fn write(path: &Path, kind: LineFileKind, lines: &Receiver<Vec<u8>>) {
    let mut file = None;
    let mut failing = false;
    while let Ok(line) = lines.recv() {
        let written = append(path, kind, &mut file, &line);
        if let Err(error) = &written {
            file = None;
            if !failing {
                warn!("cannot write {} to {}: {error}", kind.name, path.display());
            }
        }
        failing = written.is_err();
    }
}

/// An open file, and the number of lines that this process has written to it.
type Open = (File, u64);

fn append(path: &Path, kind: LineFileKind, open: &mut Option<Open>, line: &[u8]) -> io::Result<()> {
    if let Some((file, lines)) = open
        && (*lines >= kind.lines || file.metadata()?.len() >= kind.bytes)
    {
        *open = None;
        fs::rename(path, previous(path))?;
    }
    let (file, lines) = match open {
        Some(open) => open,
        None => open.insert((begin(path)?, 0)),
    };
    *lines += 1;
    file.write_all(line)
}

/// Opens a file for appending, and adds a line end to an incomplete last line.
fn begin(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("jsonl.previous")
}

/// Reads the lines of the previous file and then of the current file. The last line of each file may be incomplete.
pub fn read(path: &Path, kind: LineFileKind) -> impl Iterator<Item = Vec<u8>> {
    let files = [previous(path), path.to_owned()].into_iter().filter_map(move |path| match File::open(&path) {
        Ok(file) => Some(file),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!("cannot read earlier {} from {}: {error}", kind.name, path.display());
            }
            None
        }
    });
    // The function reads at most twice the maximum size of each file, because another program may have written the
    // file.
    files.flat_map(move |file| BufReader::new(file.take(2 * kind.bytes)).split(b'\n').map_while(Result::ok))
}

/// Removes the previous and the current file, if they exist.
///
/// # Errors
/// Fails if an existing file cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    for path in [previous(path), path.to_owned()] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
