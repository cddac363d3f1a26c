//! Watching: who is heavy, what was counted a minute and an hour ago, what somebody should look at.
//!
//! A task of its own looks into the ring of samples four times a second, asks the controller for a snapshot every ten
//! seconds, and shares what comes of it with whoever reads a snapshot later.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use balancer_common::map_types::Sample;
use tokio::{
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::warn;

use crate::{
    config::model::StatisticsConfig,
    core::{
        history::{History, STEP},
        io::{BackendId, ServiceId},
        top::{By, Top, client_of},
    },
    shell::{
        call::{Call, Calls},
        snapshot::{ServiceSnapshot, Snapshot},
    },
};

/// How often the ring is looked into.
const LOOK: Duration = Duration::from_millis(250);
/// How often what was sampled fades.
const FADE: Duration = Duration::from_secs(1);
/// How soon a service that nobody has heard of is asked about.
const ASK: Duration = Duration::from_secs(1);
/// Fewer samples of a backend's packets tell nothing of who is heavy.
const ENOUGH_SAMPLES: f64 = 64.0;
/// How long the log is silent about a client that it has named.
const SILENCE: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What was seen so far.
#[derive(Debug)]
pub struct Statistics {
    settings: StatisticsConfig,
    started: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By service: its client prefix, and who is heavy.
    services: HashMap<ServiceId, (u8, Arc<Top>)>,
    histories: HashMap<ServiceId, Arc<History>>,
    warnings: HashMap<ServiceId, Vec<String>>,
    /// When the log last named a client.
    named: HashMap<(ServiceId, IpAddr), Instant>,
}

impl Statistics {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(settings: StatisticsConfig) -> Self {
        Self { settings, started: Instant::now(), seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was seen to a snapshot.
    pub fn complete(&self, snapshot: &mut Snapshot) {
        let now = self.started.elapsed();
        let seen = self.seen();
        for service in &mut snapshot.services {
            let statistics = &mut service.statistics;
            statistics.interval = self.settings.sample_interval;
            if let Some((_, top)) = seen.services.get(&service.id) {
                statistics.top = Arc::clone(top);
            }
            let before = |ago| {
                let (at, counted) = seen.histories.get(&service.id)?.before(now, ago)?;
                Some((now.saturating_sub(at), counted))
            };
            (statistics.minute, statistics.hour) = (before(MINUTE), before(HOUR));
            statistics.history = seen.histories.get(&service.id).map(Arc::clone).unwrap_or_default();
            statistics.now = now;
            statistics.warnings = seen.warnings.get(&service.id).cloned().unwrap_or_default();
        }
    }

    /// Watches until the controller is gone.
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
                self.note(&snapshot, step, now);
            }
            if step {
                stepped = Some(now);
            }
        }
    }

    /// Counts what is in the ring; whether some of it was of services not heard of.
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

    fn note(&self, snapshot: &Snapshot, step: bool, now: Instant) {
        let mut seen = self.seen();
        let there: HashSet<ServiceId> = snapshot.services.iter().map(|service| service.id).collect();
        seen.services.retain(|id, _| there.contains(id));
        seen.histories.retain(|id, _| there.contains(id));
        seen.warnings.retain(|id, _| there.contains(id));
        seen.named.retain(|_, named| now - *named < SILENCE);
        for service in &snapshot.services {
            let (prefix, top) =
                seen.services.entry(service.id).or_insert_with(|| (service.client_prefix, Arc::default()));
            if *prefix != service.client_prefix {
                (*prefix, *top) = (service.client_prefix, Arc::default());
            }
            let top = Arc::clone(top);
            let heavy = heavy_clients(service, &top, self.settings.heavy_client_share);
            for (client, text) in &heavy {
                if let Entry::Vacant(unnamed) = seen.named.entry((service.id, *client)) {
                    unnamed.insert(now);
                    warn!("{text}");
                }
            }
            seen.warnings.insert(service.id, heavy.into_iter().map(|(_, text)| text).collect());
            if step {
                let at = self.started.elapsed();
                Arc::make_mut(seen.histories.entry(service.id).or_default()).keep(at, service.counted());
            }
        }
    }
}

impl Seen {
    /// Whether the service is known.
    fn count(&mut self, sample: &Sample) -> bool {
        let Some((prefix, top)) = self.services.get_mut(&ServiceId(sample.service)) else { return false };
        Arc::make_mut(top).count(client_of(sample, *prefix), BackendId(sample.backend), sample.bytes);
        true
    }
}

/// Clients that send `least` or more of their backends' bytes, each with a line that says so and what would help. With
/// `least` 0 nobody.
fn heavy_clients(service: &ServiceSnapshot, top: &Top, least: f64) -> Vec<(IpAddr, String)> {
    if least <= 0.0 {
        return Vec::new();
    }
    let named = top.heaviest(By::Bytes).into_iter().filter_map(|heavy| {
        let (share, samples) = top.share_of_backend(&heavy);
        let backend = service.backends.iter().find(|backend| backend.id == heavy.backend)?;
        if samples < ENOUGH_SAMPLES || share < least {
            return None;
        }
        let (name, prefix) = (&service.name, service.client_prefix);
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
