//! The file that keeps the controller's state.
//!
//! ```text
//! state.json            {"balancer_state":1,"checksum":"…","body":{…}}    the CRC-32 is of the version and the body
//! state.json.previous   the one before
//! state.json.lock       locked by the controller that works with them; holds its process id
//! ```
//!
//! A file is written beside, synchronised and renamed, so that there is a whole one at every moment.

mod older;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{DefaultHasher, Hasher as _},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use balancer_core::state::{SavedState, VERSION};
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde_json::value::RawValue;

/// How often counts are written that nothing else has come with.
const COUNTS_EVERY: Duration = Duration::from_secs(300);
/// Largest file read, in bytes; far above what the largest state needs.
const MAX_SIZE: u64 = 256 << 20;

/// A state file that no other controller works with.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Whether what is there may become the previous one.
    good: bool,
    /// What was last written, but for counts, as a number; and when.
    written: Option<(u64, Instant)>,
    _lock: Flock<File>,
}

/// What a state file held.
#[derive(Debug)]
pub enum Loaded {
    /// There is none.
    Nothing,
    /// The state.
    State(Box<SavedState>),
    /// The state before the last one, and why.
    Previous(Box<SavedState>, String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    balancer_state: u32,
    checksum: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Bad {
    #[error("there is none")]
    Missing,
    #[error("version {0}, newer than {VERSION}")]
    Newer(u32),
    #[error("{0}")]
    Broken(String),
}

impl StateFile {
    /// Takes the file at `path` for this process, making its directory where that is missing.
    ///
    /// # Errors
    /// When another controller has it, and where the kernel refuses; the path is named.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot keep the state in {}", path.display());
        if let Some(directory) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("cannot create {} for the state file", directory.display()))?;
        }
        let lock = with_suffix(path, "lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .with_context(cannot)?;
        let mut holder = String::new();
        let read = (&file).take(16).read_to_string(&mut holder);
        let lock = Flock::lock(file.try_clone().with_context(cannot)?, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, error)| {
            if error != nix::errno::Errno::EWOULDBLOCK {
                return anyhow!("{}: cannot lock it: {error}", cannot());
            }
            let pid = holder.trim().parse::<u32>().ok().filter(|_| read.is_ok());
            let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
            anyhow!(
                "another controller{pid} works with the state file {}; stop it first, or give this one another state_file",
                path.display()
            )
        })?;
        let pid = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all_at(pid.as_bytes(), 0)).with_context(cannot)?;
        let this = Self { path: path.to_owned(), good: true, written: None, _lock: lock };
        this.probe().with_context(cannot)?;
        Ok(this)
    }

    /// Whether files can be made beside it.
    fn probe(&self) -> io::Result<()> {
        let new = with_suffix(&self.path, "new");
        create(&new).and_then(|_| fs::remove_file(&new))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state.
    ///
    /// # Errors
    /// When there is one and it cannot be used, nor the one before: what is wrong with them, and the way out.
    pub fn load(&mut self) -> anyhow::Result<Loaded> {
        let previous = with_suffix(&self.path, "previous");
        let (path, before) = (self.path.display(), previous.display());
        let why = match read(&self.path) {
            Ok(state) => return Ok(Loaded::State(Box::new(state))),
            Err(Bad::Missing) => return Ok(Loaded::Nothing),
            Err(Bad::Newer(version)) => bail!(
                "the state file {path} is of version {version}, this controller reads up to {VERSION}: start the newer \
                 balancer again, or move the file away to start with the configuration file alone"
            ),
            Err(Bad::Broken(why)) => why,
        };
        self.good = false;
        let then = match read(&previous) {
            Ok(state) => {
                let date = fs::metadata(&previous)
                    .and_then(|metadata| metadata.modified())
                    .map(|modified| format!(" of {}", humantime::format_rfc3339_seconds(modified)));
                let warning = format!(
                    "the state file {path} cannot be used ({why}): going on from {before}{}; what was changed after \
                     that is lost",
                    date.unwrap_or_default()
                );
                return Ok(Loaded::Previous(Box::new(state), warning));
            }
            Err(Bad::Missing) => "is not there".to_owned(),
            Err(Bad::Newer(version)) => format!("is of version {version}"),
            Err(Bad::Broken(why)) => format!("cannot be used either: {why}"),
        };
        bail!(
            "the state file {path} cannot be used ({why}), and {before} {then}: put a good one in its place, or move \
             both away to start with the configuration file alone, without what was changed at run time"
        )
    }

    /// Replaces the state where it says something else than the file; where only counts are others, every five minutes.
    ///
    /// # Errors
    /// Where the kernel refuses; the file is then as before.
    pub fn refresh(&mut self, state: &SavedState, now: Instant) -> anyhow::Result<()> {
        let digest = digest(state)?;
        if self.written.is_some_and(|(written, at)| written == digest && now < at + COUNTS_EVERY) {
            return Ok(());
        }
        self.save(state)?;
        self.written = Some((digest, now));
        Ok(())
    }

    /// Replaces the state; it is on disk when this returns.
    ///
    /// # Errors
    /// Where the kernel refuses; the file is then as before.
    pub fn save(&mut self, state: &SavedState) -> anyhow::Result<()> {
        self.written = None;
        let cannot = || format!("cannot write the state file {}", self.path.display());
        let text = seal(state).with_context(cannot)?;
        let new = with_suffix(&self.path, "new");
        let mut file = create(&new).with_context(cannot)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)?;
        if self.good {
            let previous = with_suffix(&self.path, "previous");
            keep(&self.path, &previous).with_context(cannot)?;
        }
        fs::rename(&new, &self.path).with_context(cannot)?;
        if let Some(directory) = self.path.parent() {
            File::open(directory).and_then(|directory| directory.sync_all()).with_context(cannot)?;
        }
        self.good = true;
        Ok(())
    }
}

