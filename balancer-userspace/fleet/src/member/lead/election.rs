//! The election of the leader, and the state with which a new leader begins.

use std::collections::{HashMap, HashSet};

use balancer_control::{
    controller::Controller,
    state::{Clocks, Moment, SavedState},
};

use super::{Counted, Lead, Leading, keeping};
use crate::{
    emptied::Emptied,
    engine::{Condition, Entry, Revision, Write},
    keys,
    member::{Member, Output, pauses::Errand},
    session::{Purpose, Session},
    store_schema::{self, Epoch, FORMAT, Leader},
};

impl Member {
    /// Tries to become the leader if there is no leader.
    pub(super) fn stand(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let gives_way = self.gives_way();
        let Some(session) = &mut self.session else { return };
        if self.card.is_denied() || self.pauses.hold(Errand::Lead, clocks.now) {
            return;
        }
        let name = keys::LEADER.to_owned();
        let card = Leader { format: FORMAT, member: self.settings.name.clone(), instance: self.settings.instance };
        let write = Write::put(keys::LEADER, store_schema::write(&card), true);
        match (&self.leading, session.get(keys::LEADER)) {
            (Leading::Doubts, Some(entry)) => {
                let condition = Condition::Created(name, entry.created);
                self.leading = Leading::Asks;
                let request = session.ask(&mut self.last_ticket, Purpose::Barrier, vec![condition], vec![write]);
                outputs.push(Output::Ask(request));
            }
            (Leading::Doubts | Leading::Resigns, None) => self.leading = Leading::No,
            (Leading::Resigns, Some(entry)) if !is_own(&entry.value, self.settings.instance) => {
                self.leading = Leading::No;
            }
            // The member is the leader, although an attempt to become the leader seemed to fail.
            (Leading::No, Some(entry)) if is_own(&entry.value, self.settings.instance) => {
                self.leading = Leading::Doubts;
            }
            (Leading::No, None) if gives_way => {}
            (Leading::No, None) => {
                let members = session.members();
                let somebody = members.values().any(|member| member.in_step);
                let waits = self.joined.is_none_or(|joined| joined + Self::HOLDS / 2 > clocks.now);
                let best = members.iter().max_by_key(|(name, member)| (member.epoch.map(|epoch| epoch.number), *name));
                // If no member is in step, the member with the latest epoch becomes the leader, after the other members
                // have had time to join.
                let best = best.is_some_and(|(name, _)| *name == self.settings.name);
                if self.in_step || !somebody && best && !waits {
                    self.leading = Leading::Stands;
                    let absent = vec![Condition::Absent(name)];
                    let request = session.ask(&mut self.last_ticket, Purpose::Campaign, absent, vec![write]);
                    outputs.push(Output::Ask(request));
                }
            }
            (
                Leading::No
                | Leading::Stands
                | Leading::Asks
                | Leading::Elected(_)
                | Leading::Leads(_)
                | Leading::Resigns,
                _,
            ) => {}
        }
    }

    pub(super) fn take_office(&mut self, clocks: Clocks, outputs: &mut Vec<Output>) {
        let Leading::Elected(revision) = self.leading else { return };
        let Some(session) = &self.session else { return };
        if session.revision() < revision {
            return;
        }
        let own = |entry: &&Entry| is_own(&entry.value, self.settings.instance);
        let Some(fence) = session.get(keys::LEADER).filter(own).map(|entry| entry.modified) else {
            self.leading = Leading::No;
            return;
        };
        match self.new_lead(session, fence, clocks) {
            Ok(Some(lead)) => {
                self.founded += u64::from(lead.epoch.is_none());
                self.leading = Leading::Leads(Box::new(lead));
                outputs.push(Output::Log { warning: false, message: "this balancer leads the fleet".to_owned() });
            }
            Ok(None) => {}
            Err(why) => {
                let message = format!("this balancer cannot lead the fleet: {why}");
                let news = self.failed.as_ref().is_none_or(|(_, known)| *known != message);
                if news {
                    outputs.push(Output::Log { warning: true, message: message.clone() });
                    self.failed = Some((Epoch { lineage: 0, number: 0 }, message));
                }
                self.resign(fence, outputs);
            }
        }
    }

