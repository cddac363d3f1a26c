//! The data and objects of the data path that may outlive the controller: pins, notes, and counters that only
//! controllers update.

use std::{
    mem::{self, offset_of},
    os::fd::AsFd as _,
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
};
use balancer_common::kept::{BackendHistory, NotesRow, ServiceHistory};
use balancer_control::{
    io::{BackendId, ServiceId},
    state::SavedState,
};
use bytemuck::Zeroable as _;

use super::{
    mapped::MappedArray,
    mirrored::Mirrored,
    object::take,
    pins::{MAPS, Notes, Pins, open},
};
use crate::HostChanges;

/// The maps, pins and notes that an earlier controller has left, and those that this controller will leave.
pub struct Kept {
    pins: Option<Pins>,
    /// The notes that the previous controller has left.
    left: Option<Notes>,
    /// The maps that the controller can pin, by name.
    maps: Vec<(&'static str, MapData)>,
    notes: Option<Array<MapData, NotesRow>>,
    backends: MappedArray<BackendHistory>,
    pub(super) services: Mirrored<ServiceHistory>,
    elapsed_before: Duration,
}

impl Kept {
    pub(super) fn new(ebpf: &mut Ebpf, pins: Option<Pins>) -> anyhow::Result<Self> {
        let maps = MAPS.iter().map(|&name| Ok((name, second(ebpf, name)?))).collect::<anyhow::Result<_>>()?;
        let notes = ebpf.take_map("NOTES").context("the kernel object holds no map NOTES")?.try_into()?;
        let backends = MappedArray::<BackendHistory>::new(take(ebpf, "BACKEND_HISTORY")?)?;
        let services = Mirrored::new(MappedArray::new(take(ebpf, "SERVICE_HISTORY")?)?);
        let elapsed_before = Duration::from_secs(backends.word64(0, 0).load(Ordering::Relaxed));
        let left = pins.as_ref().and_then(Pins::left).cloned();
        Ok(Self { pins, left, maps, notes: Some(notes), backends, services, elapsed_before })
    }

    /// Whether this controller continues to use an earlier controller's maps and links.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.notes().is_some()
    }

    /// Returns the notes of the previous controller, if that controller left notes.
    #[must_use]
    pub const fn notes(&self) -> Option<&Notes> {
        self.left.as_ref()
    }

    /// Takes the pins, if this process leaves pins or has found pins, and the maps that are pinned or could be pinned.
    pub(super) fn take_pins(&mut self) -> (Option<Pins>, Vec<(&'static str, MapData)>) {
        (self.pins.take(), mem::take(&mut self.maps))
    }

    /// Takes the writer of notes; `notes` contains the fields that are the same in all notes of this process. The
    /// caller can take this writer only once.
    pub(super) fn take_notes(&mut self, notes: Notes) -> anyhow::Result<NotesWriter> {
        let map = self.notes.take().context("the notes were taken before")?;
        Ok(NotesWriter { map, notes, written: false })
    }

    /// The time for which the clocks of client memory had run when this process started.
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
        let ServiceHistory { tick, rule_fallbacks, .. } = self.service(id);
        self.store_service(id, &ServiceHistory { tick, rule_fallbacks, ..*history });
    }

    pub(super) fn keep_tick(&self, id: ServiceId, tick: u16) {
        self.keep_word(id, offset_of!(ServiceHistory, tick), tick.into());
    }

    /// Stores the number of fallbacks that a service's removed rules have counted.
    pub(super) fn keep_rule_fallbacks(&self, id: ServiceId, fallbacks: u64) {
        self.keep_word(id, offset_of!(ServiceHistory, rule_fallbacks), fallbacks);
    }

    fn keep_word(&self, id: ServiceId, offset: usize, value: u64) {
        if usize::from(id.0) < self.services.len() {
            self.services.store64(usize::from(id.0), offset, value);
        }
    }

    /// The stored numbers of fallbacks, for every service that has fallbacks.
    pub(super) fn rule_fallbacks(&self) -> impl Iterator<Item = (ServiceId, u64)> {
        let all = (0..self.services.len()).map(|index| (index, self.services.load(index).rule_fallbacks));
        all.filter(|&(_, fallbacks)| fallbacks > 0).map(|(index, fallbacks)| (ServiceId(index as u16), fallbacks))
    }

    /// The last stored tick of a service's clock; 0: no tick was stored.
    pub(super) fn tick(&self, id: ServiceId) -> u16 {
        self.service(id).tick as u16
    }

