//! The file of events, which contains one JSON object per line.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use balancer_api::events::EventView;

use crate::{
    lines::{self, LineFile, LineFileKind},
    supervisor::Supervisor,
};

/// The size in bytes at which the current file becomes the previous file, and a new file replaces it.
pub(super) const MAX_SIZE: u64 = 1 << 20;
const EVENTS: LineFileKind =
    LineFileKind { name: "events", writer: "the writer of events", bytes: MAX_SIZE, lines: u64::MAX };

/// The writer of the event files.
#[derive(Debug)]
pub(super) struct EventFile(LineFile);

impl EventFile {
    pub(super) fn open(path: PathBuf, supervisor: &Supervisor) -> Self {
        Self(LineFile::open(path, EVENTS, supervisor))
    }

    pub(super) fn append(&mut self, event: &EventView) {
        if let Ok(line) = serde_json::to_vec(event) {
            self.0.append(line);
        }
    }
}

/// Reads the last `limit` events from the previous and the current file. The function skips invalid lines, such as an
/// incomplete last line.
pub(super) fn read(path: &Path, limit: usize) -> VecDeque<EventView> {
    let mut events: VecDeque<EventView> = VecDeque::new();
    for line in lines::read(path, EVENTS) {
        let Ok(event) = serde_json::from_slice::<EventView>(&line) else { continue };
        if events.back().is_some_and(|last| last.sequence >= event.sequence) {
            continue;
        }
        if events.len() == limit {
            events.pop_front();
        }
        events.push_back(event);
    }
    events
}
