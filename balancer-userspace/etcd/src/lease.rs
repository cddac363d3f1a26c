//! The lease of a session, and the time until which the lease has certainly not expired.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    link::{Link, no_answer},
    links::Links,
    words,
};

/// The maximum length of a lease on which the driver relies: it treats longer leases as if they had this length.
const LONGEST: Duration = Duration::from_secs(3600);

/// The reason why etcd did not grant a lease.
#[derive(Debug)]
pub(crate) enum NotGranted {
    /// The request failed, but another server may grant the lease.
    Broken(String),
    /// The server refused to grant the lease.
    Denied(String),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    ttl: Duration,
    /// The time at which the last successful renewal was requested. The lease expires no earlier than `ttl` after this
    /// time.
    asked: Instant,
}

impl Lease {
    pub(crate) async fn grant(links: &Links, link: &Link) -> Result<Self, NotGranted> {
        let settings = links.settings();
        let seconds = settings.lease.as_secs_f64().ceil().max(1.0);
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds of a lease, and the cast saturates")]
        let seconds = seconds as i64;
        let asked = Instant::now();
        let granting = timeout(settings.limit(), link.working.grant(seconds)).await;
        let granted = match granting {
            Ok(Ok(granted)) if granted.error.is_empty() && granted.ttl > 0 => granted,
            Ok(Ok(granted)) => return Err(NotGranted::Broken(format!("etcd grants no lease: {}", granted.error))),
            Ok(Err(status)) if words::is_denial(&status) => return Err(NotGranted::Denied(words::status(&status))),
            Ok(Err(status)) => return Err(NotGranted::Broken(words::status(&status))),
            Err(_) => return Err(NotGranted::Broken(no_answer(settings.limit()))),
        };
        let ttl = Duration::from_secs(granted.ttl.unsigned_abs()).min(LONGEST);
        Ok(Self { id: granted.id, ttl, asked })
    }

    /// Renews the lease until it is lost, and then returns the reason.
    pub(crate) async fn keep(mut self, links: &Links) -> String {
        loop {
            let end = self.asked + self.ttl;
            // If the system stopped this process for a long time, the process notices before a renewal that its lease
            // may have expired.
            let renewing = async {
                sleep_until(self.asked + self.ttl / 3).await;
                self.renew(links).await
            };
            let renewed = tokio::select! {
                biased;
                () = sleep_until(end) => None,
                renewed = renewing => renewed,
            };
            match renewed {
                Some(asked) => self.asked = asked,
                None if Instant::now() >= end => {
                    return format!("the lease is not certain any more: not renewed for {} s", self.ttl.as_secs());
                }
                None => return "the lease has run out".to_owned(),
            }
        }
    }

    /// Requests a renewal from one endpoint after the other. The function returns the time at which the successful
    /// request was sent; `None` if the lease does not exist.
    async fn renew(&self, links: &Links) -> Option<Instant> {
        let patience = links.settings().patience();
        loop {
            let link = links.link().await;
            let asked = Instant::now();
            let why = tokio::select! {
                answer = timeout(patience, link.watching.keep_alive(self.id)) => match answer {
                    Ok(Ok(seconds)) if seconds > 0 => {
                        links.proved();
                        return Some(asked);
                    }
                    Ok(Ok(_)) => return None,
                    Ok(Err(status)) => words::status(&status),
                    Err(_) => no_answer(patience),
                },
                () = links.gone(&link) => continue,
            };
            links.broken(&link, &why);
        }
    }
}
