//! Dumps of known clients, from which a joining member learns the clients of all other members.

use std::time::Instant;

use super::{Clients, Member, Output, lead::Leading, pauses::Errand};
use crate::{
    engine::{Entry, Write},
    keys,
    session::Purpose,
    store_schema::{self, Dump, FORMAT, Member as Card},
};

/// The maximum number of dump parts whose writes are in progress. Above this number, further parts of dumps wait here
/// and not in the engine's queue.
const UNDER_WAY: usize = 8;

impl Member {
    /// Imports the clients that another member has dumped for this member.
    pub(super) fn learn_clients(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let asks = self.applied.is_some()
            && self.applying.is_none()
            && !session.waits_for(&Purpose::Clients)
            && !self.pauses.hold(Errand::Clients, now);
        if self.clients != Clients::Wanted || !asks {
            return;
        }
        let dump = session.card::<Dump>(&keys::dump(&self.settings.name)).and_then(Result::ok);
        if dump.is_some_and(|dump| dump.instance == self.settings.instance) {
            self.clients = Clients::Reading;
            let prefix = keys::dump_parts(&self.settings.name);
            outputs.push(Output::Ask(session.read(&mut self.last_ticket, Purpose::Clients, prefix)));
            return;
        }
        // If no member is in step, no member knows more clients than the leader.
        let somebody = session.members().values().any(|member| member.in_step);
        if !somebody && matches!(self.leading, Leading::Leads(_)) {
            self.clients = Clients::Known;
        }
    }

    pub(super) fn read_clients(&mut self, entries: &[Entry], now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = self.session.as_mut().filter(|_| self.clients == Clients::Reading) else { return };
        let name = &self.settings.name;
        let dump = session.card::<Dump>(&keys::dump(name)).and_then(Result::ok);
        if dump.is_none_or(|dump| dump.instance != self.settings.instance || dump.parts != entries.len()) {
            // The dump is incomplete or outdated, so the member requests another dump.
            self.clients = Clients::Wanted;
            self.pauses.failed(Errand::Clients, now);
            let delete = vec![Write::Delete(keys::dump(name))];
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), delete)));
            return;
        }
        // The dumping member may have joined after other members had sent earlier records, so this member must not
        // assume that the other members know more than the records in the dump.
        outputs.push(Output::Doubt);
        for entry in entries {
            self.take_over(entry, outputs);
        }
        let Some(session) = &mut self.session else { return };
        self.pauses.succeeded(Errand::Clients);
        self.clients = Clients::Read;
        let writes = without_dump(&self.settings.name).into();
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), writes)));
    }

    /// Dumps the known clients of this member for joining members, if this member is the first one in step.
    pub(super) fn dump(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &self.session else { return };
        if !self.in_step {
            return;
        }
        let members = session.members();
        let first = members.iter().find(|(_, member)| member.in_step).map(|(name, _)| name);
        self.dumping.retain(|name, (instance, since)| {
            let wants = |member: &Card| member.instance == *instance && member.wants_clients;
            members.get(name).is_some_and(wants) && (*since + Self::DUMP_TAKES > now || !self.dumps.is_empty())
        });
        if first != Some(&self.settings.name) {
            return;
        }
        let needless = session.below(keys::DUMPS).filter(|(name, entry)| {
            let member = members.get(*name).filter(|member| !member.in_step);
            let dump = store_schema::read::<Dump>(&entry.value).ok();
            member.zip(dump).is_none_or(|(member, dump)| member.instance != dump.instance)
        });
        let needless: Vec<Write> = needless.take(10).flat_map(|(name, _)| without_dump(name)).collect();
        for (name, member) in members.iter().filter(|(_, member)| member.wants_clients) {
            let there = session.card::<Dump>(&keys::dump(name)).and_then(Result::ok);
            let is_there = there.is_some_and(|dump| dump.instance == member.instance);
            if !is_there && !self.dumping.contains_key(name) {
                self.dumping.insert(name.clone(), (member.instance, now));
                outputs.push(Output::Dump { to: name.clone(), instance: member.instance });
            }
        }
        let Some(session) = &mut self.session else { return };
        if !needless.is_empty() && !session.waits_for(&Purpose::Orphans) && !self.pauses.hold(Errand::Orphans, now) {
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Orphans, Vec::new(), needless)));
        }
    }

    pub(super) fn has_dumped(&mut self, to: &str, instance: u64, batches: Vec<Vec<u8>>) {
        if self.session.is_none() || self.dumping.get(to).is_none_or(|(of, _)| *of != instance) {
            return;
        }
        let parts = batches.len();
        for (part, batch) in batches.into_iter().enumerate() {
            self.dumps.push_back(Write::put(&format!("{}{part:06}", keys::dump_parts(to)), batch, true));
        }
        self.dumps.push_back(Write::put(
            &keys::dump(to),
            store_schema::write(&Dump { format: FORMAT, instance, parts }),
            true,
        ));
    }

    /// Writes parts of dumps to the store, a few at a time. If a part is lost, the reading member notices this.
    pub(super) fn put_dumps(&mut self, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let under_way = session.under_way(|purpose| *purpose == Purpose::Dump);
        for put in self.dumps.drain(..self.dumps.len().min(UNDER_WAY.saturating_sub(under_way))) {
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Dump, Vec::new(), vec![put])));
        }
    }
}

/// Returns the writes that delete the dump for a member.
pub(super) fn without_dump(name: &str) -> [Write; 2] {
    [Write::DeletePrefix(keys::dump_parts(name)), Write::Delete(keys::dump(name))]
}
