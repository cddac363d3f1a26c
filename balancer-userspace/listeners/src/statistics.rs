//! Statistics from observation: heavy clients, the counts of the last minute and the last hour, and conditions that
//! need attention.
//!
//! A separate task reads the ring of packet samples four times a second, requests a snapshot from the controller every
//! ten seconds, and adds its results to later snapshots.

mod file;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use balancer_common::map_types::Sample;
use balancer_config::{
    config::{ClientPrefix, StatisticsConfig},
    names::BackendName,
};
use balancer_control::{
    history::{History, STEP},
    io::{BackendId, Report, ReportLevel, ServiceId},
    rates::TrafficHistory,
    shares::ShareHistory,
    silence::{Around, first_look},
    snapshot::{Coming, ServiceSnapshot, ServiceStatistics, Snapshot, SpreadHeavy},
    top::{By, Top, client_of},
};
use balancer_runtime::{clocks::uptime, events::Events, supervisor::Supervisor};
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::warn;

use self::file::{HistoryFile, Moment};
use crate::call::{Call, Calls};

/// The interval at which the task reads the ring of packet samples.
const LOOK: Duration = Duration::from_millis(250);
/// The interval at which the task lowers the weight of earlier samples.
const FADE: Duration = Duration::from_secs(1);
/// The delay before the task requests a snapshot because of samples from an unknown service.
const ASK: Duration = Duration::from_secs(1);
/// The minimum number of samples of a backend's packets from which the task determines heavy clients.
const ENOUGH_SAMPLES: f64 = 64.0;
/// The minimum time from one log line about a client to the next line about the same client.
const SILENCE: Duration = Duration::from_secs(3600);
/// The maximum number of backends with which the task still writes shares to the history file. With more backends, the
/// file would become too large, so shares are lost when the process ends.
const SHARES_KEPT: usize = 4096;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A client, with a line that describes the client's problem.
pub type Named = (IpAddr, String);

/// The counts and shares of a service during the last hour.
#[derive(Clone, Debug, Default)]
struct Past {
    counted: Arc<History>,
    shares: Arc<ShareHistory>,
    traffic: Arc<TrafficHistory>,
}

/// The statistics that the task has collected so far.
#[derive(Debug)]
pub struct Statistics {
    started: Instant,
    /// The uptime of the machine at the moment `started`.
    uptime: Duration,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    settings: StatisticsConfig,
    /// The client prefix and the heavy clients of each service.
    services: HashMap<ServiceId, (ClientPrefix, Arc<Top>)>,
    /// For each service with both address families: the second id of the service, by its first id.
    parts: HashMap<ServiceId, ServiceId>,
    /// The histories of services by name, because a restart may change ids.
    histories: HashMap<String, Past>,
    /// The file that preserves the histories for the next controller.
    file: Option<HistoryFile>,
    warnings: HashMap<ServiceId, Vec<String>>,
    /// The clients that get replies directly from their backends, without the balancer.
    near: HashMap<ServiceId, Vec<String>>,
    /// The history of events, which receives suggestions.
    events: Option<Events>,
    /// The times at which the log last named each client.
    named: HashMap<(ServiceId, IpAddr), Instant>,
}

impl Statistics {
    /// Makes statistics that are still empty.
    #[must_use]
    pub fn new(settings: StatisticsConfig) -> Self {
        let seen = Seen { settings, ..Seen::default() };
        Self { started: Instant::now(), uptime: uptime(), seen: Mutex::new(seen) }
    }

    /// Makes statistics that keep the last hour in a file beside `state_file`. If this process has `adopted` the
    /// kernel's counters from another process, it continues the counts in the file.
    #[must_use]
    pub fn beside(settings: StatisticsConfig, state_file: &Path, adopted: bool, supervisor: &Supervisor) -> Self {
        let this = Self::new(settings);
        if adopted {
            this.seen().histories = file::read(state_file, this.uptime);
        } else {
            file::forget(state_file);
        }
        this.seen().file = Some(HistoryFile::open(state_file, supervisor));
        this
    }

    /// Makes the statistics report suggestions to `events` from now on.
    pub fn tell(&self, events: Events) {
        self.seen().events = Some(events);
    }

    /// Replaces the settings of the statistics.
    pub fn set(&self, settings: StatisticsConfig) {
        self.seen().settings = settings;
    }

