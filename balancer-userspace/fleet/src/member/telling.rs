//! Sends the known clients of this member to the other members.

use std::time::Instant;

use super::{Member, Output, pauses::Errand};
use crate::{engine::Write, keys, session::Purpose};

/// The maximum number of batches whose writes are in progress. Above this number, further batches wait here and not in
/// the engine's queue.
const UNDER_WAY: usize = 8;
/// The maximum number of batches that one transaction deletes.
const DELETED_AT_ONCE: usize = 50;

/// A batch of sent records, which the member keeps until every member has received it: after a reconnection, the member
/// sends its latest batches again.
#[derive(Debug)]
pub(super) struct Batch {
    number: u64,
    value: Vec<u8>,
    state: BatchState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchState {
    /// The batch still has to be written to the store.
    Waits,
    /// The member has requested the write of the batch.
    Asked,
    /// The store has contained the batch since this time.
    Kept(Instant),
}

/// The document of the state for which the records were sent. The member's card names this document after all of these
/// records have reached the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preparing {
    pub(super) document: u64,
    last_batch: u64,
}

impl Member {
    /// Requests a collection of clients: at once if a state is in preparation, and otherwise every second.
    pub(super) fn tell(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        if self.telling.is_some() || self.applied.is_none() || self.applying.is_some() || self.card.is_denied() {
            return;
        }
        let next = session.next();
        #[cfg(test)]
        if next.is_none() && self.mutation == Some(super::Mutation::TellsNothingByItself) {
            return;
        }
        let told_for = self.preparing.map(|preparing| preparing.document).or(self.prepared);
        match next.filter(|next| told_for != Some(next.document)) {
            Some(next) => {
                let Some(state) = session.state(next) else { return };
                // If this member cannot read the state, it cannot apply it either, so it need not send clients in the
                // changed slots.
                let state = state.ok().map(|state| (Box::new(state), next.at));
                let document = Some(next.document);
                self.telling = Some(document);
                outputs.push(Output::Tell { document, state });
            }
            None if self.settings.share_clients && self.told.is_none_or(|told| told + Self::TELLS_EVERY <= now) => {
                self.telling = Some(None);
                outputs.push(Output::Tell { document: None, state: None });
            }
            None => {}
        }
    }

    pub(super) fn has_told(&mut self, document: Option<u64>, batches: Vec<Vec<u8>>, now: Instant) {
        if self.telling.take() != Some(document) {
            return;
        }
        self.told = Some(now);
        for value in batches {
            self.last_batch += 1;
            self.batches.push_back(Batch { number: self.last_batch, value, state: BatchState::Waits });
        }
        if let Some(document) = document {
            self.preparing = Some(Preparing { document, last_batch: self.last_batch });
        }
    }

    /// Writes batches to the store, a few at a time, and deletes batches that every member has received.
    pub(super) fn put_batches(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let asker = self.asker();
        let Some(session) = &mut self.session else { return };
        if !self.pauses.hold(Errand::Records, now) {
            let under_way = self.batches.iter().filter(|batch| batch.state == BatchState::Asked).count();
            let waiting = self.batches.iter_mut().filter(|batch| batch.state == BatchState::Waits);
            for batch in waiting.take(UNDER_WAY.saturating_sub(under_way)) {
                batch.state = BatchState::Asked;
                let put = Write::put(&keys::records(&asker, batch.number), batch.value.clone(), true);
                let purpose = Purpose::Records(batch.number);
                outputs.push(Output::Ask(session.ask(&mut self.last_ticket, purpose, Vec::new(), vec![put])));
            }
        }
        let forgets = session.under_way(|purpose| matches!(purpose, Purpose::Forget(_))) > 0;
        if !forgets && !self.pauses.hold(Errand::Orphans, now) {
            let is_old = |batch: &&Batch| matches!(batch.state, BatchState::Kept(at) if at + Self::BATCH_STAYS <= now);
            let old: Vec<u64> =
                self.batches.iter().take_while(is_old).map(|batch| batch.number).take(DELETED_AT_ONCE).collect();
            if let Some(&last) = old.last() {
                let deletes = old.iter().map(|number| Write::Delete(keys::records(&asker, *number))).collect();
                let request = session.ask(&mut self.last_ticket, Purpose::Forget(last), Vec::new(), deletes);
                outputs.push(Output::Ask(request));
            }
        }
        // The member writes the card that names the document only after all batches are in the store.
        let is_there = |preparing: &mut Preparing| {
            let mut told = self.batches.iter().take_while(|batch| batch.number <= preparing.last_batch);
            told.all(|batch| matches!(batch.state, BatchState::Kept(_)))
        };
        if let Some(preparing) = self.preparing.take_if(is_there) {
            self.prepared = Some(preparing.document);
        }
    }

    /// Handles the engine's answer to writing a batch.
    pub(super) fn batch_answered(&mut self, number: u64, is_kept: bool, now: Instant) {
        let state = if is_kept {
            self.pauses.succeeded(Errand::Records);
            BatchState::Kept(now)
        } else {
            // The member sends the batch again, which is harmless even if the store already contains it.
            self.pauses.failed(Errand::Records, now);
            BatchState::Waits
        };
        self.batches.iter_mut().filter(|batch| batch.number == number).for_each(|batch| batch.state = state);
    }

    /// Handles the engine's answer to deleting the batches up to the number `last`.
    pub(super) fn batches_forgotten(&mut self, last: u64, are_gone: bool, now: Instant) {
        if !are_gone {
            return self.pauses.failed(Errand::Orphans, now);
        }
        self.pauses.succeeded(Errand::Orphans);
        while self.batches.pop_front_if(|batch| batch.number <= last).is_some() {}
    }

    /// Marks all batches, so that the member sends them again: they disappeared with the session, possibly before any
    /// member received them.
    pub(super) fn tell_again(&mut self) {
        self.batches.iter_mut().for_each(|batch| batch.state = BatchState::Waits);
    }

    /// The name of this process in keys.
    pub(super) fn asker(&self) -> String {
        keys::asker(&self.settings.name, self.settings.instance)
    }
}
