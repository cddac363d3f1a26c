//! Lists of targets: this module records the known lists, and derives the resulting changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use balancer_config::{
    discover::{DiscoverConfig, Source, Target},
    names::BackendName,
    questions::Questions,
    words::counted,
};
use balancer_control::{
    absent::{Absent, Habit, Patience},
    io::{Change, Refused, Report, ReportLevel},
    service::Service,
    snapshot::DiscoverSnapshot,
};
use balancer_dataplane::Dataplane;
use balancer_sources::list_sources::WantedLists;
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

/// The last state of a list of targets.
#[derive(Debug, Default)]
struct Known {
    /// The targets of the last valid list, and the time at which the list was read.
    targets: Option<(Arc<Vec<Target>>, Instant)>,
    /// The number of valid lists that the source has given.
    answers: u64,
    /// The reason why the current list is not valid.
    error: Option<String>,
}

/// The last attempt to apply a list to a service.
#[derive(Debug, Default)]
struct Use {
    /// The input of the last attempt: the list, the configuration's section about the list, and the configuration's
    /// generation.
    seen: Option<(Arc<Vec<Target>>, DiscoverConfig, u64)>,
    /// The number of valid lists that the source had given then.
    answers: u64,
    /// The targets that the list lacks.
    absent: Absent,
    /// The backends that waited for their targets at the last attempt.
    waiting: BTreeSet<String>,
    /// The habit of the source that was reported.
    habit: Option<Habit>,
    /// The faults of the entries that are left out.
    left_out: Vec<String>,
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
                let before = known.targets.take().map(|(old, _)| old);
                let is_as_long = before.as_ref().is_some_and(|old| old.len() == targets.len());
                let same = before.filter(|old| *old == targets);
                let is_well_again = known.error.take().is_some();
                // Some DNS servers give other targets in each answer, which is worth no line each time.
                if is_well_again || !is_as_long {
                    info!("{source}: {} read", counted(targets.len(), "target"));
                }
                self.changed |= is_well_again || same.is_none();
                known.targets = Some((same.unwrap_or(targets), Instant::now()));
                known.answers += 1;
            }
            Err(error) => {
                if known.error.as_ref() != Some(&error) {
                    error!("list of targets refused, its backends stay as they are: {error}");
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
            let Some(known) = self.discovery.lists.get(&source) else { continue };
            let Some((targets, _)) = &known.targets else { continue };
            let (targets, answers) = (Arc::clone(targets), known.answers);
            let of = self.discovery.uses.entry((service.clone(), source.clone())).or_default();
            if of.is_asked {
                continue;
            }
            let is_seen = of.seen.as_ref().is_some_and(|(seen, section, at)| {
                Arc::ptr_eq(seen, &targets) && *section == list && *at == generation
            });
            let new_answers = u32::try_from(answers.saturating_sub(of.answers)).unwrap_or(u32::MAX);
            of.answers = answers;
            if is_seen {
                of.absent.note_same(new_answers);
            } else if let Some(named) = self.controller.named(&service, &source, &targets) {
                of.absent.note(&named, new_answers, now.into());
            }
            let patience = Patience { keep: list.keep, counts_answers: source.dns().is_some() };
            let waiting = of.absent.waiting(patience, now.into());
            let is_late = of.refused.as_ref().is_some_and(|(_, at)| now >= *at + AGAIN);
            if is_seen && waiting == of.waiting && !is_late {
                continue;
            }
            of.seen = Some((Arc::clone(&targets), list, generation));
            of.waiting.clone_from(&waiting);
            changes.extend(self.discover(service, source, &targets, waiting));
        }
        self.report_habits();
        changes
    }

    /// Returns the change that a list of targets requires.
    fn discover(
        &mut self,
        service: String,
        source: Source,
        targets: &[Target],
        waiting: BTreeSet<String>,
    ) -> Option<Change> {
        let unresolved = self.controller.unresolved(&service, &source, targets);
        let applied = self.controller.discovery(&service, &source, targets, &waiting);
        let of = self.discovery.uses.get_mut(&(service.clone(), source.clone()))?;
        let left_out = applied.as_ref().map_or_else(|_| Vec::new(), |(pool, _)| pool.left_out.clone());
        if of.unresolved != unresolved || of.left_out != left_out {
            unresolved
                .iter()
                .filter(|_| of.unresolved != unresolved)
                .for_each(|text| warn!("service {service}: {text}"));
            let is_new = |fault: &&String| !of.left_out.contains(fault);
            left_out.iter().filter(is_new).for_each(|fault| warn!("service {service}: {source}: left out: {fault}"));
            (of.unresolved, of.left_out, self.changed) = (unresolved, left_out, true);
        }
        match applied {
            Ok((_, false)) => self.note_refused(&service, &source, None),
            Ok((_, true)) => {
                of.is_asked = true;
                return Some(Change::Discover { service, source, targets: targets.to_vec(), waiting });
            }
            Err(refused) => self.note_refused(&service, &source, Some(refused.to_string())),
        }
        None
    }

    /// Reports the sources that have begun to give other targets each time.
    fn report_habits(&mut self) {
        for ((service, source), of) in &mut self.discovery.uses {
            let habit = of.absent.habit();
            if habit == of.habit {
                continue;
            }
            if let Some(habit) = habit.filter(|_| of.habit.is_none()) {
                let message =
                    format!("service {service}: {source} {habit}; a missing target drains after more answers");
                let about = Some(BackendName { service: service.clone(), backend: String::new() });
                self.events.report(&Report { level: ReportLevel::Info, about, message, moves: None });
            }
            (of.habit, self.changed) = (habit, true);
        }
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
                error!("service {service}: list of targets refused, its backends stay as they are: {text}");
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
        let told = |error: &String| format!("list of targets refused, its backends stay as they are: {error}");
        let mut troubles: Vec<String> = errors.map(told).collect();
        troubles.extend(self.discovery.uses.iter().filter_map(|((service, _), of)| {
            Some(format!("service {service}: {}, backends keep their last addresses", of.unresolved.as_ref()?))
        }));
        troubles.extend(self.discovery.uses.iter().filter_map(|((service, source), of)| {
            Some(format!("service {service}: {source}: {}", left_out(&of.left_out)?))
        }));
        troubles.extend(self.discovery.uses.iter().filter_map(|((service, _), of)| {
            let (text, _) = of.refused.as_ref()?;
            Some(format!("service {service}: list of targets refused, its backends stay as they are: {text}"))
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
                targets: (known.and_then(|known| known.targets.as_ref()).map(|(targets, _)| sound(targets)))
                    .or_else(|| pool(&list.source)),
                read: known.and_then(|known| known.targets.as_ref()).map(|(_, at)| at.elapsed()),
                error: known.and_then(|known| known.error.clone()).or(refused).or(unresolved),
                left_out: of.map(|of| of.left_out.clone()).unwrap_or_default(),
                waiting: of.map(|of| of.waiting.iter().cloned().collect()).unwrap_or_default(),
                habit: of.and_then(|of| of.absent.habit()).map(|habit| habit.to_string()),
            }
        };
        service.discover().iter().map(snapshot).collect()
    }
}

/// The number of targets of a list without the faulty ones.
fn sound(targets: &[Target]) -> usize {
    targets.iter().filter(|target| target.fault.is_none()).count()
}

/// The entries that are left out of a list, as one sentence; `None`: there are none.
fn left_out(faults: &[String]) -> Option<String> {
    let more = match faults.len().checked_sub(1)? {
        0 => String::new(),
        more => format!("; {more} more"),
    };
    Some(format!("{} left out: {}{more}", counted(faults.len(), "target"), faults.first()?))
}

/// The number of backends of a service that come from a list.
fn listed(service: &Service, source: &Source) -> usize {
    let discovered = service.backends().iter().filter_map(|backend| backend.config().discovered.as_ref());
    discovered.filter(|of| of.source == *source && of.gone.is_none()).count()
}
