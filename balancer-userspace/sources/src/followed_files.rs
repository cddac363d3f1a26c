//! Reads the files that services name, once at the start and again after each change of a file.
//!
//! The task checks each file twice a second. Inode, size and times of a file reveal changes to the contents, and reveal
//! that a rename has replaced the file. The checks also work if a directory is replaced, or if a file system is mounted
//! over a directory.
//!
//! The task reads a changed file when two checks in a row find the same version, because a program that writes a file in
//! place first empties the file: for a moment, a list of denied prefixes would deny nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_config::{config::ServiceConfig, file::Finding, validate::Valid};
use balancer_runtime::file_version::{Version, version};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::error;

use crate::source_read::{SourceRead, SourceReads};

/// The interval between two checks of a file.
const LOOK: Duration = Duration::from_millis(500);
/// The number of checks that may find a new version each, before the task reads a file that changes all the time.
const MOST_WAITS: u8 = 5;

/// The contents of a file, or the reason why the contents cannot be used.
type Read<T> = Result<Arc<T>, String>;

/// The contents of one kind of file.
pub trait Followed: Sized + Send + Sync + 'static {
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
    fn told(file: PathBuf, read: Read<Self>) -> SourceRead;
}

/// The files that services name, with their contents.
#[derive(Debug)]
pub struct Files<T>(BTreeMap<PathBuf, (Version, Read<T>)>);

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
    pub async fn of(services: &Valid) -> Self {
        let files: BTreeSet<PathBuf> =
            services.iter().flat_map(|service| T::named_by(service)).map(Path::to_owned).collect();
        if files.is_empty() {
            return Self::default();
        }
        let read = spawn_blocking(move || files.into_iter().map(|file| (file.clone(), read(&file))).collect());
        Self(read.await.unwrap_or_default())
    }

    /// All files, each with its contents or the reason why the contents cannot be used.
    pub fn all(&self) -> impl Iterator<Item = (PathBuf, Read<T>)> {
        self.0.iter().map(|(file, (_, read))| (file.clone(), read.clone()))
    }

    /// The contents of a file, if the task has read it without an error.
    pub fn contents(&self, file: &Path) -> Option<&T> {
        Some(self.0.get(file)?.1.as_ref().ok()?)
    }
}

/// The versions of a file that the task has found.
#[derive(Clone, Copy)]
struct Versions {
    /// The version that the task has read.
    read: Version,
    /// The version that the last check found.
    last: Version,
    /// The number of checks in a row that found a new version each.
    waits: u8,
}

impl Versions {
    const fn of_read(version: Version) -> Self {
        Self { read: version, last: version, waits: 0 }
    }

    /// Notes the version that a check has found, and returns whether to read the file.
    fn found(&mut self, version: Version) -> bool {
        let waits = if version == self.last { 0 } else { self.waits + 1 };
        (self.last, self.waits) = (version, waits);
        version != self.read && (waits == 0 || waits >= MOST_WAITS)
    }
}

/// The versions of all followed files, and the contents of those that a check has read.
type Looked<T> = (BTreeMap<PathBuf, Versions>, Vec<(PathBuf, Read<T>)>);

/// Reads each of the `wanted` files that is new or has changed, and reports the contents to the owner.
pub async fn follow<T: Followed>(files: Files<T>, mut wanted: watch::Receiver<BTreeSet<PathBuf>>, reads: SourceReads) {
    let mut versions: BTreeMap<PathBuf, Versions> =
        files.0.into_iter().map(|(file, (version, _))| (file, Versions::of_read(version))).collect();
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
        let (now, news) = match spawn_blocking(move || look::<T>(files, before)).await {
            Ok(looked) => looked,
            Err(failed) => {
                error!("reading {} failed: {failed}", T::WHAT);
                continue;
            }
        };
        versions = now;
        for (file, read) in news {
            if reads.send(T::told(file, read)).await.is_err() {
                return;
            }
        }
    }
}

/// Checks all `files`, and reads those that are new or have changed. Returns the versions, and the contents of each file
/// that the function has read.
fn look<T: Followed>(files: BTreeSet<PathBuf>, mut versions: BTreeMap<PathBuf, Versions>) -> Looked<T> {
    let mut news = Vec::new();
    for file in files {
        if versions.get_mut(&file).is_some_and(|versions| !versions.found(version(&file))) {
            continue;
        }
        let (version, read) = read(&file);
        versions.insert(file.clone(), Versions::of_read(version));
        news.push((file, read));
    }
    (versions, news)
}

/// Reads a file and determines its version. The function determines the version before the read, so that a write in
/// between causes another read.
fn read<T: Followed>(file: &Path) -> (Version, Read<T>) {
    let version = version(file);
    (version, T::load(file).map(Arc::new).map_err(|finding| finding.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(size: u64) -> Version {
        Some((1, 2, size, [0; 4]))
    }

    #[test]
    fn when_a_file_is_emptied_and_then_written_then_only_the_written_file_is_read() {
        let mut file = Versions::of_read(version(9));
        assert!(!file.found(version(9)), "the file has not changed");
        assert!(!file.found(version(0)), "a program has just emptied the file");
        assert!(!file.found(version(7)), "a program has just written the file");
        assert!(file.found(version(7)));
    }

    #[test]
    fn when_a_file_is_removed_and_made_again_then_only_a_lasting_removal_is_read() {
        let mut file = Versions::of_read(version(9));
        assert!(!file.found(None));
        assert!(!file.found(version(9)), "the same version is back");
        assert!(!file.found(version(9)));
        assert!(!file.found(None));
        assert!(file.found(None), "the file is gone");
    }

    #[test]
    fn when_a_file_changes_at_each_check_then_the_file_is_read_all_the_same() {
        let mut file = Versions::of_read(version(0));
        let reads: Vec<u64> = (1..=10).filter(|size| file.found(version(*size))).collect();
        assert_eq!(reads.first(), Some(&u64::from(MOST_WAITS)));
    }
}
