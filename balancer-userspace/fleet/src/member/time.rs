//! The ages of decisions, computed although the clocks of members differ.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use balancer_control::state::{Clocks, Moment};

use super::{Member, Output};
use crate::{
    engine::Entry,
    keys,
    store_schema::{self, Epoch, Member as Card},
};

/// The difference in seconds between two members' clocks from which a member warns.
const WARNED_OF: f64 = 2.0;
/// The number of cards of another member from which this member estimates the other member's clock.
const SAMPLES: usize = 4;

/// The time at which a member received an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    epoch: Epoch,
    at: Instant,
    wall: SystemTime,
    /// Whether the member received the epoch right after the decision, and not in the copy at the start of the session.
    live: bool,
}

/// The number of seconds by which the clocks of other members are ahead of this member's clock. A card that arrives
/// late makes a clock look slower, so the member uses the highest of the latest differences.
#[derive(Debug, Default)]
pub(super) struct Skews {
    samples: BTreeMap<String, VecDeque<f64>>,
    /// The members about whose clocks this member has warned.
    warned: BTreeMap<String, f64>,
}

impl Skews {
    fn note(&mut self, name: &str, ahead: f64) {
        let samples = self.samples.entry(name.to_owned()).or_default();
        samples.push_back(ahead);
        if samples.len() > SAMPLES {
            samples.pop_front();
        }
    }

    fn ahead(&self, name: &str) -> Option<f64> {
        self.samples.get(name)?.iter().copied().reduce(f64::max)
    }
}

impl Member {
    /// Reads the cards among changed keys, and records by how much the other members' clocks are ahead of this member's
    /// clock.
    pub(super) fn note_time(&mut self, put: &[Entry], clocks: Clocks) {
        let own = keys::member(&self.settings.name);
        for entry in put.iter().filter(|entry| entry.key != own) {
            let Some(name) = entry.key.strip_prefix(keys::MEMBERS) else { continue };
            let Ok(Card { wall: Some(wall), .. }) = store_schema::read(&entry.value) else { continue };
            self.skews.note(name, wall.0.as_secs_f64() - clocks.moment(clocks.now).0.as_secs_f64());
        }
    }

    pub(super) fn note_epoch(&mut self, live: bool, clocks: Clocks) {
        let Some(epoch) = self.holding() else { return };
        if self.heard.is_none_or(|heard| heard.epoch != epoch) {
            self.heard = Some(Heard { epoch, at: clocks.now, wall: clocks.wall, live });
        }
    }

    /// The age of an epoch that the leader `by` decided at the time `at` of its own clock.
    pub(super) fn age_of(&self, epoch: Epoch, at: Moment, by: &str, clocks: Clocks) -> Duration {
        let heard = self.heard.filter(|heard| heard.epoch == epoch);
        let Some(Heard { at: heard, wall, live, .. }) = heard else { return since(at, clocks.wall) };
        let known = clocks.now.saturating_duration_since(heard);
        if live {
            return known;
        }
        let ahead = if by == self.settings.name { 0.0 } else { self.skews.ahead(by).unwrap_or(0.0) };
        known + since(at, shifted(wall, ahead))
    }

    /// The times on both clocks when an epoch was decided; the wall clock is the clock of the epoch's leader.
    pub(super) fn as_of(&self, epoch: Epoch, at: Moment, by: &str, clocks: Clocks) -> Clocks {
        let age = self.age_of(epoch, at, by, clocks);
        Clocks { now: clocks.now.checked_sub(age).unwrap_or(clocks.now), wall: UNIX_EPOCH + at.0 }
    }

    /// The number of seconds by which another member's clock is ahead of this member's clock, if known.
    #[must_use]
    pub fn clock_ahead(&self, name: &str) -> Option<f64> {
        self.skews.ahead(name)
    }

    /// Logs the members whose clocks have begun or ceased to differ from this member's clock.
    pub(super) fn compare_clocks(&mut self, outputs: &mut Vec<Output>) {
        let members = self.cards();
        self.skews.samples.retain(|name, _| members.contains_key(name));
        let differs = |name: &&String| self.skews.ahead(name).is_some_and(|ahead| ahead.abs() >= WARNED_OF);
        let warned: BTreeMap<String, f64> =
            members.keys().filter(differs).filter_map(|name| Some((name.clone(), self.skews.ahead(name)?))).collect();
        for (name, ahead) in warned.iter().filter(|(name, _)| !self.skews.warned.contains_key(*name)) {
            outputs.push(Output::Log { warning: true, message: differs_by(name, *ahead) });
        }
        if warned.is_empty() && !self.skews.warned.is_empty() {
            outputs.push(Output::Log { warning: false, message: "the clocks of all members agree".to_owned() });
        }
        self.skews.warned = warned;
    }

    pub(super) fn clock_troubles(&self) -> impl Iterator<Item = String> {
        self.skews.warned.iter().map(|(name, ahead)| differs_by(name, *ahead))
    }
}

fn differs_by(name: &str, ahead: f64) -> String {
    let how = if ahead > 0.0 { "ahead of" } else { "behind" };
    format!(
        "the clock of {name} is {:.0} s {how} this balancer's, so times in events and logs cannot be compared: \
         synchronize both",
        ahead.abs()
    )
}

fn since(at: Moment, wall: SystemTime) -> Duration {
    wall.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(at.0)
}

fn shifted(wall: SystemTime, ahead: f64) -> SystemTime {
    let by = Duration::try_from_secs_f64(ahead.abs()).unwrap_or_default();
    let shifted = if ahead < 0.0 { wall.checked_sub(by) } else { wall.checked_add(by) };
    shifted.unwrap_or(wall)
}