    /// Starts or stops keeping the last hour in a file beside `state_file`.
    pub fn keep(&self, state_file: Option<&PathBuf>, supervisor: &Supervisor) {
        let mut seen = self.seen();
        match state_file {
            Some(state_file) if seen.file.is_none() => {
                file::forget(state_file);
                seen.file = Some(HistoryFile::open(state_file, supervisor));
            }
            Some(_) => {}
            None => seen.file = None,
        }
    }

    /// Replaces the set of clients that get replies directly from their backends, by the id of the service.
    pub fn name_near_clients(&self, clients: HashMap<ServiceId, Vec<Named>>) {
        let (mut seen, now) = (self.seen(), Instant::now());
        seen.near.clear();
        for (part, named) in clients {
            let id = seen.parts.get(&part).copied().unwrap_or(part);
            seen.name(id, &named, now);
            seen.near.entry(id).or_default().extend(named.into_iter().map(|(_, line)| line));
        }
    }

    /// The time since the machine was started, by which counts are dated.
    fn now(&self) -> Duration {
        self.uptime + self.started.elapsed()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the statistics to the services of a snapshot.
    #[must_use]
    pub fn complete(self: Arc<Self>, snapshot: Snapshot<Coming>) -> Snapshot<Coming> {
        let now = self.now();
        let around = Around::of(&snapshot.interfaces, snapshot.member.withdrawn);
        let complete = move |mut service: ServiceSnapshot| {
            service.statistics = self.seen().statistics(&service, now);
            let is_silent = match service.rates() {
                Some(rates) => rates.packets == 0.0,
                // A service without backends has nothing to count.
                None => service.backends.is_empty(),
            };
            service.statistics.silence = is_silent.then(|| first_look(&service, &around));
            service
        };
        snapshot.map(|services| Coming::new(services.map(complete)))
    }

    /// Observes samples and counters until the controller has ended.
    pub async fn watch(self: Arc<Self>, mut samples: RingBuf<MapData>, calls: Calls) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut faded = Instant::now();
        let (mut asked, mut stepped): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let now = look.tick().await;
            let strangers = self.take(&mut samples);
            if now - faded >= FADE {
                self.fade(now - faded);
                faded = now;
            }
            let step = stepped.is_none_or(|stepped| now - stepped >= STEP);
            let urgent = strangers && asked.is_none_or(|asked| now - asked >= ASK);
            if !(step || urgent) {
                continue;
            }
            asked = Some(now);
            let (reply, answer) = oneshot::channel();
            if calls.send(Call::Snapshot { reply }).await.is_err() {
                return;
            }
            if let Ok(Ok(snapshot)) = answer.await {
                let this = Arc::clone(&self);
                // There may be sixty thousand backends, and processing their counters must delay no other task.
                if spawn_blocking(move || this.note(snapshot.services, step, now)).await.is_err() {
                    return;
                }
            }
            if step {
                stepped = Some(now);
            }
        }
    }

    /// Counts the samples in the ring of packet samples. The function returns whether some samples belong to unknown
    /// services.
    fn take(&self, samples: &mut RingBuf<MapData>) -> bool {
        let mut seen = self.seen();
        let mut strangers = false;
        while let Some(item) = samples.next() {
            let Ok(sample) = bytemuck::try_pod_read_unaligned::<Sample>(&item) else { continue };
            strangers |= !seen.count(&sample);
        }
        strangers
    }

    fn fade(&self, elapsed: Duration) {
        for (_, top) in self.seen().services.values_mut() {
            Arc::make_mut(top).fade(elapsed);
        }
    }

    fn note(&self, services: Coming, step: bool, now: Instant) {
        let mut kept = step.then(|| Step::at(self.now()));
        let (mut parts, mut names) = (HashMap::new(), HashSet::new());
        for service in services {
            let mut seen = self.seen();
            seen.note(&service, now);
            if let Some(step) = &mut kept {
                seen.keep(&service, step);
            }
            parts.extend(service.ids.iter().map(|&id| (id, first(&service))));
            names.insert(service.name);
        }
        let mut seen = self.seen();
        let there: HashSet<ServiceId> = parts.values().copied().collect();
        seen.parts = parts;
        seen.services.retain(|id, _| there.contains(id));
        seen.histories.retain(|name, _| names.contains(name));
        seen.warnings.retain(|id, _| there.contains(id));
        seen.named.retain(|_, named| now - *named < SILENCE);
        if let (Some(file), Some(step)) = (&mut seen.file, kept) {
            file.keep(&step.moment());
        }
    }
}

/// The counts of all services at one time, for the history file.
struct Step {
    at: Duration,
    moment: Moment,
    backends: usize,
}

