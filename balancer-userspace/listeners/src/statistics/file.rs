//! The file of past counts beside the state file; because of this file, the figures of the last minute and hour
//! continue as long as the kernel's counters continue. Each line contains the counts of one moment in JSON.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_control::{history::Counted, shares::Load};
use balancer_runtime::{
    lines::{self, LineFile, LineFileKind},
    supervisor::Supervisor,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Past;

/// The name and limits of the history file. A history file covers more than an hour, unless there are very many
/// services.
const MOMENTS: LineFileKind =
    LineFileKind { name: "statistics", writer: "the writer of statistics", bytes: 16 << 20, lines: 400 };

/// The writer of the history file.
#[derive(Debug)]
pub(super) struct HistoryFile(LineFile);

/// The counts of one moment, by service.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moment {
    /// The number of milliseconds since the machine was started.
    pub(super) at: u64,
    pub(super) services: BTreeMap<String, Counted>,
    /// The shares of the minute that ends at this moment, if a minute ends: the kind of load, and the share of each
    /// backend in units of 1/65,535.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) shares: BTreeMap<String, (Load, Vec<(String, u16)>)>,
}

impl HistoryFile {
    /// Opens the file beside `state_file` for further counts.
    pub(super) fn open(state_file: &Path, supervisor: &Supervisor) -> Self {
        Self(LineFile::open(path(state_file), MOMENTS, supervisor))
    }

    pub(super) fn keep(&mut self, moment: &Moment) {
        if let Ok(line) = serde_json::to_vec(moment) {
            self.0.append(line);
        }
    }
}

/// Reads the histories of all services in the file beside `state_file`, up to the time `now`. The function skips
/// invalid lines, such as an incomplete last line.
pub(super) fn read(state_file: &Path, now: Duration) -> HashMap<String, Past> {
    let mut histories: HashMap<String, Past> = HashMap::new();
    for line in lines::read(&path(state_file), MOMENTS) {
        let Ok(Moment { at, services, shares }) = serde_json::from_slice(&line) else {
            continue;
        };
        let at = Duration::from_millis(at);
        if at > now {
            continue;
        }
        for (service, counted) in services {
            Arc::make_mut(&mut histories.entry(service).or_default().counted).keep(at, counted);
        }
        for (service, (load, parts)) in shares {
            Arc::make_mut(&mut histories.entry(service).or_default().shares).resume(at, load, parts);
        }
    }
    histories
}

/// Removes the file beside `state_file`, because the counts in the file are from other maps.
pub(super) fn forget(state_file: &Path) {
    let path = path(state_file);
    if let Err(error) = lines::remove(&path) {
        warn!("cannot remove {}: {error}; figures of the last hour may be wrong", path.display());
    }
}

fn path(state_file: &Path) -> PathBuf {
    state_file.with_file_name("statistics.jsonl")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use balancer_control::shares::ShareHistory;

    use super::*;

    fn counted(decisions: u64) -> Counted {
        let mut counted = Counted::default();
        counted.decisions[0] = decisions;
        counted
    }

    fn moment(file: &mut HistoryFile, at: u64, decisions: u64) {
        let services = BTreeMap::from([("web".to_owned(), counted(decisions))]);
        file.keep(&Moment { at: at * 1000, services, shares: BTreeMap::new() });
    }

    #[test]
    fn when_another_process_starts_then_histories_continue() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let mut file = HistoryFile::open(&state, &Supervisor::default());
        moment(&mut file, 1000, 1);
        moment(&mut file, 1010, 2);
        drop(file);
        let mut torn = std::fs::File::options().append(true).open(path(&state)).unwrap();
        torn.write_all(b"{\"at\": 1020, \"ser").unwrap();
        let mut file = HistoryFile::open(&state, &Supervisor::default());
        moment(&mut file, 1030, 3);
        // The line was written before the machine was rebooted, so its time is unknown.
        moment(&mut file, 5000, 9);
        drop(file);

        let histories = read(&state, Duration::from_secs(1035));
        let steps: Vec<_> =
            histories["web"].counted.steps().map(|(at, counted)| (at.as_secs(), counted.decisions[0])).collect();
        assert_eq!(steps, [(1000, 1), (1010, 2), (1030, 3)]);
        forget(&state);
        assert!(read(&state, Duration::from_secs(1035)).is_empty());
    }

    #[test]
    fn when_a_file_has_lines_without_shares_then_it_is_read_and_shares_continue() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let mut file = HistoryFile::open(&state, &Supervisor::default());
        let mut shares = ShareHistory::default();
        for (minute, clients) in [(1, 1), (2, 3)] {
            let at = Duration::from_secs(60 * minute);
            assert!(shares.keep(at, Load::Clients, &[("web1", 1), ("web2", clients)]));
            let shares = BTreeMap::from([("web".to_owned(), shares.last().unwrap())]);
            file.keep(&Moment { at: at.as_millis() as u64, services: BTreeMap::new(), shares });
            moment(&mut file, 60 * minute + 10, minute);
        }
        drop(file);
        let past = &read(&state, Duration::from_secs(200))["web"];
        assert!(past.shares.minutes().eq(shares.minutes()), "{past:?}");
        assert_eq!(past.counted.steps().count(), 2);
    }

    #[test]
    fn when_a_file_is_old_then_an_hour_of_it_is_kept_and_days_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state.json");
        let mut file = HistoryFile::open(&state, &Supervisor::default());
        (0..3000).for_each(|step| moment(&mut file, step * 10, step));
        drop(file);
        let now = Duration::from_secs(30_000);
        let (at, counted) = read(&state, now)["web"].counted.before(now, Duration::from_secs(3600)).unwrap();
        assert!(at.abs_diff(Duration::from_secs(26_400)) <= Duration::from_secs(35), "{at:?}");
        assert_eq!(counted.decisions[0], at.as_secs() / 10);
        let lines = lines::read(&path(&state), MOMENTS).count();
        assert!((400..=800).contains(&lines), "{lines} lines");
    }
}
