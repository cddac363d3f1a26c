//! The leader's writes: epochs, states for which members prepare, and answers to requests.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    net::SocketAddr,
};

use balancer_config::words::grouped;
use balancer_control::{
    controller::Controller,
    io::BackendId,
    service::{Backend, Service},
    state::Clocks,
};

use super::{Lead, keeping, lines};
use crate::{
    documents,
    emptied::Emptied,
    engine::{Condition, LONGEST_VALUE, Revision, Write},
    keys,
    session::document_name,
    store_schema::{self, Answer, Epoch, FORMAT, Line, StateCard},
};

/// Transactions that the engine must make in this order, and the state after all these transactions.
#[derive(Debug)]
pub(super) struct Writing {
    transactions: VecDeque<Transaction>,
    then: Then,
}

#[derive(Debug)]
pub(super) enum Then {
    Committed(StateCard, Box<Controller>),
    Prepared(StateCard),
    Answered,
}

type Transaction = (Vec<Condition>, Vec<Write>);

/// The minimum size in bytes of a document part that gets its own transaction.
const LARGE: usize = LONGEST_VALUE / 2 + 1;

/// The maximum total size in bytes of an epoch's log lines.
const TOLD: usize = 128 << 10;

/// The maximum number of documents that one transaction deletes.
const MOST_GARBAGE: usize = 8;

impl Lead {
    pub(super) fn commit_first(&mut self, clocks: Clocks) -> Result<(), String> {
        let commands = self.decided.decide_what_is_due(clocks.now);
        self.lines.extend(lines(commands));
        self.commit(self.decided.clone(), true, clocks)
    }

    /// Writes the state of a controller as the current epoch.
    pub(super) fn commit(&mut self, controller: Controller, is_decided: bool, clocks: Clocks) -> Result<(), String> {
        let lines = bounded(mem::take(&mut self.lines));
        let (card, parts) = self.state_card(&controller, lines, clocks)?;
        self.commit_card(card, parts, controller, is_decided);
        Ok(())
    }

    pub(super) fn commit_card(&mut self, card: StateCard, parts: Vec<Write>, controller: Controller, is_decided: bool) {
        let epoch = Condition::Absent(keys::EPOCH.to_owned());
        let epoch = self.epoch.map_or(epoch, |(_, written)| Condition::Modified(keys::EPOCH.to_owned(), written));
        let mut writes =
            vec![Write::put(keys::EPOCH, store_schema::write(&card), false), Write::Delete(keys::NEXT.to_owned())];
        if is_decided {
            writes.extend(self.take_answers(card.epoch));
        }
        self.garbage.retain(|document| *document != card.document);
        let some = self.garbage.len().min(MOST_GARBAGE);
        let old = self.garbage.drain(..some);
        writes.extend(old.map(|document| Write::DeletePrefix(keys::documents(&document_name(document)))));
        self.garbage.push(card.document);
        let transactions = self.in_transactions(parts, (vec![self.is_leader(), epoch], writes));
        self.write(transactions, Then::Committed(card, Box::new(controller)));
    }

    /// Asks all members to prepare for the decided state.
    pub(super) fn prepare(&mut self, clocks: Clocks) -> Result<(), String> {
        let (card, parts) = self.state_card(&self.decided.clone(), Vec::new(), clocks)?;
        let writes = vec![Write::put(keys::NEXT, store_schema::write(&card), false)];
        let transactions = self.in_transactions(parts, (vec![self.is_leader()], writes));
        self.write(transactions, Then::Prepared(card));
        Ok(())
    }

    /// Makes the card of the state that follows the current epoch, and the parts of its document.
    fn state_card(
        &mut self,
        controller: &Controller,
        lines: Vec<Line>,
        clocks: Clocks,
    ) -> Result<(StateCard, Vec<Write>), String> {
        let parts = documents::write(&controller.agreed_state(clocks))?;
        self.document += 1;
        let epoch =
            Epoch { lineage: self.lineage, number: self.epoch.map_or(self.first, |(epoch, _)| epoch.number + 1) };
        let card = StateCard {
            format: FORMAT,
            epoch,
            at: clocks.moment(clocks.now),
            document: self.document,
            by: self.name.clone(),
            changed: Some(clocks.moment(self.changed)),
            file: Some(clocks.moment(self.file)),
            parts: parts.len(),
            emptied: self.emptied_by(controller, epoch),
            lines,
        };
        let name = document_name(card.document);
        let writes = parts.into_iter().enumerate();
        Ok((card, writes.map(|(part, bytes)| Write::put(&keys::document(&name, part), bytes, false)).collect()))
    }

