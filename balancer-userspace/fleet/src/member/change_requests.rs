//! Requests by users of this member for changes in the fleet.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    time::{Duration, Instant},
};

use balancer_config::words::grouped;
use balancer_control::io::Refused;

use super::{Done, Member, Output, pauses::Errand};
use crate::{
    documents,
    engine::{self, Condition, LONGEST_VALUE, Request as Ask, Ticket, Write},
    keys,
    session::{Purpose, Session},
    store_schema::{self, Answer, ChangeRequest, Epoch, FORMAT, Member as Card, Request},
};

/// The minimum size in bytes of a request that the member packs. Members whose version lacks packing can read smaller
/// requests.
const LARGE: usize = 256 << 10;

/// The maximum time to wait for the leader's answer.
const PATIENCE: Duration = Duration::from_secs(7);
/// The maximum time to wait until all members have applied a granted request.
const LAG: Duration = Duration::from_secs(2);

/// The time for which the store keeps an answer while its request may still arrive, longer than etcd's limit of 7 s for
/// a request.
const ANSWER_STAYS: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Waiting {
    key: String,
    request: Vec<u8>,
    /// The change, if it is too large for the key of the request.
    part: Option<Vec<u8>>,
    until: Instant,
    /// Whether the member has sent the request more than once.
    repeated: bool,
    /// The reason why the member must send the request again; `None` if the member need not send the request again.
    lost: Option<String>,
    granted: Option<(String, Epoch)>,
}

impl Waiting {
    /// Sends the request to the leader. The leader handles a request only once, because the store refuses a copy while
    /// the request or its answer exists.
    fn ask(&self, id: u64, session: &mut Session, last: &mut Ticket) -> Ask {
        let absent = vec![Condition::Absent(self.key.clone()), Condition::Absent(keys::answer(&self.key))];
        let part = self.part.as_ref().map(|part| Write::put(&keys::part(&self.key), part.clone(), true));
        let writes = part.into_iter().chain([Write::put(&self.key, self.request.clone(), true)]).collect();
        session.ask(last, Purpose::ChangeRequest(id), absent, writes)
    }
}

/// The unanswered requests, by the number that the caller gave.
#[derive(Debug, Default)]
pub(super) struct ChangeRequests {
    waiting: BTreeMap<u64, Waiting>,
    /// Answers that stay in the store for a while, each with the time of its deletion.
    staying: VecDeque<(String, Instant)>,
    last: u64,
}

impl ChangeRequests {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }

    pub(super) fn fail_all(&mut self, outputs: &mut Vec<Output>) {
        let why = "etcd is out of reach; the change may or may not have been made (balancer status)";
        let failed = mem::take(&mut self.waiting).into_keys();
        outputs.extend(failed.map(|id| Output::Answer { id, result: Err(Refused::Conflict(why.to_owned())) }));
    }
}

impl Member {
    pub(super) fn change_request(
        &mut self,
        id: u64,
        change_request: ChangeRequest,
        if_generation: Option<u64>,
        now: Instant,
        outputs: &mut Vec<Output>,
    ) {
        let refuse = |why: String| Output::Answer { id, result: Err(Refused::Conflict(why)) };
        if let Some(why) = &self.refused {
            return outputs.push(refuse(format!("not a member of the fleet: {why}")));
        }
        if let Some(why) = self.card.denial() {
            return outputs.push(refuse(format!("nothing was changed: etcd takes no writes ({why})")));
        }
        let asker = self.asker();
        let Some(session) = &mut self.session else {
            return outputs.push(refuse(
                "nothing was changed: etcd is out of reach, and changes need it (balancer fleet)".to_owned(),
            ));
        };
        self.change_requests.last += 1;
        let key = keys::request(&asker, self.change_requests.last);
        let (request, part) = match written(change_request, if_generation) {
            Ok(written) => written,
            Err(why) => return outputs.push(refuse(why)),
        };
        let waiting = Waiting { key, request, part, until: now + PATIENCE, repeated: false, lost: None, granted: None };
        outputs.push(Output::Ask(waiting.ask(id, session, &mut self.last_ticket)));
        self.change_requests.waiting.insert(id, waiting);
    }

    /// Handles the engine's answer to writing a request.
    pub(super) fn wish_answered(&mut self, id: u64, answer: engine::Answer, now: Instant, outputs: &mut Vec<Output>) {
        match answer {
            engine::Answer::Denied(why) => {
                let repeated = self.change_requests.waiting.remove(&id).is_some_and(|waiting| waiting.repeated);
                self.pauses.succeeded(Errand::ChangeRequest(id));
                // The store may contain the request from an earlier attempt.
                let end = if repeated {
                    "the change may or may not have been made (balancer status)"
                } else {
                    "nothing was changed"
                };
                let why = format!("{end}: etcd refuses the request: {why}");
                outputs.push(Output::Answer { id, result: Err(Refused::Conflict(why)) });
            }
            // The outcome is unknown, for example because an etcd server has failed.
            engine::Answer::Unknown(why) => {
                if let Some(waiting) = self.change_requests.waiting.get_mut(&id) {
                    (waiting.repeated, waiting.lost) = (true, Some(why));
                    self.pauses.failed(Errand::ChangeRequest(id), now);
                }
            }
            engine::Answer::Made(_) | engine::Answer::Refused | engine::Answer::Read(_) => {
                self.pauses.succeeded(Errand::ChangeRequest(id));
                self.change_requests.waiting.get_mut(&id).into_iter().for_each(|waiting| waiting.lost = None);
            }
        }
    }

