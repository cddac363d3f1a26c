//! Lists of targets: which ones are known, and the resulting changes.

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

/// The delay before a refused list is retried.
const AGAIN: Duration = Duration::from_secs(5);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Whether this balancer reads the lists; in a fleet only the leader does.
    reads: bool,
    /// The number of times that it has begun or ceased to read.
    readings: u64,
    lists: BTreeMap<Source, Known>,
    /// The attempts by service and list.
    uses: BTreeMap<(String, Source), Use>,
}

/// The lists that services name, by the kind of their source.
#[derive(Debug, Default)]
pub struct WantedLists {
    /// If it differs from that of earlier lists, the owner has forgotten them, and wants all lists anew.
    pub reading: u64,
    /// The files.
    pub files: BTreeSet<PathBuf>,
    /// The DNS queries.
    pub questions: Questions,
    /// The prefixes of keys of etcd.
    pub trees: BTreeMap<EtcdSource, ()>,
}

/// The last state of a list of targets.
#[derive(Debug, Default)]
struct Known {
    /// The targets of the last valid list, and when it was read.
    targets: Option<(Arc<Vec<Target>>, Instant)>,
    /// Why the list is no longer valid.
    error: Option<String>,
}

/// The last attempt of a service to apply a list.
#[derive(Debug, Default)]
struct Use {
    /// The input of the last attempt: the list, the section of the configuration, and its generation.
    seen: Option<(Arc<Vec<Target>>, DiscoverConfig, u64)>,
    /// Whether a change was requested and not answered.
    is_asked: bool,
    /// Why the list is not applied, and since when.
    refused: Option<(String, Instant)>,
    /// Why some targets lack addresses that the service needs.
    unresolved: Option<String>,
}

impl<D: Dataplane> Owner<D> {
    /// Sets whether this balancer reads the lists. A new leader of a fleet reads all of them again.
    pub fn read_lists(&mut self, reads: bool) {
        if self.discovery.reads != reads {
            let readings = self.discovery.readings + 1;
            self.discovery = Discovery { reads, readings, ..Discovery::default() };
            self.changed = true;
        }
    }

    /// The lists to read.
    pub fn wanted_lists(&self) -> WantedLists {
        WantedLists {
            reading: self.discovery.readings,
            files: self.uses().filter_map(|(_, list)| list.source.file()).map(Path::to_owned).collect(),
            questions: if self.discovery.reads { self.controller.questions() } else { Questions::new() },
            trees: self.uses().filter_map(|(_, list)| Some((list.source.etcd()?.clone(), ()))).collect(),
        }
    }

    /// Sections to use by the name of their service, each once. Followers in a fleet use none.
    fn uses(&self) -> impl Iterator<Item = (&str, &DiscoverConfig)> {
        let services = self.controller.services().iter().filter(|_| self.discovery.reads);
        services.flat_map(|service| service.discover().iter().map(|list| (service.name(), list)))
    }

    /// Handles a list that was read. An invalid list changes only what is reported.
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

    /// The changes that lists require now. [`discovery_done`](Self::discovery_done) reports the outcome of each.
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

    /// Records the outcome of a change that a list required.
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

    /// Makes the changes that lists require immediately: before the first packet no client waits.
    pub fn begin_discovery(&mut self) {
        for change in self.discoveries() {
            let Change::Discover { service, source, .. } = &change else { continue };
            let (service, source) = (service.clone(), source.clone());
            let done = self.change(change, None, Default::default());
            self.discovery_done(&service, &source, done.err().as_ref());
        }
    }

    /// Why lists are not applied, one sentence each.
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

    /// The states of the lists named by a service.
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

/// The number of backends that a service has by a list.
fn listed(service: &Service, source: &Source) -> usize {
    let discovered = service.backends().iter().filter_map(|backend| backend.config().discovered.as_ref());
    discovered.filter(|of| of.source == *source && of.gone.is_none()).count()
}
