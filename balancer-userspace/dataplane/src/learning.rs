//! Clients that other programs or members report: the controller writes the backends of these clients into the client
//! table that the kernel program uses.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use balancer_common::{
    client::slot,
    client_table::{BUCKET_ENTRIES, Entry, find, victim},
    share::{Share, Side},
};
use balancer_control::io::{BackendId, ServiceId};

use super::{
    KernelDataplane,
    clients::{ClientTable, Look},
    memory::Memory,
    reported::Reported,
    rows,
    stickiness::Stickiness,
};

/// The number of attempts to replace an entry that the program keeps changing.
const TRIES: usize = 8;

/// A client that the controller must record at a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// An address that belongs to the client.
    pub address: IpAddr,
    pub backend: BackendId,
    /// The time at which the client was last seen.
    pub seen: Seen,
}

/// The time at which a client was last seen, in one of two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The time since the client was last seen.
    Ago(Duration),
    /// The time for which the service will still remember the client.
    Left(Duration),
}

/// The numbers of reported clients, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learning {
    /// The number of clients that were unknown before.
    pub new: u64,
    /// The number of clients that were already known at the reported backend.
    pub known: u64,
    /// The number of clients that were known at another backend before.
    pub moved: u64,
    /// The number of clients that stay at another backend, because this balancer has served them.
    pub served: u64,
    /// The number of clients that were not seen for longer than their service remembers clients.
    pub expired: u64,
    /// The number of clients that found no room in their buckets.
    pub full: u64,
    /// The number of clients outside the service's family, or of a service that remembers no clients.
    pub strangers: u64,
}

pub(super) enum Written {
    New,
    Known,
    Moved,
    Served,
    Full,
}

/// What an import does with clients that this balancer has served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The clients stay at their backends.
    Stay,
    /// The clients are recorded at the reported backends.
    Overwrite,
}

impl KernelDataplane {
    /// Records clients of a service at the service's backends. A client that this balancer steers and has seen since the
    /// last report about the client stays at its backend, unless `served` says otherwise: the program that makes the
    /// report has not served the client since then.
    pub fn learn_clients(&mut self, service: ServiceId, clients: &[Learnt], served: Served) -> Learning {
        self.rescan_all();
        if self.reported.len() > self.stickiness.clients.words().len() {
            self.reported = Arc::default();
        }
        let mut sum = Learning::default();
        for &client in clients {
            *match self.learn(service, client, served) {
                Ok(Written::New) => &mut sum.new,
                Ok(Written::Known) => &mut sum.known,
                Ok(Written::Moved) => &mut sum.moved,
                Ok(Written::Served) => &mut sum.served,
                Ok(Written::Full) => &mut sum.full,
                Err(Refusal::Expired) => &mut sum.expired,
                Err(Refusal::Stranger) => &mut sum.strangers,
            } += 1;
        }
        self.stickiness.wait_for_packets();
        sum
    }

    fn learn(
        &mut self,
        service: ServiceId,
        Learnt { address, backend, seen }: Learnt,
        served: Served,
    ) -> Result<Written, Refusal> {
        let spec = self.directory.iter().find(|spec| spec.id == service).ok_or(Refusal::Stranger)?;
        let hash = rows::client_hash(spec, address).ok_or(Refusal::Stranger)?;
        let Stickiness { clients, sweep, memories, tables, .. } = &mut self.stickiness;
        let memory = memories.get(&service).ok_or(Refusal::Stranger)?;
        let reported = Arc::make_mut(&mut self.reported);
        let told = ToldClient { hash, backend, seen };
        learn((clients, memory), (service, spec.share), told, served, reported, |slot| {
            tables.flag(service, slot);
            sweep.found_elsewhere(service, slot);
        })
    }
}

/// A client that the controller must record at a backend, by its hash.
pub(super) struct ToldClient {
    pub(super) hash: u64,
    pub(super) backend: BackendId,
    pub(super) seen: Seen,
}

/// Records a client of a service. Before the client's entry changes, the function calls `flag` with the client's slot, if
/// the slot is another backend's.
pub(super) fn learn(
    (clients, memory): (&ClientTable, &Memory),
    (service, share): (ServiceId, Share),
    ToldClient { hash, backend, seen }: ToldClient,
    served: Served,
    reported: &mut Reported,
    flag: impl FnOnce(u32),
) -> Result<Written, Refusal> {
    let clock = memory.clock.ok_or(Refusal::Stranger)?;
    if clients.service_of(backend.0) != Some(service) {
        return Err(Refusal::Stranger);
    }
    let ticks = |time: Duration| time.as_secs() / u64::from(clock.tick_seconds);
    let age = match seen {
        Seen::Ago(ago) => ticks(ago),
        Seen::Left(left) => u64::from(clock.remember).saturating_sub(ticks(left)),
    };
    let age = u16::try_from(age).ok().filter(|&age| age <= clock.remember).ok_or(Refusal::Expired)?;
    let (tag, now) = ((hash >> 32) as u32, memory.tick);
    let place = slot(hash, memory.table.len() as u32);
    if memory.table.get(place as usize) != Some(&backend.0) {
        // The controller first sets the flag, because the program reads entries only for packets in flagged slots.
        flag(place);
    }
    let first = clients.bucket(hash) * BUCKET_ENTRIES;
    let words = clients.words().get(first..first + BUCKET_ENTRIES).unwrap_or_default();
    let ours = |id| clients.service_of(id) == Some(service);
    let bucket = Look(words);
    for _ in 0..TRIES {
        let is_served = |old: Entry| is_steered(share, tag) && !reported.is_unchanged(old);
        let (at, old, written) = match find(&bucket, tag) {
            Some((_, old)) if !ours(old.backend()) => return Ok(Written::Full),
            Some((at, old)) if old.backend() == backend.0 => (at, old, Written::Known),
            Some((at, old)) if old.age(now) > clock.remember => (at, old, Written::New),
            Some((_, old)) if served == Served::Stay && is_served(old) => return Ok(Written::Served),
            Some((at, old)) => (at, old, Written::Moved),
            None => match victim(&bucket, now, clock.remember, ours) {
                Some((at, _)) => (at, bucket.entry(at), Written::New),
                None => return Ok(Written::Full),
            },
        };
        let age = if matches!(written, Written::Known) { age.min(old.age(now)) } else { age };
        let is_served = matches!(written, Written::Known) && is_served(old);
        let new = Entry::heard_of(tag, backend.0, false, age, now);
        let exchange =
            |word: &AtomicU64| word.compare_exchange(old.0, new.0, Ordering::Release, Ordering::Relaxed).is_ok();
        if words.get(at).is_some_and(exchange) {
            if !is_served {
                reported.note(old, new);
            }
            return Ok(written);
        }
    }
    Ok(Written::Full)
}

/// Whether the balancer steers the new connections of a client with this tag.
const fn is_steered(share: Share, tag: u32) -> bool {
    matches!(share.side(tag), Side::Steered | Side::Came)
}

pub(super) enum Refusal {
    Expired,
    Stranger,
}
