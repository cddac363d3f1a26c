//! Events by which a backend turns out to be this machine itself, while the kernel program has no code for such
//! backends. The owner keeps these events back until the host has attached a program with that code. All other events
//! go on.

use std::{collections::BTreeMap, mem, net::IpAddr};

use balancer_common::features::Features;
use balancer_control::io::Event;
use balancer_dataplane::Dataplane;

use super::Owner;

/// The events, by the address that belongs to this machine.
pub(super) type KeptBack = BTreeMap<IpAddr, Event>;

impl<D: Dataplane> Owner<D> {
    /// Returns the events that need not wait for another kernel program.
    pub(super) fn keep_back(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Event> {
        events.into_iter().filter(|event| !self.waits(event)).collect()
    }

    fn waits(&mut self, event: &Event) -> bool {
        if let Event::NextHop { address, .. } = event {
            self.kept_back.remove(address);
        }
        let Some(address) = event.local_address() else { return false };
        if self.dataplane.require(self.controller.features_with([address])).is_ok() {
            return false;
        }
        self.kept_back.insert(address, event.clone());
        self.changed = true;
        true
    }

    /// The features for which events wait.
    pub(super) fn features_kept_back_for(&self) -> Features {
        if self.kept_back.is_empty() {
            return Features::NONE;
        }
        self.controller.features_with(self.kept_back.keys().copied())
    }

    /// Handles the events that no longer need to wait.
    pub(super) fn let_go(&mut self) {
        if !self.kept_back.is_empty() {
            let events = mem::take(&mut self.kept_back);
            self.handle_all(events.into_values());
        }
    }
}
