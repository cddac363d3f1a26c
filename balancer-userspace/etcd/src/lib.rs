//! The engine of a fleet: a driver of etcd, version 3.4 or newer, with the properties of [`balancer_fleet::engine`].
//!
//! The driver stays connected to one of the endpoints by two connections: one for the watch and the lease, the other
//! for answers that may be large. A watch does not notice a server that dies silently. Therefore the driver asks the
//! server for its status on the same connection, and notices a silent server within a third of the lease, or half a
//! second. Then another endpoint takes its place. The session continues as long as the lease is certain and the history
//! of changes is complete. [`follow`] reads the keys of others in the same way, without a lease.

mod calls;
mod changes;
mod copy;
mod facts;
mod handle;
mod keys;
mod lease;
mod link;
mod links;
mod message;
mod persist;
mod pulse;
mod session;
mod tls;
mod tree;
mod words;
mod work;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

pub use facts::{Facts, Traffic};
pub use handle::{Newsfeed, Requests, Unsent};
pub use tree::{Tree, follow};

use keys::Keys;
use links::Links;
use persist::{Persistent, persist};
use session::Sessions;

/// The time to wait after a fault in the driver, because the next session may meet the same fault.
const AFTER_A_PANIC: Duration = Duration::from_secs(2);

/// The engine's endpoints and credentials, and how the driver uses the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The beginning of all keys that the driver reads or writes: [`prefix_of`] a fleet.
    pub prefix: String,
    /// URLs, `http` or `https`; the driver uses one at a time. The default port is 2379.
    pub endpoints: Vec<String>,
    /// A PEM file with the certificates that have signed the servers' certificates; `None`: the system's roots. The
    /// driver reads this file and the next two again for every connection, and only for `https`.
    pub ca: Option<PathBuf>,
    /// The client's certificate, a file in PEM, with `key`.
    pub cert: Option<PathBuf>,
    /// The private key of `cert`, a file in PEM.
    pub key: Option<PathBuf>,
    /// How long leased keys remain after this process has fallen silent, rounded up to seconds; etcd's minimum is 2 s
    /// unless its election timeout differs.
    pub lease: Duration,
}

/// The beginning of all keys of a fleet.
#[must_use]
pub fn prefix_of(fleet: &str) -> String {
    format!("/balancer/{fleet}/")
}

impl Settings {
    /// How long a server may be silent, or take to connect, before the driver tries another one.
    fn patience(&self) -> Duration {
        (self.lease / 3).max(Duration::from_millis(500))
    }

    /// The time limit of a transaction. A server without a leader loses requests and reports that only after 7 s; an
    /// election takes 1 to 2 s.
    fn transaction_limit(&self) -> Duration {
        self.patience().max(Duration::from_secs(2)).min(self.limit())
    }

    /// The time limit of any request. etcd itself gives up after 7 s.
    fn limit(&self) -> Duration {
        self.lease.clamp(Duration::from_secs(1), Duration::from_secs(7))
    }
}

/// A running driver. It stops when the caller drops `news` or every clone of `requests`. It then revokes the lease if
/// it can reach a server.
#[derive(Debug)]
pub struct Engine {
    /// Sends requests to the driver.
    pub requests: Requests,
    /// Receives news from the driver.
    pub news: Newsfeed,
    /// The current facts about the engine.
    pub facts: watch::Receiver<Facts>,
    /// Counts the bytes sent and received.
    pub traffic: Arc<Traffic>,
    /// Resolves when the driver has stopped.
    ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts a driver on the current tokio runtime. The driver tries for ever; if it does not succeed, `facts` has the
    /// reason.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (this, work) = Self::new(settings);
        tokio::spawn(work);
        this
    }

    /// Returns a driver and its future, which the caller has to poll. The future ends only when the driver is stopped.
    /// A fault in it ends only the session.
    pub fn new(settings: Settings) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (requests, asked, sender, news) = handle::queues();
        let traffic = Arc::<Traffic>::default();
        let (facts, watched) = watch::channel(Facts::default());
        let keys = Keys::new(&settings.prefix);
        let links = Links::new(settings, facts, Arc::clone(&traffic));
        let (ends, ended) = oneshot::channel::<()>();
        let work = async move {
            persist(&mut Sessions { links: &links, keys, news: sender, requests: asked, stale: None }).await;
            drop(ends);
        };
        (Self { requests, news, facts: watched, traffic, ended }, work)
    }

    /// Ends the session, revokes the lease, and waits until that is done.
    pub async fn stop(self) {
        drop(self.news);
        // An error means that the other end is gone: the driver has stopped.
        let _ = self.ended.await;
    }
}

impl Persistent for Sessions<'_> {
    async fn work(&mut self) {
        tokio::select! {
            () = self.links.keep() => {}
            () = self.run() => {}
        }
    }

    async fn clean_up(&mut self, panic: String) {
        self.give_up(panic).await;
        sleep(AFTER_A_PANIC).await;
    }
}
