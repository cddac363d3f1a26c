//! The file of events, with one JSON object on each line.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use balancer_api::events::EventView;

use crate::{
    lines::{self, Kind, LineFile},
    supervisor::Supervisor,
};

/// The size in bytes at which the file becomes the previous file.
pub(super) const MAX_SIZE: u64 = 1 << 20;
const EVENTS: Kind = Kind { name: "events", writer: "the writer of events", bytes: MAX_SIZE, lines: u64::MAX };

/// The writing end.
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

/// Reads the last `limit` events of both files. Skips invalid lines, such as a torn last line.
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