    /// Sends lost requests again.
    fn wish_again(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        let Self { session: Some(session), change_requests, pauses, last_ticket, .. } = self else { return };
        for (&id, waiting) in &mut change_requests.waiting {
            if waiting.lost.is_some()
                && !session.waits_for(&Purpose::ChangeRequest(id))
                && !pauses.hold(Errand::ChangeRequest(id), now)
            {
                outputs.push(Output::Ask(waiting.ask(id, session, last_ticket)));
            }
        }
    }

    pub(super) fn answer_wishes(&mut self, now: Instant, outputs: &mut Vec<Output>) {
        self.wish_again(now, outputs);
        let Some(session) = &mut self.session else { return };
        let members = session.members();
        let mut answered = Vec::new();
        for (&id, waiting) in &mut self.change_requests.waiting {
            if waiting.granted.is_none() {
                let key = keys::answer(&waiting.key);
                match session.card::<Answer>(&key) {
                    Some(Ok(Answer { done: Ok(message), epoch, .. })) => {
                        (waiting.granted, waiting.until) = (Some((message, epoch)), now + LAG);
                    }
                    Some(Ok(Answer { done: Err(denied), .. })) => answered.push((id, Err(denied.into()))),
                    Some(Err(err)) => {
                        let why = format!(
                            "the fleet's answer {err}; the change may or may not have been made \
                                           (balancer status)"
                        );
                        answered.push((id, Err(Refused::Conflict(why))));
                    }
                    None if waiting.until <= now => {
                        let lost = waiting.lost.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                        let why = format!(
                            "the fleet has not answered within {} s{lost}; the change may still be made",
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
        while self.change_requests.staying.front().is_some_and(|(_, until)| *until <= now) {
            self.change_requests.staying.pop_front();
        }
        let waited_for = self.change_requests.waiting.values().map(|waiting| keys::answer(&waiting.key));
        let stay = self.change_requests.staying.iter().map(|(key, _)| key.clone());
        let wanted: BTreeSet<String> = waited_for.chain(stay).collect();
        let own = format!("{}{}/", keys::ANSWERS, keys::asker(&self.settings.name, self.settings.instance));
        let late = session.below(&own).map(|(_, entry)| entry.key.clone());
        let late: Vec<Write> = late.filter(|key| !wanted.contains(key)).map(Write::Delete).take(50).collect();
        if !late.is_empty() && !session.waits_for(&Purpose::Orphans) && !self.pauses.hold(Errand::Orphans, now) {
            outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Orphans, Vec::new(), late)));
        }
        for (id, result) in answered {
            self.pauses.succeeded(Errand::ChangeRequest(id));
            if let Some(waiting) = self.change_requests.waiting.remove(&id) {
                let answer = keys::answer(&waiting.key);
                let part = waiting.part.as_ref().map(|_| Write::Delete(keys::part(&waiting.key)));
                let mut deletes: Vec<Write> = part.into_iter().chain([Write::Delete(waiting.key)]).collect();
                if waiting.repeated {
                    self.change_requests.staying.push_back((answer, now + ANSWER_STAYS));
                } else {
                    deletes.push(Write::Delete(answer));
                }
                outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Other, Vec::new(), deletes)));
            }
            outputs.push(Output::Answer { id, result });
        }
    }
}

/// Serializes a request; a change that is too large for the key of the request is returned separately.
fn written(change_request: ChangeRequest, if_generation: Option<u64>) -> Result<(Vec<u8>, Option<Vec<u8>>), String> {
    let request =
        store_schema::write(&Request { format: FORMAT, change_request: Some(change_request.clone()), if_generation });
    if request.len() <= LARGE {
        return Ok((request, None));
    }
    let packed = documents::pack(&change_request, "the change")?;
    if packed.len() > LONGEST_VALUE {
        return Err(format!(
            "nothing was changed: the change has {} bytes when compressed, and etcd takes at most {}: split it into \
             several changes",
            grouped(packed.len() as u64),
            grouped(LONGEST_VALUE as u64)
        ));
    }
    Ok((store_schema::write(&Request { format: FORMAT, change_request: None, if_generation }), Some(packed)))
}

fn done(message: String, wanted: Epoch, members: &BTreeMap<String, Card>) -> Done {
    let applies =
        |card: &Card| card.epoch.is_some_and(|epoch| epoch.lineage != wanted.lineage || epoch.number >= wanted.number);
    let lagging: Vec<String> =
        members.iter().filter(|(_, card)| !applies(card)).map(|(name, _)| name.clone()).collect();
    let in_part = |card: &Card| applies(card) && card.lacks.is_some();
    let partial: Vec<String> = members.iter().filter(|(_, card)| in_part(card)).map(|(name, _)| name.clone()).collect();
    let applied = members.len() - lagging.len() - partial.len();
    Done { message, applied, members: members.len(), lagging, partial }
}
