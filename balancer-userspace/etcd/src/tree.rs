//! Follows the keys below a prefix that may belong to other programs. The follower needs no lease and writes nothing.

use std::{collections::BTreeMap, time::Duration};

use balancer_fleet::engine::News;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    AFTER_A_PANIC, Settings,
    changes::Changes,
    copy::{self, Copy},
    facts::Facts,
    handle::{self, NewsReceiver},
    keys::Keys,
    links::Links,
    persist::{Persistent, persist},
    pulse,
};

/// The time to wait after etcd has refused to return the keys.
const AFTER_A_REFUSAL: Duration = Duration::from_secs(10);

/// The time for which the follower collects changes before it passes them on together.
const BATCH: Duration = Duration::from_millis(50);

/// The keys below a prefix with their values; the keys lack the prefix.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// Sends all keys below `settings.prefix`, at first and after each change, or the reason why the keys are unknown. The
/// function returns when the receiver is dropped.
pub async fn follow(settings: Settings, told: mpsc::Sender<Result<Tree, String>>) {
    let (facts, watched) = watch::channel(Facts::default());
    let keys = Keys::new(&settings.prefix);
    let links = Links::new(settings, facts, Default::default());
    persist(&mut Follower { links: &links, keys, facts: watched, told: &told }).await;
}

struct Follower<'a> {
    links: &'a Links,
    keys: Keys,
    facts: watch::Receiver<Facts>,
    told: &'a mpsc::Sender<Result<Tree, String>>,
}

/// The error that the receiver of the tree was dropped.
struct Unwanted;

impl Persistent for Follower<'_> {
    async fn work(&mut self) {
        tokio::select! {
            () = self.links.keep() => {}
            () = self.feel_pulse() => {}
            Unwanted = self.run() => {}
            () = self.told.closed() => {}
        }
    }

    async fn clean_up(&mut self, panic: String) {
        let reason = format!("a fault in the driver of etcd: {panic}");
        if let Some(link) = self.links.now() {
            self.links.broken(&link, &reason);
        }
        // Sending fails if the receiver was dropped, in which case the follower is about to stop.
        let _ = self.told.send(Err(reason)).await;
        sleep(AFTER_A_PANIC).await;
    }
}

impl Follower<'_> {
    /// Checks repeatedly whether the server is alive. The function never returns.
    async fn feel_pulse(&self) {
        loop {
            pulse::beat(self.links).await;
        }
    }

    async fn run(&self) -> Unwanted {
        loop {
            if let Err(unwanted) = self.read_and_follow().await {
                return unwanted;
            }
            self.links.expect(0);
        }
    }

    /// Reads the tree and passes on changes of the tree, until the follower may have missed changes.
    async fn read_and_follow(&self) -> Result<(), Unwanted> {
        let skipped = self.skipped();
        let copy = match self.read().await? {
            Ok(copy) => copy,
            Err(refusal) => {
                self.tell(Err(refusal)).await?;
                sleep(AFTER_A_REFUSAL).await;
                return Ok(());
            }
        };
        self.links.proved();
        let (news, mut changed) = handle::news();
        let changes = Changes::after(copy.revision, &copy.entries, (self.links, &self.keys, "", &news));
        let mut tree: Tree = copy.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        let now_skipped = self.skipped();
        self.tell_valid(&tree, now_skipped > skipped).await?;
        let mut following = std::pin::pin!(changes.follow());
        loop {
            let missed = tokio::select! {
                biased;
                why = &mut following => why,
                Some(news) = changed.recv() => {
                    apply(&mut tree, news);
                    let missed = collect(&mut tree, &mut changed, &mut following).await;
                    self.tell_valid(&tree, now_skipped > skipped).await?;
                    let Some(missed) = missed else { continue };
                    missed
                }
                () = self.skips_more(now_skipped) => "a key or value cannot be passed on".to_owned(),
                why = self.is_lost() => return self.tell(Err(why)).await,
            };
            tracing::debug!(prefix = self.links.settings().prefix, "etcd: reading all keys again: {missed}");
            return Ok(());
        }
    }

    /// Reads the tree from etcd. If no server can be reached in the meantime, the function reports an error.
    async fn read(&self) -> Result<Result<Copy, String>, Unwanted> {
        let reading = async {
            let link = self.links.link().await;
            self.links.expect(link.cluster);
            copy::read(self.links, &self.keys, "", self.links.settings().limit()).await
        };
        let mut reading = std::pin::pin!(reading);
        loop {
            tokio::select! {
                copy = &mut reading => return Ok(copy),
                why = self.is_lost() => self.tell(Err(why)).await?,
            }
        }
    }

    /// Waits until no server has been in use for some time, and returns the reason.
    async fn is_lost(&self) -> String {
        let mut facts = self.facts.clone();
        let limit = self.links.settings().limit();
        loop {
            // The wait cannot fail, because the sender lives as long as `self.links`.
            let _ = facts.wait_for(|facts| !facts.reachable).await;
            if timeout(limit, facts.wait_for(|facts| facts.reachable)).await.is_err() {
                let trouble = facts.borrow().trouble.clone();
                return trouble.unwrap_or_else(|| crate::link::no_answer(limit));
            }
        }
    }

    fn skipped(&self) -> u64 {
        self.facts.borrow().skipped
    }

    /// Waits until the driver has skipped another key or value.
    async fn skips_more(&self, than: u64) {
        // The wait cannot fail, because the sender lives as long as `self.links`.
        let _ = self.facts.clone().wait_for(|facts| facts.skipped > than).await;
    }

    /// Sends the tree; if some keys or values could not be read, sends the reason instead.
    async fn tell_valid(&self, tree: &Tree, is_cut: bool) -> Result<(), Unwanted> {
        let cut = "has keys that are not UTF-8, or values that are too long";
        self.tell(if is_cut { Err(cut.to_owned()) } else { Ok(tree.clone()) }).await
    }

    async fn tell(&self, tree: Result<Tree, String>) -> Result<(), Unwanted> {
        self.told.send(tree).await.map_err(|_| Unwanted)
    }
}

fn apply(tree: &mut Tree, news: News) {
    if let News::Changed { put, deleted, .. } = news {
        deleted.iter().for_each(|key| drop(tree.remove(key)));
        tree.extend(put.into_iter().map(|entry| (entry.key, entry.value)));
    }
}

/// Applies to the tree the changes that arrive within [`BATCH`]. The function returns the reason if `following` has
/// ended.
async fn collect(
    tree: &mut Tree,
    changed: &mut NewsReceiver,
    following: &mut (impl Future<Output = String> + Unpin),
) -> Option<String> {
    let all = async {
        while let Some(news) = changed.recv().await {
            apply(tree, news);
        }
    };
    tokio::select! {
        _ = timeout(BATCH, all) => None,
        missed = following => Some(missed),
    }
}