    /// The backends that can no longer keep their clients when this epoch becomes the current one.
    fn emptied_by(&self, next: &Controller, epoch: Epoch) -> Emptied {
        let mut emptied = self.emptied.clone();
        #[cfg(test)]
        if self.mutation == Some(crate::member::Mutation::ForgetsWhoHadToLeave) {
            return emptied;
        }
        let keeping = self.keeping.iter().zip(keeping(next));
        let cease = (0..=u16::MAX).zip(keeping).filter_map(|(id, (kept, keeps))| (*kept && !keeps).then_some(id));
        emptied.note(cease, epoch.number as u32);
        emptied
    }

    /// Puts each large part into its own transaction, and puts these transactions before the last transaction.
    fn in_transactions(&self, parts: Vec<Write>, last: Transaction) -> Vec<Transaction> {
        let (conditions, mut writes) = last;
        let size: usize = parts.iter().map(size).sum();
        if size < LARGE {
            writes.extend(parts);
            return vec![(conditions, writes)];
        }
        let alone = |part| (vec![self.is_leader()], vec![part]);
        parts.into_iter().map(alone).chain([(conditions, writes)]).collect()
    }

    pub(super) fn is_leader(&self) -> Condition {
        Condition::Modified(keys::LEADER.to_owned(), self.fence)
    }

    pub(super) fn take_answers(&mut self, epoch: Epoch) -> Vec<Write> {
        let mut writes = Vec::new();
        for (request, done) in mem::take(&mut self.answers) {
            let answer = Answer { format: FORMAT, done, epoch };
            writes.push(Write::put(&keys::answer(&request), store_schema::write(&answer), true));
            writes.push(Write::Delete(request));
        }
        writes
    }

    pub(super) fn write(&mut self, transactions: Vec<Transaction>, then: Then) {
        self.writing = Some(Writing { transactions: transactions.into(), then });
    }

    pub(super) fn next_transaction(&mut self) -> Option<Transaction> {
        let next = self.writing.as_mut()?.transactions.pop_front();
        #[cfg(test)]
        if self.mutation == Some(crate::member::Mutation::WritesUnconditionally) {
            return next.map(|(_, writes)| (Vec::new(), writes));
        }
        next
    }

    pub(super) fn has_written(&mut self, revision: Revision) {
        let Some(writing) = self.writing.take() else { return };
        if !writing.transactions.is_empty() {
            self.writing = Some(writing);
            return;
        }
        match writing.then {
            Then::Prepared(card) => self.prepared = Some(card),
            Then::Answered => {}
            Then::Committed(card, controller) => {
                self.note_changed_backends(&controller, card.epoch.number);
                if self.prepared.as_ref().is_some_and(|prepared| prepared.document == card.document) {
                    self.prepared = None;
                }
                self.epoch = Some((card.epoch, revision));
                (self.keeping, self.emptied) = (keeping(&controller), card.emptied);
                self.committed = *controller;
            }
        }
    }

    /// Records that ballots from earlier epochs do not apply to backends that are new or have another address.
    fn note_changed_backends(&mut self, next: &Controller, number: u64) {
        let before = targets(&self.committed);
        let after = targets(next);
        self.since.retain(|id, _| after.contains_key(id));
        let first = self.epoch.is_none();
        for (id, target) in after {
            if first || before.get(&id) != Some(&target) {
                self.since.insert(id, number);
            }
        }
    }
}

/// Limits log lines to the size that fits into an epoch's card, because a change of thousands of backends causes
/// thousands of lines.
pub(super) fn bounded(mut lines: Vec<Line>) -> Vec<Line> {
    let mut total = 0;
    let mut fits = |line: &Line| {
        total += line.message.len() + 100;
        total <= TOLD
    };
    let fitting = lines.iter().take_while(|line| fits(line)).count();
    let left_out = lines.split_off(fitting);
    if !left_out.is_empty() {
        let warning = left_out.iter().any(|line| line.warning);
        lines.push(Line {
            warning,
            about: None,
            message: format!("and {} more of that kind", grouped(left_out.len() as u64)),
        });
    }
    lines
}

/// The address and the check target of each backend.
fn targets(controller: &Controller) -> HashMap<BackendId, (SocketAddr, SocketAddr)> {
    let of = |service: &'_ Service| -> Vec<_> {
        let target = |backend: &Backend| (backend.id(), (backend.address(), service.check_target(backend)));
        service.backends().iter().map(target).collect()
    };
    controller.services().iter().flat_map(of).collect()
}

fn size(write: &Write) -> usize {
    match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete(_) | Write::DeletePrefix(_) => 0,
    }
}