    /// Leaves the office, whose key was last written at the revision `fence`, to a member that applies the whole epoch.
    pub(super) fn resign(&mut self, fence: Revision, outputs: &mut Vec<Output>) {
        if !self.gives_way() {
            return;
        }
        let Some(session) = self.session.as_mut() else { return };
        let condition = Condition::Modified(keys::LEADER.to_owned(), fence);
        let delete = Write::Delete(keys::LEADER.to_owned());
        let request = session.ask(&mut self.last_ticket, Purpose::Lead, vec![condition], vec![delete]);
        outputs.push(Output::Ask(request));
        self.leading = Leading::Resigns;
    }

    /// Makes the state with which a leader begins, from the epoch in the store. If the store has no epoch, the leader
    /// continues from the epoch that it applied last, or otherwise from its configuration file.
    fn new_lead(&self, session: &Session, fence: Revision, clocks: Clocks) -> Result<Option<Lead>, String> {
        let (config, key) = (self.settings.config.clone(), self.key.unwrap_or(self.settings.key));
        // The controller has the state exactly as it was written. The first step of the leader makes and writes the
        // decisions that have become due since the state was written.
        let from = |state: SavedState, epoch: Epoch, at: Moment, by: &str| {
            Controller::decider_from(config.clone(), key, state, self.as_of(epoch, at, by, clocks))
        };
        let (mut changed, mut file) = (clocks.now, clocks.now);
        let (controller, epoch, document, emptied, lineage) = match session.epoch() {
            Some(card) => {
                let card = card.as_ref().map_err(|err| format!("{} in the store {err}", keys::EPOCH))?;
                let Some(state) = session.state(card) else { return Ok(None) };
                let written = session.get(keys::EPOCH).map(|entry| entry.modified).unwrap_or_default();
                let (epoch, document) = (Some((card.epoch, written)), Some(card.document));
                let as_of = self.as_of(card.epoch, card.at, &card.by, clocks);
                changed = card.changed.map_or(as_of.now, |changed| as_of.instant(changed));
                file = card.file.map_or(changed, |file| as_of.instant(file));
                let controller = from(state?, card.epoch, card.at, &card.by)?;
                (controller, epoch, document, card.emptied.clone(), card.epoch.lineage)
            }
            None => {
                let controller = match &self.applied {
                    Some((epoch, state, at)) => from(state.clone(), *epoch, *at, "")?,
                    None => Controller::decider(config, key, clocks.now),
                };
                // The number is far from the numbers of lineages that other processes begin.
                let lineage = self.settings.instance.wrapping_add(self.founded.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (controller, None, None, Emptied::clone(&self.emptied), lineage)
            }
        };
        let mut garbage: Vec<u64> = session
            .below(keys::DOCUMENTS)
            .filter_map(|(key, _)| u64::from_str_radix(key.split('/').next()?, 16).ok())
            .filter(|other| Some(*other) != document)
            .collect();
        garbage.dedup();
        let last = garbage.iter().copied().chain(document).max().unwrap_or(0);
        Ok(Some(Lead {
            fence,
            epoch,
            lineage,
            first: self.epoch().map_or(1, |epoch| epoch.number + 1),
            keeping: keeping(&controller),
            emptied,
            committed: controller.clone(),
            decided: controller,
            taken: false,
            prepared: None,
            writing: None,
            answers: Vec::new(),
            seen: HashSet::new(),
            lines: Vec::new(),
            garbage: garbage.into_iter().chain(document).collect(),
            document: last,
            since: HashMap::new(),
            since_all: epoch.map_or(0, |(epoch, _)| epoch.number),
            sweeps: Counted::default(),
            flow_counts: Counted::default(),
            deadline: None,
            name: self.settings.name.clone(),
            changed,
            file,
            #[cfg(test)]
            mutation: self.mutation,
        }))
    }
}

fn is_own(leader: &[u8], instance: u64) -> bool {
    store_schema::read::<Leader>(leader).is_ok_and(|leader| leader.instance == instance)
}
