//! A disk to which the controller writes only changes: a start from this disk must yield the same state as a start from
//! the complete state.

use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::{
    controller::Controller,
    health::Health,
    state::{Clocks, SavedChanges, SavedState},
};

pub(super) struct Disk {
    state: SavedState,
    /// The controller's state when it was last written to the disk.
    written: Controller,
    begin: Instant,
}

impl Disk {
    pub(super) fn new(controller: &Controller, now: Instant) -> Self {
        let state = controller.export(clocks(now, now));
        Self { state, written: controller.clone(), begin: now }
    }

    pub(super) fn write(&mut self, controller: &Controller, now: Instant) {
        let clocks = clocks(self.begin, now);
        let changes = controller.changes_since(&self.written, clocks);
        let before = controller.changes_since(controller, clocks);
        assert!(before.is_empty(), "what did not change is written: {before:?}");
        let text = serde_json::to_string(&changes).unwrap();
        let read: SavedChanges = serde_json::from_str(&text).unwrap();
        assert_eq!(read, changes);
        self.state.apply(read);
        self.written = controller.clone();
        assert_eq!(without_counts(self.state.clone()), without_counts(controller.export(clocks)));
    }
}

fn clocks(begin: Instant, now: Instant) -> Clocks {
    Clocks { now, wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000) + (now - begin) }
}

fn without_counts(mut state: SavedState) -> SavedState {
    state.forget_counts();
    for backend in state.services.iter_mut().flat_map(|service| &mut service.backends) {
        backend.health = Health::agreed(backend.health.verdict().clone());
    }
    state
}
