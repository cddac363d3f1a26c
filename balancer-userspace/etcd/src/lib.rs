//! The engine of a fleet: a driver for etcd, version 3.4 or newer, with the properties that [`balancer_fleet::engine`]
//! describes.
//!
//! The driver keeps two connections to one of the endpoints: one connection for the watch and the lease, and another
//! connection for answers that may be large. A watch alone does not notice a server that dies silently. To notice such
//! a server, the driver requests the server's status on the connection of the watch; a server counts as silent after a
//! third of the lease, or half a second. After such a failure, the driver connects to another endpoint. The session
//! continues as long as the lease is certainly valid and the driver has missed no change. [`follow`] reads keys that
//! other programs write, in the same way but without a lease.
//!
//! Begin with `session` (the life of a connection) and `work` (the order of requests); `copy` follows the keys.

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

/// The time for which the driver waits after a fault of its own, because the next session may hit the same fault.
const AFTER_A_PANIC: Duration = Duration::from_secs(2);

/// The engine's endpoints and credentials, and how the driver uses the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The prefix of all keys that the driver reads or writes, [`prefix_of`] a fleet.
    pub prefix: String,
    /// The URLs of the endpoints, with `http` or `https`; the driver uses one endpoint at a time. The default port is
    /// 2379.
    pub endpoints: Vec<String>,
    /// A PEM file with the certificates of the authorities that sign the servers' certificates; `None` if the driver
    /// uses the system's root certificates. The driver rereads `ca`, `cert` and `key` for every connection, and uses
    /// them only with `https`.
    pub ca: Option<PathBuf>,
    /// The PEM file with the client's certificate, which belongs to `key`.
    pub cert: Option<PathBuf>,
    /// The PEM file with the private key of `cert`.
    pub key: Option<PathBuf>,
    /// The time for which leased keys remain after this process has fallen silent, rounded up to seconds; etcd's
    /// minimum is 2 s, unless its election timeout is not the default.
    pub lease: Duration,
}

/// The prefix of all keys of a fleet.
#[must_use]
pub fn prefix_of(fleet: &str) -> String {
    format!("/balancer/{fleet}/")
}

impl Settings {
    /// The time for which a server may be silent, or may take to connect, before the driver tries another server.
    fn patience(&self) -> Duration {
        (self.lease / 3).max(Duration::from_millis(500))
    }

    /// The time limit of a transaction. A server without a leader loses requests and reports this only after 7 s; an
    /// election takes 1 to 2 s.
    fn transaction_limit(&self) -> Duration {
        self.patience().max(Duration::from_secs(2)).min(self.limit())
    }

    /// The time limit of any request. etcd itself gives up a request after 7 s.
    fn limit(&self) -> Duration {
        self.lease.clamp(Duration::from_secs(1), Duration::from_secs(7))
    }
}

/// A running driver. The driver stops when the caller drops `news` or every clone of `requests`. After stopping, the
/// driver revokes the lease if it can reach a server.
#[derive(Debug)]
pub struct Engine {
    /// The sending end for requests to the driver.
    pub requests: Requests,
    /// The receiving end for news from the driver.
    pub news: Newsfeed,
    /// The current facts about the engine.
    pub facts: watch::Receiver<Facts>,
    /// The numbers of bytes sent and received.
    pub traffic: Arc<Traffic>,
    /// The channel that reports when the driver has stopped.
    ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts a driver on the current tokio runtime. The driver never stops trying to connect, and `facts` contains the
    /// reason for the last failure.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (this, work) = Self::new(settings);
        tokio::spawn(work);
        this
    }

    /// Returns an engine and the driver's future, which the caller has to poll. The future ends only when the caller
    /// stops the driver. A fault in the driver ends only the current session.
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

    /// Ends the session, revokes the lease, and waits until the driver has stopped.
    pub async fn stop(self) {
        drop(self.news);
        // An error means that the driver has already stopped.
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
