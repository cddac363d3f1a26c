//! What this member's users want of the fleet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use balancer_core::io::Refused;

use super::{Done, Member, Output, steps::put};
use crate::{
    cards::{self, Answer, Epoch, FORMAT, Member as Card, Request, Wish},
    engine::Write,
    keys,
    session::Purpose,
};

/// How long the leader has.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long members have to apply what was granted.
const LAG: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Waiting {
    key: String,
    until: Instant,
    granted: Option<(String, Epoch)>,
}

/// Wishes that are not answered yet, by the users' numbers.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    waiting: BTreeMap<u64, Waiting>,
    last: u64,
}

impl Wishes {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    pub(super) fn fail(&mut self, id: u64, why: &str, outputs: &mut Vec<Output>) {
        if self.waiting.remove(&id).is_some() {
            outputs.push(Output::Answer { id, result: Err(Refused::Conflict(why.to_owned())) });
        }
    }

    pub(super) fn fail_all(&mut self, outputs: &mut Vec<Output>) {
        let ids: Vec<u64> = self.waiting.keys().copied().collect();
        for id in ids {
            self.fail(id, "the fleet's engine is out of reach; whether the change is made is not known", outputs);
        }
    }
}

impl Member {
    pub(super) fn wish(
        &mut self,
        id: u64,
        wish: Wish,
        if_generation: Option<u64>,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) {
        let refuse = |why: String| Output::Answer { id, result: Err(Refused::Conflict(why)) };
        if let Some(why) = &self.refused {
            return outputs.push(refuse(format!("not a member of the fleet: {why}")));
        }
        let asker = self.asker();
        let Some(session) = &mut self.session else {
            return outputs.push(refuse(
                "the fleet's engine is out of reach: nothing is changed until it is back (balancer fleet)".to_owned(),
            ));
        };
        self.wishes.last += 1;
        let key = keys::request(&asker, self.wishes.last);
        let put = put(&key, cards::write(&Request { format: FORMAT, wish, if_generation }), true);
        self.wishes.waiting.insert(id, Waiting { key, until: now + PATIENCE, granted: None });
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Wish(id), Vec::new(), vec![put])));
    }

    pub(super) fn answer_wishes(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Some(session) = &mut self.session else { return };
        let members = session.members();
        let mut answered = Vec::new();
        for (&id, waiting) in &mut self.wishes.waiting {
            if waiting.granted.is_none() {
                let key = keys::answer(&waiting.key);
                match session.card::<Answer>(&key) {
                    Some(Ok(Answer { done: Ok(message), epoch, .. })) => {
                        (waiting.granted, waiting.until) = (Some((message, epoch)), now + LAG);
                    }
                    Some(Ok(Answer { done: Err(denied), .. })) => answered.push((id, Err(denied.into()))),
                    Some(Err(err)) => {
                        let why = format!("the fleet's answer {err}; whether the change is made is not known");
                        answered.push((id, Err(Refused::Conflict(why))));
                    }
                    None if waiting.until <= now => {
                        let why = format!(
                            "the fleet has not answered within {} s; the change may still be made",
                            PATIENCE.as_secs()
                        );
                        answered.push((id, Err(Refused::Conflict(why))));
                    }
                    None => {}
                }
            }
            if let Some((message, epoch)) = &waiting.granted {
                let done = done(message.clone(), *epoch, &members);
                if done.lagging.is_empty() || waiting.until <= now {
                    answered.push((id, Ok(done)));
                }
            }
        }
        let waited_for: BTreeSet<String> =
            self.wishes.waiting.values().map(|waiting| keys::answer(&waiting.key)).collect();
        let own = format!("{}{}/", keys::ANSWERS, keys::asker(&self.settings.name, self.settings.instance));
        let late = session.below(&own).map(|(_, entry)| entry.key.clone());
        let late: Vec<Write> = late.filter(|key| !waited_for.contains(key)).map(Write::Delete).take(50).collect();
        if !late.is_empty() && !session.waits_for(&Purpose::Orphans) {
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Orphans, Vec::new(), late)));
        }
        for (id, result) in answered {
            if let Some(waiting) = self.wishes.waiting.remove(&id) {
                let deletes = vec![Write::Delete(keys::answer(&waiting.key)), Write::Delete(waiting.key)];
                outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), deletes)));
            }
            outputs.push(Output::Answer { id, result });
        }
    }
}

fn done(message: String, wanted: Epoch, members: &BTreeMap<String, Card>) -> Done {
    let applies =
        |card: &Card| card.epoch.is_some_and(|epoch| epoch.lineage != wanted.lineage || epoch.number >= wanted.number);
    let lagging: Vec<String> =
        members.iter().filter(|(_, card)| !applies(card)).map(|(name, _)| name.clone()).collect();
    Done { message, applied: members.len() - lagging.len(), members: members.len(), lagging }
}
