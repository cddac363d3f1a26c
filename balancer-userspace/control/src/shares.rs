//! The share of a service's load that each backend had in each minute of the last hour.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::history::NEARLY_A_MINUTE;

/// The number of minutes for which shares are kept.
const MINUTES: usize = 60;

/// The kind of load that the shares measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// The known clients at the end of each minute.
    Clients,
    /// The new connections within each minute.
    Connections,
}

/// The shares of all backends in one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minute {
    /// The end of the minute, on the history's clock.
    pub at: Duration,
    names: Arc<[String]>,
    /// The share of each named backend, in parts of 65,535; empty if there was no load.
    parts: Box<[u16]>,
}

impl Minute {
    /// The share of each backend, from 0 to 1, in the order of the service's backends; empty if there was no load.
    pub fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        let names = self.names.iter().map(String::as_str);
        names.zip(self.parts.iter().map(|&part| f64::from(part) / f64::from(u16::MAX)))
    }
}

/// The shares of a service in the last hour.
#[derive(Clone, Debug, Default)]
pub struct ShareHistory {
    load: Option<Load>,
    minutes: VecDeque<Minute>,
    /// The counters of the backends at the end of the last minute; only shares of connections need these counters.
    counted: Option<Vec<u64>>,
}

impl ShareHistory {
    /// Stores the value of each backend at `now`: its known clients, or its connections since the start. The function
    /// skips values that come less than a minute after the last stored values. Returns whether the function has stored
    /// the values.
    pub fn keep(&mut self, now: Duration, load: Load, backends: &[(&str, u64)]) -> bool {
        self.expect(load);
        if self.minutes.back().is_some_and(|last| now.saturating_sub(last.at) < NEARLY_A_MINUTE) {
            return false;
        }
        let names = self.names(backends.iter().map(|(name, _)| *name));
        let parts = match load {
            Load::Clients => parts(backends.iter().map(|(_, clients)| *clients)),
            Load::Connections => {
                let before = self.counted_of(&names);
                self.counted = Some(backends.iter().map(|(_, count)| *count).collect());
                parts(backends.iter().zip(before).map(|((_, now), before)| now.saturating_sub(before)))
            }
        };
        self.put(Minute { at: now, names, parts });
        true
    }

    /// Continues after a minute whose shares another process has stored.
    pub fn resume(&mut self, at: Duration, load: Load, parts: Vec<(String, u16)>) {
        self.expect(load);
        let names = self.names(parts.iter().map(|(name, _)| name.as_str()));
        self.put(Minute { at, names, parts: parts.into_iter().map(|(_, part)| part).collect() });
    }

    /// Returns the kind of load that the last minute's shares measure, and the shares in parts, for
    /// [`resume`](Self::resume).
    #[must_use]
    pub fn last(&self) -> Option<(Load, Vec<(String, u16)>)> {
        let last = self.minutes.back()?;
        Some((self.load?, last.names.iter().cloned().zip(last.parts.iter().copied()).collect()))
    }

    /// The minutes of the last hour, beginning with the oldest.
    pub fn minutes(&self) -> impl DoubleEndedIterator<Item = &Minute> {
        self.minutes.iter()
    }

    /// Clears the history if the kind of load has changed, because shares of different kinds of load cannot be
    /// compared.
    fn expect(&mut self, load: Load) {
        if self.load != Some(load) {
            *self = Self { load: Some(load), ..Self::default() };
        }
    }

    /// The list of names from the last minute if it equals these names, so that both share memory; otherwise a new
    /// list.
    fn names<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Arc<[String]> {
        match self.minutes.back() {
            Some(last) if last.names.iter().map(String::as_str).eq(names.clone()) => Arc::clone(&last.names),
            _ => names.map(str::to_owned).collect(),
        }
    }

    /// Returns the count of each backend in `names` a minute ago. Before the first minute, each count is `u64::MAX`, so
    /// that the difference shows no connections. The count of a new backend is 0.
    fn counted_of(&self, names: &Arc<[String]>) -> Vec<u64> {
        let (Some(last), Some(counted)) = (self.minutes.back(), &self.counted) else {
            return vec![u64::MAX; names.len()];
        };
        if Arc::ptr_eq(&last.names, names) {
            return counted.clone();
        }
        let before: HashMap<&str, u64> = last.names.iter().map(String::as_str).zip(counted.iter().copied()).collect();
        names.iter().map(|name| before.get(name.as_str()).copied().unwrap_or(0)).collect()
    }