/// A file for its owner alone: it may hold the hash key.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Has `previous` be what is at `path`, which stays.
fn keep(path: &Path, previous: &Path) -> io::Result<()> {
    match fs::remove_file(previous) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match fs::hard_link(path, previous) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not every file system has links.
        Err(_) => fs::copy(path, previous).map(drop),
        Ok(()) => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn checksum(version: u32, body: &str) -> String {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&version.to_le_bytes());
    hasher.update(body.as_bytes());
    format!("{:08x}", hasher.finalize())
}

/// A number for all that a state says but for counts.
fn digest(state: &SavedState) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&serde_json::to_vec(&state.clone().without_counts())?);
    Ok(hasher.finish())
}

fn seal(state: &SavedState) -> anyhow::Result<String> {
    Ok(sealed(state.version, &serde_json::to_string(state)?))
}

/// `body`, which is JSON, as a file.
pub(crate) fn sealed(version: u32, body: &str) -> String {
    let checksum = checksum(version, body);
    format!("{{\"balancer_state\":{version},\"checksum\":\"{checksum}\",\"body\":{body}}}\n")
}

fn read(path: &Path) -> Result<SavedState, Bad> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)) {
        Ok(_) => open_sealed(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Bad::Missing),
        Err(error) => Err(Bad::Broken(format!("it cannot be read: {error}"))),
    }
}