    /// Clears the stored data of a service id that belonged to another service.
    pub(super) fn forget_service(&self, id: ServiceId) {
        self.store_service(id, &ServiceHistory::zeroed());
    }

    fn service(&self, id: ServiceId) -> ServiceHistory {
        let index = usize::from(id.0);
        if index < self.services.len() { self.services.load(index) } else { ServiceHistory::zeroed() }
    }

    fn store_service(&self, id: ServiceId, history: &ServiceHistory) {
        for (place, &word) in words(history).iter().enumerate() {
            self.keep_word(id, place * size_of::<u64>(), word);
        }
    }

    /// Clears the stored counters of a backend id that belonged to another backend.
    pub(super) fn forget_backend(&self, id: BackendId) {
        store(&self.backends, usize::from(id.0), &BackendHistory::zeroed());
    }
}

/// Writes the notes that the next controller reads. The kernel program does not read these notes.
pub struct NotesWriter {
    map: Array<MapData, NotesRow>,
    notes: Notes,
    written: bool,
}

impl NotesWriter {
    /// Writes the notes; `host` lists all changes to this machine.
    ///
    /// # Errors
    /// Fails if the kernel refuses the write.
    pub fn write(&mut self, host: HostChanges) -> anyhow::Result<()> {
        if self.written && self.notes.host == host {
            return Ok(());
        }
        self.notes.host = host;
        let mut row = NotesRow::zeroed();
        let text = serde_json::to_vec(&self.notes).context("writing notes for the next controller")?;
        let place = row.text.as_flattened_mut();
        // The last byte stays zero, as the terminator of the text.
        anyhow::ensure!(text.len() < place.len(), "the notes for the next controller are too long");
        for (place, byte) in place.iter_mut().zip(text) {
            *place = byte;
        }
        self.map.set(0, row, 0).context("writing notes for the next controller")?;
        self.written = true;
        Ok(())
    }
}

/// A second file descriptor of a map.
///
/// # Errors
/// Fails if the object has no such map, which would be a broken build, or if the process has no more file descriptors.
pub(super) fn second(ebpf: &Ebpf, name: &str) -> anyhow::Result<MapData> {
    let Some(
        Map::Array(map) | Map::PerCpuArray(map) | Map::PerCpuHashMap(map) | Map::LruHashMap(map) | Map::LpmTrie(map),
    ) = ebpf.map(name)
    else {
        bail!("the kernel object holds no map {name} of a known kind")
    };
    Ok(MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?)
}

/// Counters in maps that an earlier controller has left.
pub struct Histories {
    backends: MappedArray<BackendHistory>,
    services: MappedArray<ServiceHistory>,
}

impl Histories {
    /// Opens the counters that these pins refer to.
    ///
    /// # Errors
    /// Fails if there are no such pinned counters.
    pub fn open(pins: &Pins) -> anyhow::Result<Self> {
        Ok(Self {
            backends: MappedArray::new(open(&pins.map("BACKEND_HISTORY"))?)?,
            services: MappedArray::new(open(&pins.map("SERVICE_HISTORY"))?)?,
        })
    }

    /// Updates the saved state with the counts that have come since the state was saved.
    pub fn bring_up_to_date(&self, state: &mut SavedState) {
        for service in &mut state.services {
            let kept: ServiceHistory = load(&self.services, usize::from(service.id.0));
            service.table_generation = service.table_generation.max(kept.table_generation);
            service.slots_moved_required = service.slots_moved_required.max(kept.slots_moved_required);
            service.slots_moved_needless = service.slots_moved_needless.max(kept.slots_moved_needless);
            for backend in &mut service.backends {
                let kept: BackendHistory = load(&self.backends, usize::from(backend.id.0));
                let checks = backend.checks.iter_mut().zip(kept.checks);
                for (saved, kept) in checks.chain(backend.transitions.iter_mut().zip(kept.transitions)) {
                    *saved = kept.max(*saved);
                }
            }
        }
    }
}

/// Writes a value word by word, so that a killed process leaves no half-written word in the map.
fn store<T: bytemuck::Pod>(array: &MappedArray<T>, index: usize, value: &T) {
    if index >= array.len() {
        return;
    }
    for (place, &word) in words(value).iter().enumerate() {
        array.word64(index, place * size_of::<u64>()).store(word, Ordering::Relaxed);
    }
}

fn words<T: bytemuck::Pod>(value: &T) -> &[u64] {
    bytemuck::cast_slice(std::slice::from_ref(value))
}

fn load<T: bytemuck::Pod>(array: &MappedArray<T>, index: usize) -> T {
    if index < array.len() { array.load(index) } else { T::zeroed() }
}
