//! The member's own card, which shows all other members that this member is alive.

use std::time::{Duration, Instant};

use balancer_control::state::Clocks;

use super::{Clients, Member, Output, pauses::Errand};
use crate::{
    engine::{Answer, Condition, Request, Revision, Write},
    keys,
    session::Purpose,
    store_schema::{self, Ballot, FORMAT, Member as Card},
};

/// The minimum interval between two writes of suspicions, because packets from any sender can cause suspicions.
const SUSPECTS_EVERY: Duration = Duration::from_millis(200);

fn differs_in_suspects_alone(one: &Card, other: &Card) -> bool {
    let without = |card: &Card| {
        let ballot = Ballot { suspected: Vec::new(), ..card.ballot.clone() };
        Card { ballot, ..card.clone() }
    };
    one.ballot.suspected != other.ballot.suspected && without(one) == without(other)
}

/// The state of this member's card: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct OwnCard {
    /// The contents of the card in the last write request; `None` if the card must be written.
    written: Option<Card>,
    /// The revision at which this process last wrote the card; `None` if the revision is unknown.
    revision: Option<Revision>,
    /// The time at which the card was last written only because suspicions had changed.
    suspected: Option<Instant>,
    /// The time at which the card of the current session was stored.
    since: Option<Instant>,
    denial: Option<Denial>,
}

/// A period in which the engine answers other requests but does not write the card.
#[derive(Debug)]
struct Denial {
    since: Instant,
    /// The reason in the engine's words.
    why: String,
    /// Whether the engine has refused to write the card; false if the engine has not answered.
    is_certain: bool,
    /// Whether the denial has lasted at least as long as a lease.
    lasts: bool,
}

impl OwnCard {
    /// Whether the engine has not written the card for longer than the lease.
    pub(super) fn is_denied(&self) -> bool {
        self.denial.as_ref().is_some_and(|denial| denial.lasts)
    }

    /// The reason why the engine refuses this member's writes, if known.
    pub(super) fn denial(&self) -> Option<&str> {
        self.denial.as_ref().filter(|denial| denial.is_certain || denial.lasts).map(|denial| denial.why.as_str())
    }

    /// Requests another write of the card, to find out whether the engine accepts it.
    pub(super) fn probe(&mut self) {
        self.written = None;
    }

    /// The time at which this member became visible to the other members.
    pub(super) const fn since(&self) -> Option<Instant> {
        self.since
    }
}

