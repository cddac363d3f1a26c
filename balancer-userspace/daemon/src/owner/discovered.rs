//! Lists of targets: this module records the known lists, and derives the resulting changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_config::{
    discover::{DiscoverConfig, Source, Target},
    etcd::EtcdSource,
    questions::Questions,
    words::counted,
};
use balancer_control::{
    io::{Change, Refused},
    service::Service,
    snapshot::DiscoverSnapshot,
};
use balancer_dataplane::Dataplane;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Owner;

/// The delay before the owner retries a refused list.
const AGAIN: Duration = Duration::from_secs(5);

/// The lists of targets of the owner: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Whether this balancer reads the lists of targets; in a fleet, only the leader does.
    reads: bool,
    /// The number of times that this balancer has started or stopped reading lists.
    readings: u64,
    lists: BTreeMap<Source, Known>,
    /// The last attempt to apply each list, by service and list.
    uses: BTreeMap<(String, Source), Use>,
}

/// The lists that services name, by the kind of their source.
#[derive(Debug, Default)]
pub struct WantedLists {
    /// The number of times that the balancer has started or stopped reading lists. If this number has changed, the
    /// owner has forgotten the lists read so far, and needs all lists again.
    pub reading: u64,
    /// The files that contain lists.
    pub files: BTreeSet<PathBuf>,
    /// The DNS queries whose answers are lists.
    pub questions: Questions,
    /// The prefixes of keys of etcd.
    pub trees: BTreeMap<EtcdSource, ()>,
}

/// The last state of a list of targets.
#[derive(Debug, Default)]
struct Known {
    /// The targets of the last valid list, and the time at which the list was read.
    targets: Option<(Arc<Vec<Target>>, Instant)>,
    /// The reason why the current list is not valid.
    error: Option<String>,
}

/// The last attempt to apply a list to a service.
#[derive(Debug, Default)]
struct Use {
    /// The input of the last attempt: the list, the configuration's section about the list, and the configuration's
    /// generation.
    seen: Option<(Arc<Vec<Target>>, DiscoverConfig, u64)>,
    /// Whether the controller has not answered the requested change yet.
    is_asked: bool,
    /// The reason why the controller refused the change, and the time of the refusal.
    refused: Option<(String, Instant)>,
    /// The reason why some targets lack an address that the service needs.
    unresolved: Option<String>,
}

impl<D: Dataplane> Owner<D> {
    /// Sets whether this balancer reads the lists of targets. When a member becomes the leader of a fleet, it reads all
    /// lists again.
    pub fn read_lists(&mut self, reads: bool) {
        if self.discovery.reads != reads {
            let readings = self.discovery.readings + 1;
            self.discovery = Discovery { reads, readings, ..Discovery::default() };
            self.changed = true;
        }
    }

    /// The lists that the balancer should read.
    pub fn wanted_lists(&self) -> WantedLists {
        WantedLists {
            reading: self.discovery.readings,
            files: self.uses().filter_map(|(_, list)| list.source.file()).map(Path::to_owned).collect(),
            questions: if self.discovery.reads { self.controller.questions() } else { Questions::new() },
            trees: self.uses().filter_map(|(_, list)| Some((list.source.etcd()?.clone(), ()))).collect(),
        }
    }

    /// The sections about lists that are in use, without duplicates, by the name of the service. The result is empty
    /// for a member of a fleet that is not the leader.
    fn uses(&self) -> impl Iterator<Item = (&str, &DiscoverConfig)> {
        let services = self.controller.services().iter().filter(|_| self.discovery.reads);
        services.flat_map(|service| service.discover().iter().map(|list| (service.name(), list)))
    }

    /// Handles the contents of a list of targets. If the new contents are invalid, the last valid list stays, and only
    /// the reported error changes.
    pub fn list_was_read(&mut self, source: Source, read: Result<Arc<Vec<Target>>, String>) {
        if !self.uses().any(|(_, list)| list.source == source) {
            return;
        }
        let known = self.discovery.lists.entry(source.clone()).or_default();
        match read {
            Ok(targets) => {
                let same = known.targets.take().map(|(old, _)| old).filter(|old| *old == targets);
                if known.error.take().is_some() || same.is_none() {
                    info!("{source}: {} read", counted(targets.len(), "target"));
                    self.changed = true;
                }
                known.targets = Some((same.unwrap_or(targets), Instant::now()));
            }
            Err(error) => {
                if known.error.as_ref() != Some(&error) {
                    error!("a list of targets is not taken over, the last pool stays: {error}");
                    self.changed = true;
                }
                known.error = Some(error);
            }
        }
    }

