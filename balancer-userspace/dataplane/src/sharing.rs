//! Clients that all members of a fleet know: the controller exports records of these clients from the client table that
//! the kernel program uses, and imports records into this table.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
};

use balancer_common::{client::slot, client_table::Entry};
use balancer_control::io::ServiceId;
use balancer_fleet::{
    clients::{self as fleet, Facts, Heard, Imported, Sharing, Table},
    emptied::Emptied,
    member::Told,
    records::Record,
};

use super::{KernelDataplane, backends::Backends, clients::ClientTable, memory::Memory, stickiness::Stickiness};

/// The outcome of importing the records of another member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportedClients {
    /// The number of clients that were unknown to this member.
    pub new: u64,
    /// The number of clients that were already known at the reported backend.
    pub known: u64,
    /// The number of clients whose entry now names another backend.
    pub moved: u64,
    /// The numbers of moves that this member and the reporting member have both made, and that only the reporting
    /// member counts, by service and index of the cause.
    pub repeated: BTreeMap<(ServiceId, usize), u64>,
    /// The number of clients that members had recorded at two backends.
    pub conflicts: u64,
    /// The number of records that contain less information than this member already had.
    pub stale: u64,
    /// The number of clients that found no room in their buckets.
    pub full: u64,
    /// The number of records for backends that do not exist on this member, or for services without client memory.
    pub strangers: u64,
    /// The number of clients that had not been seen for too long.
    pub expired: u64,
    /// The number of records that do not fit a table of this size.
    pub outside: u64,
}

impl ImportedClients {
    /// The number of clients that records have made known or moved to another backend.
    #[must_use]
    pub const fn taken_over(&self) -> u64 {
        self.new + self.moved
    }

    /// The numbers of dropped records, by reason.
    #[must_use]
    pub const fn dropped(&self) -> [(&'static str, u64); 4] {
        [("full", self.full), ("stranger", self.strangers), ("expired", self.expired), ("outside", self.outside)]
    }

    const fn count(&mut self, imported: Imported) {
        let counter = match imported {
            Imported::New => &mut self.new,
            Imported::Known | Imported::Repeated(_) => &mut self.known,
            Imported::Moved => &mut self.moved,
            Imported::Conflict => &mut self.conflicts,
            Imported::Stale => &mut self.stale,
            Imported::Full => &mut self.full,
            Imported::Stranger => &mut self.strangers,
            Imported::Expired => &mut self.expired,
            Imported::Outside => &mut self.outside,
        };
        *counter += 1;
    }
}

struct Words<'a>(&'a [AtomicU64]);

impl Table for Words<'_> {
    fn entries(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> Entry {
        Entry(self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    fn exchange(&self, index: usize, old: Entry, new: Entry) -> bool {
        let exchange = |word: &AtomicU64| word.compare_exchange(old.0, new.0, Ordering::Release, Ordering::Relaxed);
        self.0.get(index).is_some_and(|word| exchange(word).is_ok())
    }
}

/// The facts about the clients of each backend, by backend id.
struct AllFacts(Vec<Option<Facts>>);

impl AllFacts {
    fn of(clients: &ClientTable, memories: &HashMap<ServiceId, Memory>, backends: &Backends) -> Self {
        let facts = |(id, service): (u16, Option<ServiceId>)| {
            let service = service?;
            let memory = memories.get(&service)?;
            let remember = memory.clock?.remember;
            Some(Facts { service: service.0, tick: memory.tick, remember, keeps: backends.keeps_known(id) })
        };
        Self((0..=u16::MAX).zip(clients.services()).map(facts).collect())
    }
}

impl fleet::Backends for AllFacts {
    fn facts(&self, id: u16) -> Option<Facts> {
        self.0.get(usize::from(id)).copied().flatten()
    }
}

impl KernelDataplane {
    /// Starts to track what other members know about clients.
    pub fn share_clients(&mut self) {
        self.sharing = Some(Sharing::new(self.stickiness.clients.words().len()));
    }

    /// Returns the records that this member must send to the other members in `epoch`: clients that the other members
    /// do not know, or no longer know. The result includes clients seen in only one tick if their slots are `changed`
    /// (by service); it also includes at most `newcomers` other clients seen in only one tick.
    pub fn tell_clients(
        &mut self,
        epoch: u32,
        changed: &HashMap<ServiceId, Vec<bool>>,
        mut newcomers: usize,
    ) -> Vec<Record> {
        self.rescan_all();
        let Self { stickiness: Stickiness { clients, memories, .. }, backends, sharing: Some(sharing), .. } = self
        else {
            return Vec::new();
        };
        let at_once = |entry: Entry| {
            let slots = clients.service_of(entry.backend()).and_then(|service| changed.get(&service));
            if slots.is_some_and(|slots| slots.get(slot(entry.0, slots.len() as u32) as usize).is_none_or(|is| *is)) {
                return true;
            }
            let may = newcomers > 0;
            newcomers = newcomers.saturating_sub(1);
            may
        };
        let facts = AllFacts::of(clients, memories, backends);
        let records = sharing.collect(&Words(clients.words()), &facts, epoch, at_once);
        sharing.has_told(epoch);
        records
    }

    /// Records of all known clients, for a member that knows no clients.
    #[must_use]
    pub fn dump_clients(&mut self, epoch: u32) -> Vec<Record> {
        self.rescan_all();
        let Self { stickiness: Stickiness { clients, memories, .. }, backends, sharing: Some(sharing), .. } = self
        else {
            return Vec::new();
        };
        sharing.dump(&Words(clients.words()), &AllFacts::of(clients, memories, backends), epoch)
    }

    /// Assumes that other members may have lost the records which this member has sent.
    pub fn doubt_clients(&mut self) {
        self.sharing.iter_mut().for_each(Sharing::doubt);
    }

    /// Records that another member has now sent all clients that the other members know.
    pub fn confirm_clients(&mut self) {
        self.sharing.iter_mut().for_each(Sharing::confirm);
    }

    /// Imports records that another member has sent in `epoch`. `emptied` names the backends whose clients were
    /// forgotten by the time of `epoch`.
    pub fn import_clients(&mut self, told: &Told, epoch: u32, emptied: &Emptied) -> ImportedClients {
        self.rescan_all();
        let mut sum = ImportedClients::default();
        let Self {
            stickiness: Stickiness { clients, sweep, memories, tables, .. },
            backends,
            sharing: Some(sharing),
            ..
        } = self
        else {
            return sum;
        };
        let heard = Heard { precedes: told.precedes, epoch, emptied };
        let facts = AllFacts::of(clients, memories, backends);
        let mut elsewhere = Vec::new();
        for record in &told.records {
            let imported = sharing.import(
                &Words(clients.words()),
                record,
                heard,
                &facts,
                // The controller first sets the flag, because the program reads entries only for packets in flagged
                // slots.
                |service, tag, backend| {
                    let service = ServiceId(service);
                    let Some(memory) = memories.get(&service) else { return };
                    let place = slot(u64::from(tag) << 32, memory.table.len() as u32);
                    if memory.table.get(place as usize) != Some(&backend) {
                        tables.flag(service, place);
                        elsewhere.push((service, place));
                    }
                },
            );
            sum.count(imported);
            if let (Imported::Repeated(from), Some(service)) = (imported, clients.service_of(record.backend)) {
                *sum.repeated.entry((service, backends.cause_of_moves(from).counter())).or_default() += 1;
            }
        }
        for (service, place) in elsewhere {
            sweep.found_elsewhere(service, place);
        }
        sum
    }
}
