//! An etcd cluster in a separate namespace, and drivers that use the cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use balancer_etcd::{Engine, Settings};
use balancer_fleet::engine::{Answer, Condition, Entry, News, Request, Revision, Ticket, Write};
use balancer_testkit::{
    etcd::{EtcdCluster, Options},
    namespace::{Namespace, run},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// The time limit of every step, for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

pub(crate) struct Lab {
    pub(crate) namespace: Namespace,
    pub(crate) cluster: EtcdCluster,
    runtime: Option<Runtime>,
}

impl Lab {
    pub(crate) fn new(members: u8) -> Self {
        Self::with(members, &Options::default())
    }

    /// Starts an etcd cluster, and moves the calling thread into the namespace of the cluster.
    pub(crate) fn with(members: u8, options: &Options) -> Self {
        let namespace = Namespace::new("etcd").unwrap();
        let places: Vec<_> = (0..members).map(|index| (&namespace, address(index))).collect();
        let cluster = EtcdCluster::start(&places, options).unwrap();
        namespace.enter().unwrap();
        Self { namespace, cluster, runtime: None }
    }

    /// Makes drivers run only in the calling thread: while the thread does other work, the drivers stand still.
    pub(crate) fn standing_still(mut self) -> Self {
        self.runtime = Some(Builder::new_current_thread().enable_all().build().unwrap());
        self
    }

    pub(crate) fn run<T>(&mut self, test: impl AsyncFnOnce(&mut Self) -> T) -> T {
        let runtime = self.runtime.take();
        let runtime =
            runtime.unwrap_or_else(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
        runtime.block_on(test(self))
    }

    pub(crate) fn settings(&self, lease: u64) -> Settings {
        settings(&self.cluster, lease)
    }

    /// Creates a driver, and waits until the driver's session has begun.
    pub(crate) async fn join(&self, lease: u64) -> Driver {
        let mut driver = Driver::new(self.settings(lease));
        driver.joined().await;
        driver
    }

    /// Runs `etcdctl` against one member, and returns the output.
    pub(crate) fn etcdctl(&self, member: u8, arguments: &[&str]) -> String {
        run(self.cluster.client(&self.namespace, address(member)).args(arguments)).unwrap()
    }

    pub(crate) fn start_member(&mut self, index: u8) {
        self.cluster.start_member(index.into(), &self.namespace).unwrap();
        self.cluster.wait_until_well(&self.namespace, address(index)).unwrap();
    }
}

pub(crate) fn address(index: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 1 + index).into()
}

pub(crate) struct Driver {
    pub(crate) engine: Engine,
}

impl Driver {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { engine: Engine::start(settings) }
    }

    pub(crate) async fn next(&mut self) -> News {
        match timeout(PATIENCE, self.engine.news.recv()).await {
            Ok(news) => news.unwrap(),
            Err(_) => panic!("no news; {:?}", *self.engine.facts.borrow()),
        }
    }

    pub(crate) async fn joined(&mut self) -> (Revision, Vec<Entry>) {
        match self.next().await {
            News::Joined { revision, entries } => (revision, entries),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the next change that the driver reports.
    pub(crate) async fn changed(&mut self) -> (Revision, Vec<Entry>, Vec<String>) {
        match self.next().await {
            News::Changed { revision, put, deleted } => (revision, put, deleted),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the loss of the driver's session, and skips changes.
    pub(crate) async fn lost(&mut self) -> String {
        loop {
            match self.next().await {
                News::Lost { reason } => return reason,
                News::Changed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn ask(&self, request: impl FnOnce(Ticket) -> Request) -> Ticket {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ticket = Ticket(NEXT.fetch_add(1, Ordering::Relaxed));
        self.engine.requests.send(request(ticket)).unwrap();
        ticket
    }

    /// Sends a request and returns the answer; the function skips changes before the answer.
    pub(crate) async fn answer(&mut self, request: impl FnOnce(Ticket) -> Request) -> Answer {
        let asked = self.ask(request);
        loop {
            match self.next().await {
                News::Answered(ticket, answer) if ticket == asked => return answer,
                News::Changed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn transaction(&mut self, conditions: Vec<Condition>, writes: Vec<Write>) -> Answer {
        self.answer(|ticket| Request::Transaction { ticket, conditions, writes }).await
    }

    /// Sends writes to etcd, which must succeed, and returns the revision of the writes.
    pub(crate) async fn made(&mut self, writes: Vec<Write>) -> Revision {
        match self.transaction(Vec::new(), writes).await {
            Answer::Made(revision) => revision,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn read(&mut self, prefix: &str) -> Vec<Entry> {
        match self.answer(|ticket| Request::Read { ticket, prefix: prefix.to_owned() }).await {
            Answer::Read(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the driver's message about its current failure contains `words`.
    pub(crate) async fn trouble(&mut self, words: &str) {
        let has = |trouble: &Option<String>| trouble.as_ref().is_some_and(|trouble| trouble.contains(words));
        let waiting = timeout(PATIENCE, self.engine.facts.wait_for(|facts| has(&facts.trouble)));
        if waiting.await.is_err() {
            panic!("not {words:?}, but {:?}", self.engine.facts.borrow().trouble);
        }
    }
}

pub(crate) fn put(key: &str, value: impl Into<Vec<u8>>) -> Write {
    Write::Put { key: key.to_owned(), value: value.into(), leased: false }
}

pub(crate) fn put_leased(key: &str) -> Write {
    Write::Put { key: key.to_owned(), value: b"here".to_vec(), leased: true }
}

pub(crate) fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

/// Returns the settings of a driver that may use all members of the cluster; `lease` is in seconds.
pub(crate) fn settings(cluster: &EtcdCluster, lease: u64) -> Settings {
    Settings {
        prefix: balancer_etcd::prefix_of("site1"),
        endpoints: cluster.endpoints(),
        ca: None,
        cert: None,
        key: None,
        lease: Duration::from_secs(lease),
    }
}
