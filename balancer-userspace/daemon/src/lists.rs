//! Lists of targets: read at the start, and again when they change.
//!
//! A list is looked at every second, by the same signs as a list of denied prefixes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_model::{discover::Target, file, validate::Valid};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::error;

use crate::{
    call::{Call, Calls, ListRead},
    file_version::{Version, version},
};

/// How often each list is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Lists as they were read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists(BTreeMap<PathBuf, (Version, ListRead)>);

impl Lists {
    /// Reads the lists that services name.
    pub(crate) async fn of(services: &Valid) -> Self {
        let files = services.iter().flat_map(|service| &service.discover).map(|list| list.file.clone());
        let files: BTreeSet<PathBuf> = files.collect();
        if files.is_empty() {
            return Self::default();
        }
        let read = spawn_blocking(move || files.into_iter().map(|file| (file.clone(), read(&file))).collect());
        Self(read.await.unwrap_or_default())
    }

    /// All lists, each with its targets or the reason why it has none.
    pub(crate) fn all(&self) -> impl Iterator<Item = (PathBuf, ListRead)> {
        self.0.iter().map(|(file, (_, read))| (file.clone(), read.clone()))
    }

    /// The targets of one list, if it was read without an error.
    pub(crate) fn targets(&self, file: &Path) -> Option<&[Target]> {
        Some(self.0.get(file)?.1.as_ref().ok()?)
    }
}

/// Reads those of the `wanted` lists that are new or have changed, and tells what they say.
pub(crate) async fn follow(lists: Lists, mut wanted: watch::Receiver<BTreeSet<PathBuf>>, calls: Calls) {
    let mut versions: BTreeMap<PathBuf, Version> =
        lists.0.into_iter().map(|(file, (version, _))| (file, version)).collect();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_busy = !wanted.borrow().is_empty();
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            _ = looks.tick(), if is_busy => {}
        }
        let files = wanted.borrow_and_update().clone();
        versions.retain(|file, _| files.contains(file));
        let before = versions.clone();
        let news = spawn_blocking(move || {
            let is_news = |file: &PathBuf| before.get(file) != Some(&version(file));
            files.into_iter().filter(is_news).map(|file| (file.clone(), read(&file))).collect::<Vec<_>>()
        });
        let news = match news.await {
            Ok(news) => news,
            Err(failed) => {
                error!("reading lists of targets failed: {failed}");
                continue;
            }
        };
        for (file, (version, read)) in news {
            versions.insert(file.clone(), version);
            if calls.send(Call::ListRead { file, read }).await.is_err() {
                return;
            }
        }
    }
}

/// Reads a list. The version is the one before the read, so that a write meanwhile makes another one.
fn read(file: &Path) -> (Version, ListRead) {
    let version = version(file);
    (version, file::discover::load(file).map(Arc::new).map_err(|finding| finding.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::mpsc;

    use super::*;

    async fn told(calls: &mut mpsc::Receiver<Call>) -> Result<usize, String> {
        match calls.recv().await {
            Some(Call::ListRead { read, .. }) => read.map(|list| list.len()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn when_a_list_is_written_renamed_over_or_removed_then_that_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("targets.json");
        fs::write(&file, r#"[{"targets": ["192.0.2.1:80"]}]"#).unwrap();
        let (want, wanted) = watch::channel(BTreeSet::new());
        let (calls_in, mut calls) = mpsc::channel(1);
        let task = tokio::spawn(follow(Lists::default(), wanted, calls_in));
        want.send(BTreeSet::from([file.clone()])).unwrap();
        assert_eq!(told(&mut calls).await, Ok(1));
        let other = directory.path().join("new");
        fs::write(&other, "[\n{\"targets\": [\"192.0.2.1:80\",\n\"web2\"]}]").unwrap();
        fs::rename(&other, &file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("targets.json:3: this target is no address"), "{error}");
        fs::remove_file(&file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("cannot be read"), "{error}");
        fs::write(&file, "[]").unwrap();
        assert_eq!(told(&mut calls).await, Ok(0));
        drop(want);
        task.await.unwrap();
    }
}
