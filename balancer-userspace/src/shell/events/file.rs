//! The file of events: JSON, one a line, written by a thread of its own, so that a disk that hangs holds up nobody.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use tracing::warn;

use crate::api::events::EventView;

/// A file of this size, in bytes, becomes the previous one.
pub(super) const MAX_SIZE: u64 = 1 << 20;
/// Events that may wait for the disk; more are not written.
const WAITING: usize = 4096;

/// The writing end.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    lagging: bool,
}

impl EventFile {
    pub(super) fn open(path: PathBuf) -> Self {
        let (lines, inbox) = sync_channel(WAITING);
        let to = path.clone();
        let writer = thread::Builder::new().name("events".to_owned()).spawn(move || write(&to, &inbox));
        if let Err(error) = &writer {
            warn!("events are not kept in {}: {error}", path.display());
        }
        Self { path, lines: Some(lines), writer: writer.ok(), lagging: false }
    }

    pub(super) fn append(&mut self, event: &EventView) {
        let (Some(lines), Ok(mut line)) = (&self.lines, serde_json::to_vec(event)) else { return };
        line.push(b'\n');
        let lags = self.writer.is_some() && lines.try_send(line).is_err();
        if lags && !self.lagging {
            warn!("{} cannot be written as fast as events come: some are missing in it", self.path.display());
        }
        self.lagging = lags;
    }
}

impl Drop for EventFile {
    /// Waits until all is written.
    fn drop(&mut self) {
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(path: &Path, lines: &Receiver<Vec<u8>>) {
    let mut file = None;
    let mut failing = false;
    while let Ok(line) = lines.recv() {
        let written = append(path, &mut file, &line);
        if let Err(error) = &written {
            file = None;
            if !failing {
                warn!("events are not kept in {}: {error}", path.display());
            }
        }
        failing = written.is_err();
    }
}

fn append(path: &Path, open: &mut Option<File>, line: &[u8]) -> io::Result<()> {
    if open.as_ref().map(File::metadata).transpose()?.is_some_and(|metadata| metadata.len() >= MAX_SIZE) {
        *open = None;
        fs::rename(path, previous(path))?;
    }
    let file = match open {
        Some(file) => file,
        None => open.insert(begin(path)?),
    };
    file.write_all(line)
}

/// Opens the file to append, after the end of a line.
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

/// The last `limit` events of both files. Lines that make no sense, as a torn last one, are passed over.
pub(super) fn read(path: &Path, limit: usize) -> VecDeque<EventView> {
    let mut events: VecDeque<EventView> = VecDeque::new();
    for path in [previous(path), path.to_owned()] {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                warn!("earlier events are not shown: {}: {error}", path.display());
                continue;
            }
        };
        // Never more than twice what is written, whoever put it there.
        for line in BufReader::new(file.take(2 * MAX_SIZE)).split(b'\n') {
            let Ok(line) = line else { break };
            let Ok(event) = serde_json::from_slice::<EventView>(&line) else { continue };
            if events.back().is_some_and(|last| last.sequence >= event.sequence) {
                continue;
            }
            if events.len() == limit {
                events.pop_front();
            }
            events.push_back(event);
        }
    }
    events
}
