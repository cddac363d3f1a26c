//! Runs sessions with the engine, one after the other.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use balancer_fleet::engine::{LIVE, News};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use crate::{
    changes::Changes,
    copy,
    facts::HISTORY,
    handle::{Asked, NewsSender},
    keys::{Keys, end},
    lease::{Lease, NotGranted},
    link::Link,
    links::{Failure, Links, wait, wait_longer},
    message::RangeRequest,
    pulse,
    work::{Over, Work},
};

/// The time to wait when every attempt fails and each attempt causes much work for the engine.
const LONG: Duration = Duration::from_secs(10);

/// The interval at which the driver checks the length of etcd's history.
const LOOKS_AT_HISTORY_EVERY: Duration = Duration::from_secs(60);

/// Runs sessions until the receiver of news is dropped.
pub(crate) struct Sessions<'a> {
    pub(crate) links: &'a Links,
    pub(crate) keys: Keys,
    pub(crate) news: NewsSender,
    pub(crate) requests: mpsc::Receiver<Asked>,
    /// The id of a lease of an earlier session that may still exist.
    pub(crate) stale: Option<i64>,
}

impl Sessions<'_> {
    pub(crate) async fn run(&mut self) {
        let mut failures = 0;
        loop {
            self.news.next();
            let began = AtomicBool::new(false);
            let (reason, pause) = match self.next(&began).await {
                Over::Stopped => return,
                Over::Lost(reason) => (reason, None),
                Over::Hopeless(reason) => (reason, Some(LONG)),
                Over::Denied(reason) => {
                    self.links.denies(reason.clone());
                    (reason, Some(wait_longer(failures)))
                }
            };
            self.links.trouble(reason.clone());
            let began = began.into_inner();
            failures = if began { 0 } else { failures + 1 };
            if began {
                tracing::warn!("the engine: the session is over: {reason}");
                if !self.news.send(News::Lost { reason }).await {
                    return;
                }
            } else if failures == 1 {
                tracing::warn!("the engine: no session: {reason}");
            } else {
                tracing::debug!("the engine: no session: {reason}");
            }
            tokio::select! {
                () = sleep(pause.unwrap_or(wait(failures))) => {}
                () = self.news.closed() => return,
            }
        }
    }

    /// Reports a fault of the driver that has ended the session.
    pub(crate) async fn give_up(&mut self, why: String) {
        let reason = format!("a fault in the driver of the engine: {why}");
        tracing::error!("{reason}");
        if let Some(link) = self.links.now() {
            self.links.broken(&link, &reason);
        }
        self.links.trouble(reason.clone());
        // Sending fails if the receiver was dropped, in which case the driver is about to stop.
        let _ = self.news.send(News::Lost { reason }).await;
    }

    async fn next(&mut self, began: &AtomicBool) -> Over {
        let links = self.links;
        let link = tokio::select! {
            link = links.link() => link,
            () = self.news.closed() => return Over::Stopped,
        };
        links.expect(link.cluster);
        self.revoke_stale().await;
        let over = match Lease::grant(links, &link).await {
            Ok(lease) => {
                links.proved();
                let over = self.hold(lease, began).await;
                self.stale = Some(lease.id);
                self.revoke_stale().await;
                over
            }
            Err(NotGranted::Broken(why)) => {
                links.broken(&link, &why);
                Over::Lost(why)
            }
            // The driver does not try another server, because it would refuse as well.
            Err(NotGranted::Denied(why)) => {
                links.proved();
                Over::Denied(why)
            }
        };
        links.expect(0);
        over
    }

    /// Runs a session whose lease etcd has granted.
    async fn hold(&mut self, lease: Lease, began: &AtomicBool) -> Over {
        let Self { links, keys, news, requests, .. } = self;
        let (links, keys, news) = (*links, &*keys, &*news);
        let work = Work { links, keys, news, lease, session: news.session() };
        let following = async {
            let copy = match copy::read(links, keys, LIVE, links.settings().limit()).await {
                Ok(copy) => copy,
                Err(why) => return Over::Hopeless(why),
            };
            let changes = Changes::after(copy.revision, &copy.entries, (links, keys, LIVE, news));
            if !news.send(News::Joined { revision: copy.revision, entries: copy.entries }).await {
                return Over::Stopped;
            }
            began.store(true, Relaxed);
            links.facts.send_modify(|facts| facts.trouble = None);
            Over::Lost(changes.follow().await)
        };
        tokio::select! {
            biased;
            why = lease.keep(links) => Over::Lost(why),
            over = work.carry_out(requests) => over,
            over = following => over,
            () = news.closed() => Over::Stopped,
            () = feel_pulse(links, keys) => Over::Stopped,
        }
    }

    /// Revokes the lease of the previous session, if a server can be reached.
    async fn revoke_stale(&mut self) {
        let (Some(id), Some(link)) = (self.stale, self.links.now()) else { return };
        match timeout(self.links.settings().patience(), link.working.revoke(id)).await {
            Ok(Ok(_)) => self.stale = None,
            Ok(Err(status)) if status.code() == Code::NotFound => self.stale = None,
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Checks repeatedly whether the server is alive, and less often the length of its history. The function never returns.
async fn feel_pulse(links: &Links, keys: &Keys) {
    let mut looked: Option<Instant> = None;
    loop {
        let Some((link, status)) = pulse::beat(links).await else { continue };
        if looked.is_none_or(|looked| looked.elapsed() >= LOOKS_AT_HISTORY_EVERY) {
            looked = Some(Instant::now());
            look_at_history(links, keys, &link, status.header.map_or(0, |header| header.revision)).await;
        }
    }
}

/// Checks whether etcd still keeps changes from long ago.
async fn look_at_history(links: &Links, keys: &Keys, link: &Link, revision: i64) {
    let long_ago = revision - HISTORY;
    if long_ago <= 0 {
        return links.keeps_history(false);
    }
    let key = keys.full(LIVE);
    let request = RangeRequest { range_end: end(&key), key, limit: 1, revision: long_ago, keys_only: true };
    match links.attempt(link, links.settings().limit(), link.working.range(request)).await {
        Ok(_) => links.keeps_history(true),
        Err(Failure::Refused(status)) if status.code() == Code::OutOfRange => links.keeps_history(false),
        // After a failed call, the driver does not know whether etcd keeps these changes.
        Err(Failure::Refused(_) | Failure::Broken(_)) => {}
    }
}