pub(crate) fn open_sealed(bytes: &[u8]) -> Result<SavedState, Bad> {
    let broken = |error: serde_json::Error| Bad::Broken(format!("it is not a state file, or not a whole one: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|_| Bad::Broken("it is not text".to_owned()))?;
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(broken)?;
    if checksum(envelope.balancer_state, envelope.body.get()) != envelope.checksum {
        return Err(Bad::Broken("its checksum is wrong".to_owned()));
    }
    if envelope.balancer_state > VERSION {
        return Err(Bad::Newer(envelope.balancer_state));
    }
    if envelope.balancer_state == VERSION {
        return serde_json::from_str(envelope.body.get()).map_err(broken);
    }
    let mut body = serde_json::from_str(envelope.body.get()).map_err(broken)?;
    older::upgrade(envelope.balancer_state, &mut body);
    serde_json::from_value(body).map_err(broken)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

    use balancer_core::{controller::Controller, state::Clocks};
    use balancer_model::fixture::{KEY, config, now, web};
    use tempfile::TempDir;

    use super::*;

    fn state(generation: u64) -> SavedState {
        let mut controller = Controller::new(config(vec![web()]), KEY);
        let now = now();
        controller.start(now);
        SavedState { generation, ..controller.export(Clocks { now, wall: UNIX_EPOCH }) }
    }

    fn place() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lib/state.json");
        (directory, path)
    }

    fn generation(loaded: &Loaded) -> u64 {
        match loaded {
            Loaded::Nothing => panic!("a silent empty state"),
            Loaded::State(state) => state.generation,
            Loaded::Previous(state, warning) => {
                assert!(warning.contains("is lost") && !warning.contains('\n'), "{warning}");
                state.generation
            }
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_for_its_owner_alone() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        assert!(matches!(file.load().unwrap(), Loaded::Nothing));
        for number in 1..=3 {
            file.save(&state(number)).unwrap();
        }
        assert!(matches!(file.load().unwrap(), Loaded::State(loaded) if *loaded == state(3)));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut names: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["state.json", "state.json.lock", "state.json.previous"]);
    }

    #[test]
    fn counts_alone_are_written_from_time_to_time() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        let (now, mut next) = (now(), state(1));
        let later = now + COUNTS_EVERY / 2;
        file.refresh(&next, now).unwrap();
        let backend = |state: &mut SavedState| {
            let backend = &mut state.services[0].backends[0];
            (backend.known, backend.checks[0]) = (backend.known + 7, backend.checks[0] + 1);
        };
        let saved = |file: &mut StateFile| match file.load().unwrap() {
            Loaded::State(saved) => *saved,
            other @ (Loaded::Nothing | Loaded::Previous(..)) => panic!("{other:?}"),
        };
        backend(&mut next);
        file.refresh(&next, later).unwrap();
        assert_eq!(saved(&mut file), state(1));
        // With something else, at once; and after a while.
        next.generation = 2;
        file.refresh(&next, later).unwrap();
        assert_eq!(saved(&mut file), next);
        backend(&mut next);
        file.refresh(&next, later + COUNTS_EVERY).unwrap();
        assert_eq!(saved(&mut file), next);
        // A change is written, whatever was written before.
        backend(&mut next);
        file.save(&next).unwrap();
        assert_eq!(saved(&mut file), next);
        backend(&mut next);
        file.refresh(&next, later + COUNTS_EVERY).unwrap();
        assert_eq!(saved(&mut file), next);
    }

    #[test]
    fn a_file_cut_or_flipped_anywhere_is_noticed() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        file.save(&state(1)).unwrap();
        file.save(&state(2)).unwrap();
        let good = fs::read(&path).unwrap();
        let previous = with_suffix(&path, "previous");
        let before = fs::read(&previous).unwrap();
        let mut check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            fs::write(&previous, &before).unwrap();
            match file.load().unwrap() {
                // The newline at the end means nothing.
                Loaded::State(loaded) => assert!(*loaded == state(2) && bytes.trim_ascii() == good.trim_ascii()),
                loaded @ (Loaded::Nothing | Loaded::Previous(..)) => assert_eq!(generation(&loaded), 1),
            }
            fs::remove_file(&previous).unwrap();
            if bytes.trim_ascii() != good.trim_ascii() {
                let error = file.load().unwrap_err().to_string();
                assert!(error.contains("state.json") && error.contains("move both away"), "{error}");
            }
        };
        for length in 0..good.len() {
            check(&good[..length]);
        }
        for place in 0..good.len() {
            for flip in [0x01, 0x80] {
                let mut bytes = good.clone();
                bytes[place] ^= flip;
                check(&bytes);
            }
        }
    }

    #[test]
    fn a_broken_file_never_becomes_the_previous_one() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        file.save(&state(1)).unwrap();
        file.save(&state(2)).unwrap();
        fs::write(&path, "{}").unwrap();
        assert_eq!(generation(&file.load().unwrap()), 1);
        file.save(&state(3)).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(generation(&file.load().unwrap()), 1);
    }

    #[test]
    fn a_newer_version_is_refused_whatever_came_before() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        file.save(&state(1)).unwrap();
        file.save(&SavedState { version: VERSION + 1, ..state(2) }).unwrap();
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains("is of version 3, this controller reads up to 2"), "{error}");
    }

    #[test]
    fn a_file_of_version_1_is_read() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        file.save(&state(1)).unwrap();
        // As it was: a service had one address, and a backend the service's port.
        let mut body = serde_json::to_value(state(1)).unwrap();
        body["version"] = 1.into();
        let one = |service: &mut serde_json::Value, backends: Vec<&mut serde_json::Value>| {
            let service = service.as_object_mut().unwrap();
            service.remove("listen");
            service.remove("ports");
            service.insert("address".to_owned(), "198.51.100.10:80".into());
            service.insert("protocol".to_owned(), "tcp".into());
            for backend in backends {
                backend.as_object_mut().unwrap().remove("address6");
                if backend["address"] == "10.0.0.12:0" {
                    backend["address"] = "10.0.0.12:80".into();
                }
            }
        };
        for service in body["file"].as_array_mut().unwrap() {
            let mut backends = service["backends"].take();
            one(service, backends.as_array_mut().unwrap().iter_mut().collect());
            service["backends"] = backends;
        }
        for service in body["services"].as_array_mut().unwrap() {
            let mut backends = service["backends"].take();
            let configs = backends.as_array_mut().unwrap().iter_mut().map(|backend| &mut backend["config"]);
            one(&mut service["settings"], configs.collect());
            service["backends"] = backends;
            service.as_object_mut().unwrap().retain(|key, _| key != "family" && key != "listeners");
        }
        fs::write(&path, sealed(1, &body.to_string())).unwrap();
        let Loaded::State(read) = file.load().unwrap() else { panic!("not read") };
        let mut expected = state(1);
        for service in &mut expected.services {
            (service.family, service.listeners) = (None, Vec::new());
        }
        assert_eq!(*read, expected);
    }

    #[test]
    fn two_controllers_do_not_share_a_file() {
        let (_directory, path) = place();
        let first = StateFile::open(&path).unwrap();
        let error = StateFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("another controller (process {})", std::process::id())), "{error}");
        drop(first);
        StateFile::open(&path).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let (directory, _) = place();
        let blocked = directory.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = format!("{:#}", StateFile::open(&blocked.join("state.json")).unwrap_err());
        assert!(error.contains(&blocked.display().to_string()), "{error}");
        let path = directory.path().join("lib/state.json");
        let mut file = StateFile::open(&path).unwrap();
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let error = format!("{:#}", file.save(&state(1)).unwrap_err());
        assert!(error.starts_with("cannot write the state file "), "{error}");
    }
}
