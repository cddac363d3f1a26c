//! Reads the files that services name, once at the start and again after each change of a file.
//!
//! The task checks each file every second. Inode, size and times of a file reveal changes to the contents, and reveal
//! that a rename has replaced the file. The checks also work if a directory is replaced, or if a file system is mounted
//! over a directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_config::{config::ServiceConfig, file::Finding, validate::Valid};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::error;

use crate::call::{Call, Calls};

/// The interval between two checks of a file.
const LOOK: Duration = Duration::from_secs(1);

/// The metadata by which the task distinguishes versions of a file; `None` if the metadata cannot be read.
pub(crate) type Version = Option<(u64, u64, u64, [i64; 4])>;

/// The contents of a file, or the reason why the contents cannot be used.
type Read<T> = Result<Arc<T>, String>;

/// The contents of one kind of file.
pub(crate) trait Followed: Sized + Send + Sync + 'static {
    /// The name of files of this kind in the log, in the plural.
    const WHAT: &str;

    /// The files of this kind that a service names.
    fn named_by(service: &ServiceConfig) -> impl Iterator<Item = &Path>;

    /// Reads and parses a file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if the contents are invalid.
    fn load(file: &Path) -> Result<Self, Finding>;

    /// Makes the message that reports the contents of a file.
    fn told(file: PathBuf, read: Read<Self>) -> Call;
}

/// The files that services name, with their contents.
#[derive(Debug)]
pub(crate) struct Files<T>(BTreeMap<PathBuf, (Version, Read<T>)>);

impl<T> Default for Files<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Clone for Files<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Followed> Files<T> {
    /// Reads the files that `services` name.
    pub(crate) async fn of(services: &Valid) -> Self {
        let files: BTreeSet<PathBuf> =
            services.iter().flat_map(|service| T::named_by(service)).map(Path::to_owned).collect();
        if files.is_empty() {
            return Self::default();
        }
        let read = spawn_blocking(move || files.into_iter().map(|file| (file.clone(), read(&file))).collect());
        Self(read.await.unwrap_or_default())
    }

    /// All files, each with its contents or the reason why the contents cannot be used.
    pub(crate) fn all(&self) -> impl Iterator<Item = (PathBuf, Read<T>)> {
        self.0.iter().map(|(file, (_, read))| (file.clone(), read.clone()))
    }

    /// The contents of a file, if the task has read it without an error.
    pub(crate) fn contents(&self, file: &Path) -> Option<&T> {
        Some(self.0.get(file)?.1.as_ref().ok()?)
    }
}

/// Reads each of the `wanted` files that is new or has changed, and reports the contents to the owner.
pub(crate) async fn follow<T: Followed>(files: Files<T>, mut wanted: watch::Receiver<BTreeSet<PathBuf>>, calls: Calls) {
    let mut versions: BTreeMap<PathBuf, Version> =
        files.0.into_iter().map(|(file, (version, _))| (file, version)).collect();
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
            files
                .into_iter()
                .filter(is_news)
                .map(|file| (file.clone(), read(&file)))
                .collect::<Vec<(_, (_, Read<T>))>>()
        });
        let news = match news.await {
            Ok(news) => news,
            Err(failed) => {
                error!("reading {} failed: {failed}", T::WHAT);
                continue;
            }
        };
        for (file, (version, read)) in news {
            versions.insert(file.clone(), version);
            if calls.send(T::told(file, read)).await.is_err() {
                return;
            }
        }
    }
}

/// Reads a file and determines its version. The function determines the version before the read, so that a write in
/// between causes another read.
fn read<T: Followed>(file: &Path) -> (Version, Read<T>) {
    let version = version(file);
    (version, T::load(file).map(Arc::new).map_err(|finding| finding.to_string()))
}

/// The current version of a file.
pub(crate) fn version(file: &Path) -> Version {
    let of = fs::metadata(file).ok()?;
    Some((of.dev(), of.ino(), of.size(), [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]))
}