impl Member {
    pub(super) fn write_card(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let card = Card {
            format: FORMAT,
            version: self.settings.version.clone(),
            steering: self.settings.steering,
            instance: self.settings.instance,
            epoch: self.epoch(),
            prepared: self.prepared,
            in_step: self.in_step,
            wants_clients: self.clients == Clients::Wanted && self.applied.is_some() && self.applying.is_none(),
            readiness: self.readiness.clone(),
            sweeps: self.sweeps,
            known: self.known.clone(),
            flow_counts: self.flow_counts,
            connections: self.connections.clone(),
            ballot: self.own_ballot(),
            home: self.settings.home,
            address: self.address.clone(),
            wall: None,
            file_differs: self.file_differs,
            room: self.room.clone(),
            lacks: self.lacks(),
        };
        let key = keys::member(&self.settings.name);
        let Some(session) = self.session.as_mut().filter(|_| self.refused.is_none()) else { return };
        if self.card.written.as_ref() == Some(&card)
            || session.waits_for(&Purpose::Card)
            || self.pauses.hold(Errand::Card, clocks.now)
        {
            return;
        }
        if self.card.written.as_ref().is_some_and(|written| differs_in_suspects_alone(written, &card)) {
            if self.card.suspected.is_some_and(|at| clocks.now < at + SUSPECTS_EVERY) {
                return;
            }
            self.card.suspected = Some(clocks.now);
        }
        // The condition protects the card of another process that has the same name and started at the same moment.
        let condition = match (self.card.revision, session.get(&key)) {
            (Some(revision), _) => Condition::Modified(key.clone(), revision),
            (None, Some(entry)) => Condition::Modified(key.clone(), entry.modified),
            (None, None) => Condition::Absent(key.clone()),
        };
        #[cfg(not(test))]
        let leased = true;
        #[cfg(test)]
        let leased = self.mutation != Some(super::Mutation::StaysWithoutLease);
        let dated = Card { wall: Some(clocks.moment(clocks.now)), ..card.clone() };
        let put = Write::put(&key, store_schema::write(&dated), leased);
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Card, vec![condition], vec![put])));
        self.card.written = Some(card);
    }

    /// The reason why this process may not use its name, if a process with another home uses the name.
    pub(super) fn name_is_taken(&self) -> Option<String> {
        let (members, settings) = (self.cards(), &self.settings);
        let other = members.get(&settings.name).filter(|other| other.instance != settings.instance)?;
        // If the other process has ended in the same home, its card will disappear with its lease.
        if other.home == settings.home || other.home == 0 {
            return None;
        }
        let at = if other.address.is_empty() { String::new() } else { format!(" at {}", other.address) };
        Some(format!(
            "the member name {} is in use by another balancer (instance {:016x}{at}): give this one another \
             `fleet.member`, or end that one",
            settings.name, other.instance
        ))
    }

    /// Handles the engine's answer to writing the card.
    pub(super) fn card_answered(&mut self, answer: Answer, now: Instant, outputs: &mut Vec<Output>) {
        let (why, is_certain) = match answer {
            Answer::Made(revision) => return self.card_is_written(revision, now, outputs),
            // Another process has written this card, and this process is about to receive that change.
            Answer::Refused | Answer::Read(_) => {
                self.card.written = None;
                self.card.revision = None;
                return self.pauses.failed(Errand::Card, now);
            }
            Answer::Denied(why) => (why, true),
            Answer::Unknown(why) => (why, false),
        };
        self.card.written = None;
        self.card.revision = None;
        self.pauses.failed(Errand::Card, now);
        let known = self.card.denial.take();
        if is_certain && known.as_ref().is_none_or(|known| !known.is_certain) {
            let message = format!("etcd takes no writes of this balancer: {why}");
            outputs.push(Output::Log { warning: true, message });
        }
        let (since, lasts) = known.as_ref().map_or((now, false), |known| (known.since, known.lasts));
        let is_certain = is_certain || known.is_some_and(|known| known.is_certain);
        self.card.denial = Some(Denial { since, why, is_certain, lasts });
    }

    fn card_is_written(&mut self, revision: Revision, now: Instant, outputs: &mut Vec<Output>) {
        self.pauses.succeeded(Errand::Card);
        self.card.revision = Some(revision);
        self.card.since.get_or_insert(now);
        if self.card.denial.take().is_some_and(|denial| denial.is_certain || denial.lasts) {
            let message = "etcd takes writes of this balancer again".to_owned();
            outputs.push(Output::Log { warning: false, message });
        }
    }

    /// Handles a denial: if the engine has not written the card for the length of a lease, the member is alone, like a
    /// member that cannot reach the engine. The member's keys must then disappear from the store, because otherwise the
    /// other members would wait for this member and count its old votes.
    pub(super) fn see_to_denial(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let lease = self.settings.lease;
        let Some(denial) = self.card.denial.as_mut().filter(|denial| !denial.lasts && denial.since + lease <= now)
        else {
            return;
        };
        denial.lasts = true;
        let reason = format!("it takes no writes of this balancer: {}", denial.why);
        if !self.alone {
            self.alone = true;
            outputs.push(Output::Alone(true));
        }
        if self.card.since.take().is_some() {
            outputs.push(Output::Ask(Request::End { reason }));
        } else {
            let message = format!("etcd cannot be used: {reason}");
            outputs.push(Output::Log { warning: true, message });
        }
    }
}
