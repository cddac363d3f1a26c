//! The part of the data path that outlives the controller, if it is to: pins, notes, and counters that only controllers
//! keep.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use balancer_common::map_types::{BackendHistory, Notes as NotesRow, ServiceHistory};
use bytemuck::Zeroable as _;

use super::{
    kernel::take,
    mapped::MappedArray,
    pins::{Notes, Pins},
};
use crate::core::io::{BackendId, ServiceId};

/// What an earlier controller left, and what this one will leave.
pub struct Kept {
    pins: Option<Pins>,
    /// As the controller before wrote them.
    before: Option<Notes>,
    notes: Array<MapData, NotesRow>,
    backends: MappedArray<BackendHistory>,
    services: MappedArray<ServiceHistory>,
    elapsed_before: Duration,
}

impl Kept {
    pub(super) fn new(ebpf: &mut Ebpf, pins: Option<Pins>, before: Option<Notes>) -> anyhow::Result<Self> {
        let notes = ebpf.take_map("NOTES").context("the kernel object holds no map NOTES")?.try_into()?;
        let backends = MappedArray::<BackendHistory>::new(take(ebpf, "BACKEND_HISTORY")?)?;
        let services = MappedArray::new(take(ebpf, "SERVICE_HISTORY")?)?;
        let elapsed_before = Duration::from_secs(backends.word64(0, 0).load(Ordering::Relaxed));
        Ok(Self { pins, before, notes, backends, services, elapsed_before })
    }

    /// Whether an earlier controller's maps and links are gone on with.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.before.is_some()
    }

    /// What the controller before wrote down.
    #[must_use]
    pub const fn notes(&self) -> Option<&Notes> {
        self.before.as_ref()
    }

    /// The pins, if anything is to outlive this process or has outlived another.
    pub(super) const fn pins(&self) -> Option<&Pins> {
        self.pins.as_ref()
    }

    /// From now on what is pinned stays, however this process ends. Links to interfaces that are not among `ifindexes`
    /// go.
    ///
    /// # Errors
    /// When such a link cannot be removed.
    pub fn finish(&mut self, ifindexes: &[u32]) -> anyhow::Result<()> {
        let Some(pins) = &mut self.pins else { return Ok(()) };
        for link in pins.links().into_iter().filter(|link| !ifindexes.contains(&link.ifindex)) {
            super::attach::unpin(&link.path)?;
        }
        pins.finish();
        Ok(())
    }

    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        self.pins.take().map_or(Ok(()), |mut pins| pins.remove().map(drop))
    }

    pub(super) fn write_notes(&mut self, notes: &Notes) -> anyhow::Result<()> {
        let mut row = NotesRow::zeroed();
        let text = serde_json::to_vec(notes).context("writing notes for the next controller")?;
        let place = row.text.as_flattened_mut();
        // One byte stays zero: the end.
        anyhow::ensure!(text.len() < place.len(), "the notes for the next controller are too long");
        for (place, byte) in place.iter_mut().zip(text) {
            *place = byte;
        }
        self.notes.set(0, row, 0).context("writing notes for the next controller")
    }

    /// How long the clocks of client memory had run when this process began.
    pub(super) const fn elapsed_before(&self) -> Duration {
        self.elapsed_before
    }

    pub(super) fn keep_elapsed(&self, elapsed: Duration) {
        self.backends.word64(0, 0).store(elapsed.as_secs(), Ordering::Relaxed);
    }

    pub(super) fn keep_backend(&self, id: BackendId, history: &BackendHistory) {
        store(&self.backends, usize::from(id.0), history);
    }

    pub(super) fn keep_service(&self, id: ServiceId, history: &ServiceHistory) {
        store(&self.services, usize::from(id.0), history);
    }

    /// What was kept of a backend.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> BackendHistory {
        load(&self.backends, usize::from(id.0))
    }

    /// What was kept of a service.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> ServiceHistory {
        load(&self.services, usize::from(id.0))
    }
}

/// Word by word, so that a process that is killed leaves no half of one.
fn store<T: bytemuck::Pod>(array: &MappedArray<T>, index: usize, value: &T) {
    if index >= array.len() {
        return;
    }
    let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(value));
    for (place, &word) in words.iter().enumerate() {
        array.word64(index, place * size_of::<u64>()).store(word, Ordering::Relaxed);
    }
}

fn load<T: bytemuck::Pod>(array: &MappedArray<T>, index: usize) -> T {
    if index < array.len() { array.load(index) } else { T::zeroed() }
}