    /// Returns the changes that lists of targets currently require. The caller reports the outcome of each change with
    /// [`discovery_done`](Self::discovery_done).
    pub fn discoveries(&mut self) -> Vec<Change> {
        let wanted: BTreeMap<(String, Source), DiscoverConfig> =
            self.uses().map(|(service, list)| ((service.to_owned(), list.source.clone()), list.clone())).collect();
        if wanted.is_empty() && self.discovery.uses.is_empty() {
            return Vec::new();
        }
        self.discovery.uses.retain(|key, _| wanted.contains_key(key));
        self.discovery.lists.retain(|source, _| wanted.keys().any(|(_, wanted)| wanted == source));
        let generation = self.controller.generation();
        let now = Instant::now();
        let mut changes = Vec::new();
        for ((service, source), list) in wanted {
            let known = self.discovery.lists.get(&source).and_then(|known| known.targets.as_ref());
            let Some(targets) = known.map(|(targets, _)| Arc::clone(targets)) else { continue };
            let of = self.discovery.uses.entry((service.clone(), source.clone())).or_default();
            let is_seen = of.seen.as_ref().is_some_and(|(seen, section, at)| {
                Arc::ptr_eq(seen, &targets) && *section == list && *at == generation
            });
            let waits = of.refused.as_ref().is_none_or(|(_, at)| now < *at + AGAIN);
            if of.is_asked || is_seen && waits {
                continue;
            }
            of.seen = Some((Arc::clone(&targets), list, generation));
            let unresolved = self.controller.unresolved(&service, &source, &targets);
            if of.unresolved != unresolved {
                unresolved.iter().for_each(|text| warn!("service {service}: {text}"));
                (of.unresolved, self.changed) = (unresolved, true);
            }
            match self.controller.discovery(&service, &source, &targets) {
                Ok(None) => self.note_refused(&service, &source, None),
                Ok(Some(_)) => {
                    of.is_asked = true;
                    changes.push(Change::Discover { service, source, targets: targets.to_vec() });
                }
                Err(refused) => self.note_refused(&service, &source, Some(refused.to_string())),
            }
        }
        changes
    }

    /// Records the outcome of a change that a list of targets required.
    pub fn discovery_done(&mut self, service: &str, source: &Source, refused: Option<&Refused>) {
        if let Some(of) = self.discovery.uses.get_mut(&(service.to_owned(), source.clone())) {
            of.is_asked = false;
        }
        self.note_refused(service, source, refused.map(ToString::to_string));
    }

    fn note_refused(&mut self, service: &str, source: &Source, refused: Option<String>) {
        let Some(of) = self.discovery.uses.get_mut(&(service.to_owned(), source.clone())) else { return };
        let before = of.refused.as_ref().map(|(text, _)| text.clone());
        if before != refused {
            self.changed = true;
            if let Some(text) = &refused {
                error!("service {service}: a list of targets is not taken over, the last pool stays: {text}");
            }
        }
        of.refused = refused.map(|text| (text, Instant::now()));
    }

    /// Makes all changes that lists require immediately, because no client waits before the first packet.
    pub fn begin_discovery(&mut self) {
        for change in self.discoveries() {
            let Change::Discover { service, source, .. } = &change else { continue };
            let (service, source) = (service.clone(), source.clone());
            let done = self.change(change, None, Default::default());
            self.discovery_done(&service, &source, done.err().as_ref());
        }
    }

    /// The reasons why lists are not applied, as one sentence each.
    pub(super) fn discovery_troubles(&self) -> impl Iterator<Item = String> {
        let errors = self.discovery.lists.values().filter_map(|known| known.error.as_ref());
        let told = |error: &String| format!("a list of targets is not taken over, the last pool stays: {error}");
        let mut troubles: Vec<String> = errors.map(told).collect();
        troubles.extend(self.discovery.uses.iter().filter_map(|((service, _), of)| {
            Some(format!("service {service}: {}, backends keep their last addresses", of.unresolved.as_ref()?))
        }));
        troubles.extend(self.discovery.uses.iter().filter_map(|((service, _), of)| {
            let (text, _) = of.refused.as_ref()?;
            Some(format!("service {service}: a list of targets is not taken over, the last pool stays: {text}"))
        }));
        troubles.into_iter()
    }

    /// The states of the lists that a service names.
    pub(super) fn discover_snapshots(&self, service: &Service) -> Vec<DiscoverSnapshot> {
        let pool = |source: &Source| (!self.discovery.reads).then(|| listed(service, source));
        let snapshot = |list: &DiscoverConfig| {
            let known = self.discovery.lists.get(&list.source);
            let of = self.discovery.uses.get(&(service.name().to_owned(), list.source.clone()));
            let refused = of.and_then(|of| of.refused.as_ref()).map(|(text, _)| text.clone());
            let unresolved = of.and_then(|of| of.unresolved.clone());
            DiscoverSnapshot {
                source: list.source.clone(),
                targets: (known.and_then(|known| known.targets.as_ref()).map(|(targets, _)| targets.len()))
                    .or_else(|| pool(&list.source)),
                read: known.and_then(|known| known.targets.as_ref()).map(|(_, at)| at.elapsed()),
                error: known.and_then(|known| known.error.clone()).or(refused).or(unresolved),
            }
        };
        service.discover().iter().map(snapshot).collect()
    }
}

/// The number of backends of a service that come from a list.
fn listed(service: &Service, source: &Source) -> usize {
    let discovered = service.backends().iter().filter_map(|backend| backend.config().discovered.as_ref());
    discovered.filter(|of| of.source == *source && of.gone.is_none()).count()
}
