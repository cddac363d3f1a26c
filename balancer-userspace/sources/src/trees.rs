//! Lists of targets that are in keys of etcd. The balancer uses separate connections for each list, so that
//! unresponsive servers delay no other list.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use balancer_config::{
    discover::{Source, Target},
    etcd::{self, EtcdSource},
};
use balancer_etcd::Tree;
use balancer_runtime::tasks_by_key;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    etcd_settings::settings,
    source_read::{ListRead, SourceRead, SourceReads},
};

/// The lease time that determines how long a server may be silent: a third of this time. If no server responds, the
/// balancer reports the failure after 7 s.
const LEASE: Duration = Duration::from_secs(10);

/// The lists in etcd that services name.
pub(crate) type Trees = BTreeMap<EtcdSource, ()>;

/// Reads all lists once, and returns those that arrive within `patience`.
pub(crate) async fn first(sources: Trees, patience: Duration) -> Vec<(EtcdSource, Arc<Vec<Target>>)> {
    let mut reading = JoinSet::new();
    for (source, ()) in sources {
        reading.spawn(async move {
            let (told, mut trees) = mpsc::channel(1);
            let tree = tokio::select! {
                tree = trees.recv() => tree,
                () = read(&source, told) => None,
            };
            let list = tree.map(|tree| list(&source, tree));
            (source, list)
        });
    }
    let (deadline, mut lists) = (Instant::now() + patience, Vec::new());
    while let Ok(Some(done)) = timeout_at(deadline, reading.join_next()).await {
        if let Ok((source, Some(Ok(list)))) = done {
            lists.push((source, list));
        }
    }
    lists
}

/// Reads the `wanted` lists, and reports each list at first and after each change.
pub(crate) async fn follow(wanted: watch::Receiver<Trees>, reads: SourceReads) {
    tasks_by_key::follow(wanted, |source, ()| {
        let reads = reads.clone();
        async move {
            let (told, mut trees) = mpsc::channel(1);
            let telling = async {
                while let Some(tree) = trees.recv().await {
                    let read = SourceRead::List { source: Source::Etcd(source.clone()), read: list(&source, tree) };
                    if reads.send(read).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = read(&source, told) => {}
            }
        }
    })
    .await;
}

/// Sends the keys of a source when they are first read and after each change.
async fn read(source: &EtcdSource, told: mpsc::Sender<Result<Tree, String>>) {
    balancer_etcd::follow(settings(source.prefix.clone(), &source.etcd, LEASE), told).await;
}

fn list(source: &EtcdSource, tree: Result<Tree, String>) -> ListRead {
    let list = tree.and_then(|tree| etcd::targets(&tree));
    list.map(Arc::new).map_err(|why| format!("{source}: {why}"))
}
