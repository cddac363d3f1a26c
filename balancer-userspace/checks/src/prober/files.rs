//! Small files that checks need, such as certificates. The prober reads each file once for all checks, and rereads it
//! when it changes.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use balancer_config::file::contents;
use balancer_runtime::file_version::{Version, version};
use tokio::{task::spawn_blocking, time::Instant};

/// The time after which the prober checks again whether a file has changed.
const LOOK: Duration = Duration::from_secs(1);
/// The maximum size of a file, in MiB.
const LARGEST: u64 = 1;

/// A function that parses the bytes of a file; its error continues a sentence that begins with the file's name.
type Parse<T> = fn(Vec<u8>) -> Result<T, String>;

/// The files of one kind that checks currently need.
pub(super) struct NeededFiles<T> {
    parse: Parse<T>,
    files: Mutex<BTreeMap<PathBuf, Weak<WatchedFile<T>>>>,
}

impl<T: Clone + Send + Sync + 'static> NeededFiles<T> {
    pub(super) const fn new(parse: Parse<T>) -> Self {
        Self { parse, files: Mutex::new(BTreeMap::new()) }
    }

    /// Returns the file at `path`, which stays on the shelf as long as a check uses it.
    pub(super) fn file(&self, path: &Path) -> Arc<WatchedFile<T>> {
        // The data is consistent even if the lock is poisoned, because no thread panics while it changes the data.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(path).and_then(Weak::upgrade) {
            return file;
        }
        files.retain(|_, file| file.strong_count() > 0);
        let known = Known { looked: None, version: None, contents: Err(String::new()) };
        let file = Arc::new(WatchedFile {
            path: path.to_owned(),
            parse: self.parse,
            known: Arc::new(tokio::sync::Mutex::new(known)),
        });
        files.insert(path.to_owned(), Arc::downgrade(&file));
        file
    }
}

/// A file that the prober watches for changes.
pub(super) struct WatchedFile<T> {
    path: PathBuf,
    parse: Parse<T>,
    known: Arc<tokio::sync::Mutex<Known<T>>>,
}

struct Known<T> {
    looked: Option<Instant>,
    version: Version,
    contents: Result<T, String>,
}

impl<T: Clone + Send + Sync + 'static> WatchedFile<T> {
    /// Returns the contents of the file, which were up to date at most one second ago.
    ///
    /// # Errors
    /// Fails with the name of the file, and the reason why its contents are not usable.
    pub(super) async fn contents(&self) -> io::Result<T> {
        let mut known = Arc::clone(&self.known).lock_owned().await;
        if known.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            let (path, parse) = (self.path.clone(), self.parse);
            // The read continues even if the caller no longer waits, so an unresponsive file system blocks only one
            // thread.
            let look = spawn_blocking(move || {
                known.look(&path, parse);
                known
            });
            known = look.await.map_err(io::Error::other)?;
        }
        known.contents.clone().map_err(|why| io::Error::other(format!("{} {why}", self.path.display())))
    }
}

impl<T> Known<T> {
    /// Reads the file if its version has changed, or if the file has not been read yet.
    fn look(&mut self, path: &Path, parse: Parse<T>) {
        // The file version is determined before the read, so that a write in between causes another read.
        let version = version(path);
        if self.contents.is_err() || version != self.version {
            self.contents = contents::read(path, LARGEST).and_then(parse);
        }
        (self.version, self.looked) = (version, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    static PARSED: AtomicU32 = AtomicU32::new(0);

    fn parse(bytes: Vec<u8>) -> Result<String, String> {
        PARSED.fetch_add(1, Ordering::SeqCst);
        String::from_utf8(bytes).map_err(|_| "is no text".to_owned())
    }

    /// One test contains all cases, because the test counts how often files are parsed.
    #[tokio::test]
    async fn when_a_file_changes_then_it_is_read_again_once_for_all() {
        static SHELF: NeededFiles<String> = NeededFiles::new(parse);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let (one, other) = (SHELF.file(&path), SHELF.file(&path));
        assert!(Arc::ptr_eq(&one, &other));
        let why = one.contents().await.unwrap_err().to_string();
        assert!(why.starts_with(&format!("{} cannot be read: No such file", path.display())), "{why}");

        tokio::time::pause();
        fs::write(&path, "first").unwrap();
        tokio::time::advance(LOOK).await;
        for file in [&one, &other, &one] {
            assert_eq!(file.contents().await.unwrap(), "first");
        }
        tokio::time::advance(LOOK).await;
        assert_eq!(one.contents().await.unwrap(), "first");
        assert_eq!(PARSED.load(Ordering::SeqCst), 1, "it did not change");

        let new = directory.path().join("new");
        fs::write(&new, "other").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(one.contents().await.unwrap(), "first", "it was looked at just now");
        tokio::time::advance(LOOK).await;
        assert_eq!(other.contents().await.unwrap(), "other");

        fs::write(&path, b"\xff").unwrap();
        tokio::time::advance(LOOK).await;
        assert!(one.contents().await.unwrap_err().to_string().ends_with("token is no text"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        tokio::time::advance(LOOK).await;
        assert!(one.contents().await.unwrap_err().to_string().ends_with("it is not a regular file"));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, vec![b'a'; ((LARGEST as usize) << 20) + 1]).unwrap();
        tokio::time::advance(LOOK).await;
        assert!(one.contents().await.unwrap_err().to_string().contains("token is larger than 1 MiB"));

        drop((one, other));
        assert!(SHELF.file(&directory.path().join("new")).contents().await.is_err());
        assert_eq!(SHELF.files.lock().unwrap().len(), 1, "nobody needs the first any more");
    }
}
