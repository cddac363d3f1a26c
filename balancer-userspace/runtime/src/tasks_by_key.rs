//! Runs one task for each entry of a changing map, so that an entry whose task hangs delays no other entry.

use std::collections::{BTreeMap, btree_map::Entry};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// Runs a task for each `wanted` key. The function ends the task of a key that is no longer wanted, and replaces the
/// task of a key that has another value. The function returns when the sender is dropped.
pub async fn follow<K, V, F>(mut wanted: watch::Receiver<BTreeMap<K, V>>, begin: impl Fn(K, V) -> F)
where
    K: Ord + Clone,
    V: PartialEq + Clone,
    F: Future<Output = ()> + Send + 'static,
{
    let (mut running, mut tasks) = (JoinSet::new(), BTreeMap::<K, (V, AbortHandle)>::new());
    loop {
        let entries = wanted.borrow_and_update().clone();
        tasks.retain(|key, (value, task)| {
            let stays = entries.get(key) == Some(value);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, value) in entries {
            if let Entry::Vacant(place) = tasks.entry(key) {
                let task = running.spawn(begin(place.key().clone(), value.clone()));
                place.insert((value, task));
            }
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(_) = running.join_next() => {}
        }
    }
}

/// Publishes the `wanted` value on the channel, if the value has changed.
pub fn want<T: PartialEq>(told: &watch::Sender<T>, wanted: T) {
    told.send_if_modified(|before| {
        let is_news = *before != wanted;
        *before = wanted;
        is_news
    });
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn when_the_wanted_entries_change_then_only_the_tasks_of_these_change() {
        let (want, wanted) = watch::channel(BTreeMap::from([("a", 1), ("b", 1)]));
        let (told, mut events) = mpsc::unbounded_channel();
        let begin = move |key: &'static str, value: i32| {
            /// Notifies the test when a task ends.
            struct Ends(mpsc::UnboundedSender<String>, String);
            impl Drop for Ends {
                fn drop(&mut self) {
                    let _ = self.0.send(format!("{} ends", self.1));
                }
            }
            let ends = Ends(told.clone(), format!("{key}{value}"));
            let told = told.clone();
            async move {
                let _ = told.send(ends.1.clone());
                let _ends = ends;
                pending().await
            }
        };
        let following = tokio::spawn(follow(wanted, begin));
        let mut next = async |count: usize| {
            let mut said = Vec::new();
            for _ in 0..count {
                said.push(events.recv().await.unwrap());
            }
            said.sort();
            said
        };
        assert_eq!(next(2).await, ["a1", "b1"]);
        want.send(BTreeMap::from([("a", 1), ("b", 2), ("c", 1)])).unwrap();
        assert_eq!(next(3).await, ["b1 ends", "b2", "c1"]);
        want.send(BTreeMap::from([("c", 1)])).unwrap();
        assert_eq!(next(2).await, ["a1 ends", "b2 ends"]);
        drop(want);
        following.await.unwrap();
        assert_eq!(next(1).await, ["c1 ends"]);
    }
}
