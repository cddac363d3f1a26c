//! Epochs of which this member can apply only a part: see [`balancer_control::as_far`].
//!
//! A member that lacks a part of the current epoch follows all other parts, votes only about the backends that it
//! applies, and leads only if every other member lacks something, too. It tries the whole epoch again with each new
//! epoch and, if the data path has refused a part, at intervals.

use std::time::{Duration, Instant};

use balancer_control::{
    as_far::{HeldBack, Limits, ReadState, as_far_as_possible},
    io::BackendId,
    room::Room,
    state::SavedState,
};

use super::{Member, Output};
use crate::store_schema::{Ballot, Epoch};

/// The interval at which a member tries to apply what its data path has refused.
const AGAIN: Duration = Duration::from_secs(10);

/// The part of the epoch that this member does not apply: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Partial {
    /// The services of the applied epoch that the member does not apply.
    held_back: Vec<HeldBack>,
    /// The same for the epoch that the caller is applying.
    incoming: Vec<HeldBack>,
    /// The epoch of which the data path has refused a part, the reason, and the time of the last attempt.
    refused: Option<(Epoch, String, Instant)>,
    /// The time of the attempt in progress.
    tried: Option<Instant>,
    /// Whether the attempt in progress frees lookup tables, so that a service that it holds back may fit afterwards.
    frees: bool,
}

impl Partial {
    /// The part of a state that the caller should apply.
    pub(super) fn begin(
        &mut self,
        epoch: Epoch,
        state: ReadState,
        before: Option<&SavedState>,
        room: Option<&Room>,
        now: Instant,
    ) -> SavedState {
        self.tried = Some(now);
        let refused = self.refused.as_ref().filter(|(of, _, at)| *of == epoch && now < *at + AGAIN);
        let limits = Limits { room, refused: refused.map(|(_, why, _)| why.as_str()) };
        let (state, held_back) = as_far_as_possible(state, before, limits);
        let tables = |state: &SavedState| -> u64 {
            state.services.iter().map(|of| u64::from(of.settings.table_size.slots(of.backends.len()))).sum()
        };
        self.frees = before.is_some_and(|before| tables(&state) < tables(before));
        self.incoming = held_back;
        state
    }

    /// The caller applies the applied state again.
    pub(super) fn begin_again(&mut self) {
        self.incoming.clone_from(&self.held_back);
    }

    /// Whether the caller is applying a whole epoch.
    pub(super) const fn begins_whole(&self) -> bool {
        self.incoming.is_empty()
    }

    /// Records that the data path has refused the state. Returns whether the member should try to apply only what has
    /// not changed.
    pub(super) fn is_refused(&mut self, epoch: Epoch, why: &str) -> bool {
        let is_news = self.refused.as_ref().is_none_or(|(of, _, at)| *of != epoch || self.tried >= Some(*at + AGAIN));
        if let Some(now) = self.tried.filter(|_| is_news) {
            self.refused = Some((epoch, why.to_owned(), now));
        }
        is_news
    }

    /// Whether the data path may now accept what the member holds back.
    pub(super) fn is_to_be_tried_again(&self, now: Instant) -> bool {
        let is_due = self.refused.as_ref().is_some_and(|(_, _, at)| *at + AGAIN <= now);
        !self.held_back.is_empty() && (self.frees || is_due)
    }

    /// Records that the caller has applied the state, and returns what is new about it.
    pub(super) fn has_applied(&mut self) -> Vec<Output> {
        let before = std::mem::replace(&mut self.held_back, std::mem::take(&mut self.incoming));
        if self.held_back.is_empty() {
            self.refused = None;
        }
        let is_new = |now: &&HeldBack| before.iter().all(|before| before.why != now.why);
        let log = |now: &HeldBack| Output::Log { warning: true, message: now.why.clone() };
        let mut news: Vec<Output> = self.held_back.iter().filter(is_new).map(log).collect();
        if self.held_back.is_empty() && !before.is_empty() {
            news.push(Output::Log { warning: false, message: "all of the fleet's services are applied".to_owned() });
        }
        news
    }

    /// The services that the member does not apply, one sentence each.
    pub(super) fn reasons(&self) -> impl Iterator<Item = String> {
        self.held_back.iter().map(|held_back| held_back.why.clone())
    }

    /// The backends that the member does not apply.
    fn strange(&self) -> impl Iterator<Item = BackendId> {
        self.held_back.iter().flat_map(|held_back| &held_back.strange).copied()
    }
}

impl Member {
    /// The part of the current epoch that this member does not apply, in words.
    #[must_use]
    pub fn lacks(&self) -> Option<String> {
        let holding = self.holding();
        let failed = self.failed.as_ref().filter(|(epoch, _)| holding.is_none_or(|holding| *epoch == holding));
        let failed = failed.map(|(epoch, why)| format!("epoch {} is not applied: {why}", epoch.number));
        let all: Vec<String> = failed.into_iter().chain(self.partial.reasons()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Whether another member should lead, because this member lacks a part of the current epoch, and another member
    /// does not.
    pub(super) fn gives_way(&self) -> bool {
        let (Some(_), Some(holding)) = (self.lacks(), self.holding()) else { return false };
        let whole = |(name, card): (&String, &crate::store_schema::Member)| {
            *name != self.settings.name && card.in_step && card.lacks.is_none() && card.epoch == Some(holding)
        };
        self.cards().iter().any(whole)
    }

    /// The member's ballot. The member has no opinion about backends that it does not apply.
    pub(super) fn own_ballot(&self) -> Ballot {
        let mut ballot = self.ballot.clone();
        ballot.waiting.extend(self.partial.strange());
        ballot
    }
}