impl Step {
    fn at(at: Duration) -> Self {
        Self { at, moment: Moment { at: at.as_millis() as u64, ..Moment::default() }, backends: 0 }
    }

    const fn are_few(&self) -> bool {
        self.backends <= SHARES_KEPT
    }

    fn moment(self) -> Moment {
        if self.are_few() { self.moment } else { Moment { shares: BTreeMap::new(), ..self.moment } }
    }
}

impl Seen {
    /// Returns the statistics of a service, for a snapshot.
    fn statistics(&self, service: &ServiceSnapshot, now: Duration) -> ServiceStatistics {
        let id = first(service);
        let Past { counted, shares, traffic } = self.histories.get(&service.name).cloned().unwrap_or_default();
        let before = |ago| counted.before(now, ago).map(|(at, counted)| (now.saturating_sub(at), counted));
        ServiceStatistics {
            interval: self.settings.sample_interval,
            top: self.services.get(&id).map(|(_, top)| Arc::clone(top)).unwrap_or_default(),
            minute: before(MINUTE),
            hour: before(HOUR),
            now,
            warnings: (service.statistics.warnings.iter())
                .chain(self.warnings.get(&id).into_iter().flatten())
                .chain(self.near.get(&id).into_iter().flatten())
                .cloned()
                .collect(),
            shares,
            history: counted,
            traffic,
            silence: None,
        }
    }

    /// Finds the heavy clients of a service, and records the service as known.
    fn note(&mut self, service: &ServiceSnapshot, now: Instant) {
        let id = first(service);
        let (prefix, top) = self.services.entry(id).or_insert_with(|| (service.client_prefix, Arc::default()));
        if *prefix != service.client_prefix {
            (*prefix, *top) = (service.client_prefix, Arc::default());
        }
        let top = Arc::clone(top);
        let rule = service.spread_heavy.as_ref();
        let proposed =
            rule.map(|rule| proposals((&service.name, service.client_prefix), rule, &top)).unwrap_or_default();
        self.propose(id, &service.name, &proposed, now);
        let is_proposed = |client: &IpAddr| proposed.iter().any(|(other, _)| other == client);
        let mut heavy = heavy_clients(service, &top, self.settings.heavy_client_share);
        heavy.retain(|(client, _)| !is_proposed(client));
        self.name(id, &heavy, now);
        self.warnings.insert(id, proposed.into_iter().chain(heavy).map(|(_, text)| text).collect());
    }

    /// Reports clients for which the balancer suggests a rule; repeats each report from time to time.
    fn propose(&mut self, id: ServiceId, service: &str, clients: &[Named], now: Instant) {
        for (client, text) in clients {
            let Entry::Vacant(unnamed) = self.named.entry((id, *client)) else { continue };
            unnamed.insert(now);
            let about = BackendName { service: service.to_owned(), backend: String::new() };
            let report = Report { level: ReportLevel::Warn, about: Some(about), message: text.clone(), moves: None };
            match &self.events {
                Some(events) => events.report(&report),
                None => warn!("{text}"),
            }
        }
    }

    /// Logs those clients of a service that the log has not named recently.
    fn name(&mut self, id: ServiceId, clients: &[Named], now: Instant) {
        for (client, text) in clients {
            if let Entry::Vacant(unnamed) = self.named.entry((id, *client)) {
                unnamed.insert(now);
                warn!("{text}");
            }
        }
    }

    /// Adds the current counts of a service to the history of the service.
    fn keep(&mut self, service: &ServiceSnapshot, step: &mut Step) {
        step.backends += service.backends.len();
        let past = self.histories.entry(service.name.clone()).or_default();
        let counted = service.counted();
        Arc::make_mut(&mut past.counted).keep(step.at, counted);
        step.moment.services.insert(service.name.clone(), counted);
        let loads: Vec<(&str, u64)> =
            service.backends.iter().map(|backend| (backend.name.as_str(), service.load(backend))).collect();
        let traffic = service.backends.iter().filter_map(|of| Some((*of.ids.first()?, (&of.stats).into())));
        Arc::make_mut(&mut past.traffic).keep(step.at, traffic);
        let shares = Arc::make_mut(&mut past.shares);
        if shares.keep(step.at, service.load_kind(), &loads) && step.are_few() {
            step.moment.shares.extend(shares.last().map(|last| (service.name.clone(), last)));
        }
    }