    fn put(&mut self, minute: Minute) {
        if self.minutes.len() >= MINUTES {
            self.minutes.pop_front();
        }
        self.minutes.push_back(minute);
    }
}

/// The ratio of each count to the sum of all counts, in parts of 65,535; empty if the sum is 0.
fn parts(counts: impl Iterator<Item = u64> + Clone) -> Box<[u16]> {
    let sum: u128 = counts.clone().map(u128::from).sum();
    if sum == 0 {
        return Box::default();
    }
    // The result is at most 65,535, because no count exceeds the sum.
    counts.map(|count| ((u128::from(count) * u128::from(u16::MAX) + sum / 2) / sum) as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shown(history: &ShareHistory) -> Vec<(u64, Vec<(String, f64)>)> {
        let rounded = |share: f64| (share * 1000.0).round() / 1000.0;
        let minutes = history.minutes();
        let shares = minutes.map(|minute| {
            (minute.at.as_secs(), minute.shares().map(|(name, share)| (name.to_owned(), rounded(share))).collect())
        });
        shares.collect()
    }

    fn of(shares: &[(&str, f64)]) -> Vec<(String, f64)> {
        shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
    }

    #[test]
    fn when_minutes_pass_then_an_hour_of_them_is_kept() {
        let mut history = ShareHistory::default();
        for step in 0..720 {
            history.keep(SECOND * 10 * step, Load::Clients, &[("a", 1), ("b", u64::from(step))]);
        }
        let minutes = shown(&history);
        assert_eq!(minutes.len(), MINUTES);
        assert_eq!(minutes[0], (3600, of(&[("a", 0.003), ("b", 0.997)])));
        assert_eq!(minutes[59].0, 7140);
        let same = history.minutes().all(|minute| Arc::ptr_eq(&minute.names, &history.minutes[0].names));
        assert!(same, "names of equal backends are kept once");
    }

    #[test]
    fn when_load_is_connections_then_shares_are_of_the_minute() {
        let mut history = ShareHistory::default();
        let keep = |history: &mut ShareHistory, minute, counts: &[(&str, u64)]| {
            assert!(history.keep(SECOND * 60 * minute, Load::Connections, counts));
        };
        keep(&mut history, 1, &[("a", 1000), ("b", 9000)]);
        keep(&mut history, 2, &[("a", 1300), ("b", 9100)]);
        // Backend `a` was removed and added again, so it counts from zero. Backend `c` is new in this minute.
        keep(&mut history, 3, &[("b", 9200), ("c", 100), ("a", 0)]);
        keep(&mut history, 4, &[("b", 9200), ("c", 100), ("a", 0)]);
        let expected = [
            (60, of(&[])),
            (120, of(&[("a", 0.75), ("b", 0.25)])),
            (180, of(&[("b", 0.5), ("c", 0.5), ("a", 0.0)])),
            (240, of(&[])),
        ];
        assert_eq!(shown(&history), expected);
    }

    #[test]
    fn when_the_kind_of_load_changes_then_the_history_begins_anew() {
        let mut history = ShareHistory::default();
        assert!(history.keep(SECOND * 60, Load::Connections, &[("a", 5)]));
        assert!(history.keep(SECOND * 61, Load::Clients, &[("a", 5)]));
        assert!(!history.keep(SECOND * 62, Load::Clients, &[("a", 5)]));
        assert_eq!(shown(&history), [(61, of(&[("a", 1.0)]))]);
    }

    #[test]
    fn when_another_process_continues_then_the_history_goes_on() {
        for load in [Load::Clients, Load::Connections] {
            let mut history = ShareHistory::default();
            assert!(history.last().is_none());
            history.keep(SECOND * 60, load, &[("a", 0), ("b", 0)]);
            history.keep(SECOND * 120, load, &[("a", 3), ("b", 1)]);
            let mut next = ShareHistory::default();
            let (kind, parts) = history.last().unwrap();
            next.resume(SECOND * 120, kind, parts);
            next.keep(SECOND * 180, load, &[("a", 3), ("b", 1)]);
            let after = if load == Load::Clients { of(&[("a", 0.75), ("b", 0.25)]) } else { of(&[]) };
            assert_eq!(shown(&next), [(120, of(&[("a", 0.75), ("b", 0.25)])), (180, after)]);
        }
    }

    #[test]
    fn when_counts_are_huge_then_they_are_divided_without_overflow() {
        assert_eq!(&*parts([u64::MAX, u64::MAX].into_iter()), [32_768, 32_768]);
        assert_eq!(&*parts([u64::MAX, 0].into_iter()), [u16::MAX, 0]);
    }
}
