//! The counters of permanently removed backends. The owner keeps these counters by name for an hour, and then adds them
//! up in one row of the service, so that unique names, such as those of pods, do not accumulate.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use balancer_common::map_types::BackendStats;
use balancer_control::{
    io::ServiceId,
    state::{Clocks, SavedCounters},
};

/// The name of the row with the counters of backends that were removed long ago. No configured backend can have this
/// name.
pub(crate) const TOGETHER: &str = "(departed)";
/// The time for which counters stay available by name.
const BY_NAME: Duration = Duration::from_secs(3600);

/// The interval at which the owner adds up old counters.
const PERIOD: Duration = Duration::from_secs(60);

/// The counters of removed backends: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct RemovedBackends {
    services: HashMap<ServiceId, BTreeMap<String, Row>>,
    /// The time at which the owner last added up old counters.
    summed: Option<Instant>,
}

#[derive(Debug)]
struct Row {
    stats: BackendStats,
    /// The time at which counters were last added to this row.
    since: Instant,
}

impl RemovedBackends {
    /// Restores the counters from the state file.
    pub(super) fn restore(kept: BTreeMap<u16, BTreeMap<String, SavedCounters>>, clocks: Clocks) -> Self {
        let row = |counters: SavedCounters| Row {
            stats: stats(&counters),
            since: counters.since.map_or(clocks.now, |since| clocks.instant(since).min(clocks.now)),
        };
        let rows =
            |rows: BTreeMap<String, SavedCounters>| rows.into_iter().map(|(name, counters)| (name, row(counters)));
        let services = kept.into_iter().map(|(service, of)| (ServiceId(service), rows(of).collect())).collect();
        Self { services, summed: None }
    }

    /// Exports the counters for the state file.
    pub(super) fn export(&self, clocks: Clocks) -> BTreeMap<u16, BTreeMap<String, SavedCounters>> {
        let counted = |(name, row): (&String, &Row)| {
            (name.clone(), SavedCounters { since: Some(clocks.moment(row.since)), ..counters(&row.stats) })
        };
        self.services.iter().map(|(service, rows)| (service.0, rows.iter().map(counted).collect())).collect()
    }

    /// Adds the counters of a removed backend with this `name`.
    pub(super) fn add(&mut self, service: ServiceId, name: String, stats: &BackendStats, now: Instant) {
        let rows = self.services.entry(service).or_default();
        let row = rows.entry(name).or_insert_with(|| Row { stats: BackendStats::default(), since: now });
        row.stats += stats;
        row.since = now;
    }

    /// Adds up the counters of those names to which nothing was added for an hour, except for backends that are still
    /// `present`. The function has an effect at most once a minute.
    pub(super) fn sum_up(&mut self, now: Instant, present: impl Fn(ServiceId) -> HashSet<String>) {
        if self.summed.is_some_and(|summed| now.saturating_duration_since(summed) < PERIOD) {
            return;
        }
        self.summed = Some(now);
        for (service, rows) in &mut self.services {
            let old = |name: &str, row: &Row| name != TOGETHER && now.saturating_duration_since(row.since) >= BY_NAME;
            if !rows.iter().any(|(name, row)| old(name, row)) {
                continue;
            }
            let present = present(*service);
            let (mut sum, mut any) = (BackendStats::default(), false);
            rows.retain(|name, row| {
                let goes = old(name, row) && !present.contains(name);
                if goes {
                    any = true;
                    sum += &row.stats;
                }
                !goes
            });
            if !any {
                continue;
            }
            let row = || Row { stats: BackendStats::default(), since: now };
            rows.entry(TOGETHER.to_owned()).or_insert_with(row).stats += &sum;
        }
    }

    /// Forgets the services that are not `listed`.
    pub(super) fn retain(&mut self, listed: &HashSet<ServiceId>) {
        self.services.retain(|service, _| listed.contains(service));
    }

    /// Returns the counters of a service's removed backends, by name.
    pub(super) fn of(&self, service: ServiceId) -> impl Iterator<Item = (&str, &BackendStats)> {
        self.services.get(&service).into_iter().flatten().map(|(name, row)| (name.as_str(), &row.stats))
    }
}

fn counters(stats: &BackendStats) -> SavedCounters {
    SavedCounters {
        packets: stats.packets,
        bytes: stats.bytes,
        connections: stats.connections,
        decisions: stats.decisions.to_vec(),
        moves: stats.moves.to_vec(),
        since: None,
    }
}