    /// Counts a sample. The function returns whether the service of the sample is known.
    fn count(&mut self, sample: &Sample) -> bool {
        let Some(first) = self.parts.get(&ServiceId(sample.service)) else { return false };
        let Some((prefix, top)) = self.services.get_mut(first) else { return false };
        Arc::make_mut(top).count(client_of(sample, *prefix), BackendId(sample.backend), sample.bytes);
        true
    }
}

/// Returns the id by which the statistics identify a service, which is the first of the service's ids.
fn first(service: &ServiceSnapshot) -> ServiceId {
    service.ids.first().copied().unwrap_or(ServiceId(u16::MAX))
}

/// The clients that send at least the fraction `least` of the bytes that their backend receives, each with a line that
/// describes the load and suggests a remedy. If `least` is 0, the list is empty.
fn heavy_clients(service: &ServiceSnapshot, top: &Top, least: f64) -> Vec<Named> {
    if least <= 0.0 {
        return Vec::new();
    }
    let named = top.heaviest(By::Bytes).into_iter().filter_map(|heavy| {
        let (share, samples) = top.share_of_backend(&heavy);
        let backend = service.backends.iter().find(|backend| backend.ids.contains(&heavy.backend))?;
        if samples < ENOUGH_SAMPLES || share < least {
            return None;
        }
        let (name, prefix) = (&service.name, service.prefix_of(heavy.client));
        let text = format!(
            "client {client}/{prefix} sends {:.0}% of the bytes of backend {name}/{}; to spread it over all backends: \
             balancer rule add {name} {client}/{prefix} spread",
            share * 100.0,
            backend.name,
            client = heavy.client,
        );
        Some((heavy.client, text))
    });
    named.collect()
}

/// The clients without a rule that send more than the fraction `spread_heavy` of a service's bytes, each with a line
/// that describes the load and suggests the rule.
fn proposals((name, prefixes): (&str, ClientPrefix), rule: &SpreadHeavy, top: &Top) -> Vec<Named> {
    if top.total().packets < ENOUGH_SAMPLES {
        return Vec::new();
    }
    let heavy = top.heaviest(By::Bytes).into_iter();
    let heavy = heavy.map(|heavy| (heavy.client, top.share(&heavy.seen, By::Bytes)));
    let heavy =
        heavy.filter(|(client, share)| *share >= rule.share && !rule.ruled.iter().any(|of| of.contains(client)));
    let proposal = |(client, share): (IpAddr, f64)| {
        let prefix = if client.is_ipv4() { prefixes.v4 } else { prefixes.v6 };
        let text = format!(
            "client {client}/{prefix} sends {:.0}% of the bytes of service {name}, spread_heavy is {:.0}%; a rule spreads its \
             connections over all backends, and ends the open ones and its known sessions: balancer rule add {name} \
             {client}/{prefix} spread",
            share * 100.0,
            rule.share * 100.0,
        );
        (client, text)
    };
    heavy.map(proposal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(host: u8, backend: u16, bytes: u32) -> (IpAddr, BackendId, u32) {
        (IpAddr::from([192, 0, 2, host]), BackendId(backend), bytes)
    }

    #[test]
    fn when_a_client_sends_more_than_its_part_then_a_rule_is_proposed_unless_it_has_one() {
        let mut top = Top::default();
        for round in 0..100u16 {
            for (client, backend, bytes) in [sampled(1, 1, 900), sampled(2, 1 + round % 2, 300), sampled(3, 2, 100)] {
                top.count(client, backend, bytes);
            }
        }
        let of = |share, ruled: &[&str], top: &Top| {
            let ruled = ruled.iter().map(|prefix| prefix.parse().unwrap()).collect();
            proposals(("web", ClientPrefix { v4: 32, v6: 64 }), &SpreadHeavy { share, ruled }, top)
        };
        let proposed = of(0.2, &[], &top);
        let text = "client 192.0.2.1/32 sends 69% of the bytes of service web, spread_heavy is 20%; a rule spreads its \
                    connections over all backends, and ends the open ones and its known sessions: balancer rule add web \
                    192.0.2.1/32 spread";
        assert_eq!(proposed[0].1, text);
        assert_eq!(proposed.len(), 2, "{proposed:?}");
        assert_eq!(of(0.2, &["192.0.2.0/31"], &top).len(), 1, "the second one is left");
        assert_eq!(of(0.7, &[], &top), Vec::new());
        assert_eq!(of(0.2, &[], &Top::default()), Vec::new(), "nothing is known");
    }
}
