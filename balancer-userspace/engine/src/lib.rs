//! The engine of a fleet: a driver of etcd, version 3.4 or newer, for what [`balancer_fleet::engine`] relies on.
//!
//! It stays connected to one of the endpoints, by two connections: one for the watch and the lease, the other for what
//! may be large. A watch says nothing of a server that dies without a word. So the server is asked how it is, on the same
//! connection, and its silence is noticed within a third of the lease, or half a second. Then another endpoint takes its
//! place, and the session goes on, as long as the lease is certain and the history of changes whole.

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
mod session;
mod tls;
mod words;
mod work;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

pub use facts::{Facts, Traffic};
pub use handle::{Newsfeed, Requests, Unsent};

use keys::Keys;
use links::Links;
use persist::{Persistent, persist};
use session::Sessions;

/// How long to wait after a fault in the driver, which the next session may run into as well.
const AFTER_A_PANIC: Duration = Duration::from_secs(2);

/// Where the engine is, and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The fleet's name: its keys are below `/balancer/<fleet>/`.
    pub fleet: String,
    /// URLs, `http` or `https`, of which one is used at a time. Port 2379 where none is given.
    pub endpoints: Vec<String>,
    /// Certificates that the servers' are signed by, a file in PEM; `None`: the system's roots. This and the following
    /// two are read anew for every connection, and only for `https`.
    pub ca: Option<PathBuf>,
    /// The client's certificate, a file in PEM, with `key`.
    pub cert: Option<PathBuf>,
    /// The private key of `cert`, a file in PEM.
    pub key: Option<PathBuf>,
    /// How long leased keys stay when nothing is heard of this process. Rounded up to seconds; etcd has a minimum, 2 s
    /// unless its elections are set otherwise.
    pub lease: Duration,
}

impl Settings {
    /// How long a server may be silent, or take to be connected to, before another is tried.
    fn patience(&self) -> Duration {
        (self.lease / 3).max(Duration::from_millis(500))
    }

    /// How long a transaction may take. What a server was asked while it had no leader is lost, and it does not say so
    /// before 7 s have passed: an election takes 1 to 2 s.
    fn transaction_limit(&self) -> Duration {
        self.patience().max(Duration::from_secs(2)).min(self.limit())
    }

    /// How long any request may take. etcd itself gives up after 7 s.
    fn limit(&self) -> Duration {
        self.lease.clamp(Duration::from_secs(1), Duration::from_secs(7))
    }
}

/// A driver at work. It stops when `news` is dropped, or every clone of `requests`: the lease is revoked then, if a
/// server can be told.
#[derive(Debug)]
pub struct Engine {
    /// Where requests go.
    pub requests: Requests,
    /// Where news come from.
    pub news: Newsfeed,
    /// How it is, at any time.
    pub facts: watch::Receiver<Facts>,
    /// Counters of the bytes sent and received.
    pub traffic: Arc<Traffic>,
    /// Ends when the driver has stopped.
    ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts a driver on the current tokio runtime. It tries for ever: what stands in the way is in `facts`.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (this, work) = Self::new(settings);
        tokio::spawn(work);
        this
    }

    /// A driver, and its work, which has to be polled. That ends when the driver is stopped, and at no other time: a fault
    /// in it costs the session.
    pub fn new(settings: Settings) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (requests, asked, sender, news) = handle::queues();
        let traffic = Arc::<Traffic>::default();
        let (facts, watched) = watch::channel(Facts::default());
        let keys = Keys::new(&settings.fleet);
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
        // An error says that the other end is gone, which is the end.
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