/// Converts counters from the state file. Counters that did not exist when the file was written are 0.
fn stats(counters: &SavedCounters) -> BackendStats {
    let mut stats = BackendStats {
        packets: counters.packets,
        bytes: counters.bytes,
        connections: counters.connections,
        ..BackendStats::default()
    };
    let kept = counters.decisions.iter().zip(&mut stats.decisions).chain(counters.moves.iter().zip(&mut stats.moves));
    kept.for_each(|(kept, counter)| *counter = *kept);
    stats
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use balancer_common::verdict::{CauseIndex, Decision, MoveCause};
    use balancer_config::fixture;

    use super::*;

    const WEB: ServiceId = ServiceId(3);
    const MINUTE: Duration = Duration::from_secs(60);

    fn counted(connections: u64) -> BackendStats {
        let mut stats = BackendStats {
            packets: 10 * connections,
            bytes: 1000 * connections,
            connections,
            ..BackendStats::default()
        };
        stats.decisions[Decision::New.index()] = connections;
        stats.moves[CauseIndex::from(MoveCause::Removed).counter()] = connections / 2;
        stats
    }

    fn names(removed_backends: &RemovedBackends) -> Vec<&str> {
        removed_backends.of(WEB).map(|(name, _)| name).collect()
    }

    fn sum(removed_backends: &RemovedBackends) -> BackendStats {
        let mut sum = BackendStats::default();
        removed_backends.of(WEB).for_each(|(_, stats)| sum += stats);
        sum
    }

    #[test]
    fn when_names_never_come_again_then_they_are_summed_up() {
        let start = fixture::now();
        let mut removed_backends = RemovedBackends::default();
        let mut all = BackendStats::default();
        // A new pod, with its own name, appears every minute for ten hours.
        for number in 0..600 {
            let now = start + number * MINUTE;
            removed_backends.add(WEB, format!("pod-{number}"), &counted(u64::from(number)), now);
            all += &counted(u64::from(number));
            removed_backends.sum_up(now, |_| HashSet::new());
            assert!(names(&removed_backends).len() <= 61, "{:?}", names(&removed_backends));
            assert_eq!(sum(&removed_backends), all);
        }
        removed_backends.sum_up(start + 700 * MINUTE, |_| HashSet::new());
        assert_eq!(names(&removed_backends), [TOGETHER]);
        assert_eq!(sum(&removed_backends), all);
    }

    #[test]
    fn when_a_name_is_present_or_comes_back_then_it_keeps_its_row() {
        let start = fixture::now();
        let mut removed_backends = RemovedBackends::default();
        // An operator has forgotten the clients of a backend that still exists, and has removed another backend, added
        // it again, and removed it again.
        removed_backends.add(WEB, "web1".to_owned(), &counted(1), start);
        removed_backends.add(WEB, "web2".to_owned(), &counted(2), start);
        removed_backends.add(WEB, "web3".to_owned(), &counted(4), start);
        removed_backends.add(WEB, "web2".to_owned(), &counted(2), start + 30 * MINUTE);
        let there = |_| HashSet::from(["web1".to_owned()]);
        removed_backends.sum_up(start + 60 * MINUTE, there);
        assert_eq!(names(&removed_backends), [TOGETHER, "web1", "web2"], "web3 has gone");
        removed_backends.sum_up(start + 90 * MINUTE, there);
        assert_eq!(names(&removed_backends), [TOGETHER, "web1"]);
        removed_backends.add(WEB, "web2".to_owned(), &counted(2), start + 90 * MINUTE);
        assert_eq!(names(&removed_backends), [TOGETHER, "web1", "web2"]);
        assert_eq!(sum(&removed_backends).connections, 11);
    }

    #[test]
    fn when_the_process_restarts_then_rows_keep_their_age() {
        let start = fixture::now();
        let mut removed_backends = RemovedBackends::default();
        removed_backends.add(WEB, "old".to_owned(), &counted(5), start);
        removed_backends.sum_up(start + 60 * MINUTE, |_| HashSet::new());
        removed_backends.add(WEB, "web1".to_owned(), &counted(7), start + 61 * MINUTE);
        let clocks =
            |minutes: u32| Clocks { now: start + minutes * MINUTE, wall: UNIX_EPOCH + (1_000_000 + minutes) * MINUTE };
        let text = serde_json::to_string(&removed_backends.export(clocks(70))).unwrap();
        let mut restored = RemovedBackends::restore(serde_json::from_str(&text).unwrap(), clocks(100));
        assert_eq!((names(&restored), sum(&restored)), (vec![TOGETHER, "web1"], sum(&removed_backends)));
        restored.sum_up(start + 120 * MINUTE, |_| HashSet::new());
        assert_eq!(names(&restored), [TOGETHER, "web1"]);
        restored.sum_up(start + 121 * MINUTE, |_| HashSet::new());
        assert_eq!((names(&restored), sum(&restored)), (vec![TOGETHER], sum(&removed_backends)));

        // Earlier versions wrote rows without the age of the counters.
        let before: BTreeMap<u16, BTreeMap<String, SavedCounters>> = serde_json::from_str(
            r#"{"3":{"web9":{"packets":9,"bytes":90,"connections":3,"decisions":[1],"moves":[]}}}"#,
        )
        .unwrap();
        let mut restored = RemovedBackends::restore(before, clocks(100));
        restored.sum_up(start + 159 * MINUTE, |_| HashSet::new());
        assert_eq!(names(&restored), ["web9"]);
        restored.sum_up(start + 160 * MINUTE, |_| HashSet::new());
        assert_eq!((names(&restored), sum(&restored).packets), (vec![TOGETHER], 9));
    }
}
