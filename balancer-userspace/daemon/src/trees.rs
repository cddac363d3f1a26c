//! Lists of targets in keys of etcd. Each is read over connections of its own, so that servers without an answer delay
//! no other list.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use balancer_engine::{Settings, Tree};
use balancer_model::{
    discover::{Source, Target},
    etcd::{self, EtcdSource},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    call::{Call, Calls, ListRead},
    tasks_by_key,
};

/// Determines how long a server may be silent: a third of this, or 7 s without any server until that is reported.
const LEASE: Duration = Duration::from_secs(10);

/// The wanted lists.
pub(crate) type Trees = BTreeMap<EtcdSource, ()>;

/// Reads all lists once, and returns those that arrive within `patience`.
pub(crate) async fn first(trees: Trees, patience: Duration) -> Vec<(EtcdSource, Arc<Vec<Target>>)> {
    let mut reading = JoinSet::new();
    for (source, ()) in trees {
        reading.spawn(async move {
            let (told, mut lists) = mpsc::channel(1);
            let read = read(&source, &told);
            let list = tokio::select! {
                list = lists.recv() => list,
                () = read => None,
            };
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

/// Follows the `wanted` lists, and reports each change.
pub(crate) async fn follow(wanted: watch::Receiver<Trees>, calls: Calls) {
    tasks_by_key::follow(wanted, |source, ()| {
        let calls = calls.clone();
        async move {
            let (told, mut lists) = mpsc::channel(1);
            let telling = async {
                while let Some(read) = lists.recv().await {
                    let call = Call::ListRead { source: Source::Etcd(source.clone()), read };
                    if calls.send(call).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = telling => {}
                () = read(&source, &told) => {}
            }
        }
    })
    .await;
}

/// Sends the list of a source at first, and after each change.
async fn read(source: &EtcdSource, told: &mpsc::Sender<ListRead>) {
    let settings = Settings {
        prefix: source.prefix.clone(),
        endpoints: source.etcd.endpoints.clone(),
        ca: source.etcd.ca.clone(),
        cert: source.etcd.cert.clone(),
        key: source.etcd.key.clone(),
        lease: LEASE,
    };
    let (trees_in, mut trees) = mpsc::channel::<Result<Tree, String>>(1);
    let telling = async {
        while let Some(tree) = trees.recv().await {
            let list = tree.and_then(|tree| etcd::targets(&tree));
            let list = list.map(Arc::new).map_err(|why| format!("{source}: {why}"));
            if told.send(list).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = telling => {}
        () = balancer_engine::follow(settings, trees_in) => {}
    }
}
