//! Carries out the requests of a session, one after the other.

use balancer_fleet::engine::{Answer, Condition, News, Request, Revision, Write};
use tokio::{sync::mpsc, time::timeout};
use tonic::Code;

use crate::{
    copy,
    handle::{Asked, NewsSender},
    keys::{Keys, end},
    lease::Lease,
    link::no_answer,
    links::{Failure, Links},
    message::{Compare, DeleteRangeRequest, Op, PutRequest, RequestOp, TxnRequest},
    words,
};

/// The time limit of a read, as a multiple of the time limit of one call.
const READS: u32 = 6;

/// The state for carrying out the requests of a session.
pub(crate) struct Work<'a> {
    pub(crate) links: &'a Links,
    pub(crate) keys: &'a Keys,
    pub(crate) news: &'a NewsSender,
    pub(crate) lease: Lease,
    /// The number of the session. The driver drops requests that belong to other sessions.
    pub(crate) session: u64,
}

/// The reason why a session has ended.
#[derive(Debug)]
pub(crate) enum Over {
    /// The senders of requests or the receiver of news were dropped.
    Stopped,
    /// The session has lost its lease or missed changes.
    Lost(String),
    /// The next session would end in the same way.
    Hopeless(String),
    /// The server refuses a request that a session needs.
    Denied(String),
}

impl Work<'_> {
    pub(crate) async fn carry_out(self, requests: &mut mpsc::Receiver<Asked>) -> Over {
        while let Some(asked) = requests.recv().await {
            if asked.session != self.session {
                continue;
            }
            let (ticket, answer) = match asked.request {
                Request::Transaction { ticket, conditions, writes } => {
                    match self.transaction(conditions, writes).await {
                        Ok(answer) => (ticket, answer),
                        Err(why) => return Over::Lost(why),
                    }
                }
                Request::Read { ticket, prefix } => (ticket, self.read(&prefix).await),
                Request::End { reason } => return Over::Lost(reason),
            };
            if !self.news.send(News::Answered(ticket, answer)).await {
                break;
            }
        }
        Over::Stopped
    }

    /// Sends the transaction only once, because etcd may have applied the transaction even if the answer is lost. `Err`
    /// if the lease no longer exists.
    async fn transaction(&self, conditions: Vec<Condition>, writes: Vec<Write>) -> Result<Answer, String> {
        let limit = self.links.settings().transaction_limit();
        let Ok(link) = timeout(limit, self.links.link()).await else {
            return Ok(Answer::Unknown("no endpoint can be reached".to_owned()));
        };
        let puts = writes.iter().any(|write| matches!(write, Write::Put { .. }));
        let request = TxnRequest {
            compare: conditions.into_iter().map(|condition| self.compare(condition)).collect(),
            success: writes.into_iter().map(|write| self.write(write)).collect(),
        };
        Ok(match self.links.attempt(&link, limit, link.working.txn(request)).await {
            Ok(answer) if answer.succeeded => {
                if puts {
                    self.links.takes_writes();
                }
                Answer::Made(Revision(answer.header.map_or(0, |header| header.revision)))
            }
            Ok(_) => Answer::Refused,
            Err(Failure::Refused(status)) if status.code() == Code::NotFound && status.message().contains("lease") => {
                return Err("the lease has run out".to_owned());
            }
            Err(Failure::Refused(status)) if words::is_denial(&status) => {
                let why = words::status(&status);
                if words::concerns_all_writes(&status) {
                    self.links.denies(why.clone());
                }
                Answer::Denied(why)
            }
            Err(Failure::Refused(status)) => Answer::Unknown(words::status(&status)),
            Err(Failure::Broken(why)) => Answer::Unknown(why),
        })
    }

    async fn read(&self, prefix: &str) -> Answer {
        let settings = self.links.settings();
        let limit = settings.limit() * READS;
        match timeout(limit, copy::read(self.links, self.keys, prefix, settings.limit())).await {
            Ok(Ok(copy)) => Answer::Read(copy.entries),
            Ok(Err(why)) => Answer::Unknown(why),
            Err(_) => Answer::Unknown(no_answer(limit)),
        }
    }

    fn compare(&self, condition: Condition) -> Compare {
        match condition {
            Condition::Absent(key) => Compare::created(self.keys.full(&key), 0),
            Condition::Created(key, revision) => Compare::created(self.keys.full(&key), revision.0),
            Condition::Modified(key, revision) => Compare::modified(self.keys.full(&key), revision.0),
        }
    }

    fn write(&self, write: Write) -> RequestOp {
        let op = match write {
            Write::Put { key, value, leased } => {
                let lease = if leased { self.lease.id } else { 0 };
                Op::Put(PutRequest { key: self.keys.full(&key), value, lease })
            }
            Write::Delete(key) => Op::Delete(DeleteRangeRequest { key: self.keys.full(&key), range_end: Vec::new() }),
            Write::DeletePrefix(prefix) => {
                let key = self.keys.full(&prefix);
                Op::Delete(DeleteRangeRequest { range_end: end(&key), key })
            }
        };
        RequestOp { op: Some(op) }
    }
}
