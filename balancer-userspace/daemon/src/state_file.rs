//! The file that keeps the controller's state, and the journal beside it.
//!
//! ```text
//! state.json                    {"balancer_state":2,"checksum":"…","body":{…}}    the CRC-32 is of the version and the body
//! state.json.journal            what was changed since, where the state is large
//! state.json.previous           the state before, with the journal that belonged to it
//! state.json.previous.journal
//! state.json.lock               locked by the controller that works with them; holds its process id
//! ```
//!
//! A state is written beside, synchronised and renamed, so that there is a whole one at every moment. That takes as long as
//! the state is large, so where it is, what became different since is appended to the journal instead, until that has
//! become large as well.

mod journal;
mod older;
mod sealed;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use balancer_core::state::{SavedClock, SavedState, VERSION};
use nix::fcntl::{Flock, FlockArg};

use self::{journal::Journal, sealed::Bad};
pub(crate) use self::{
    journal::replay_lines,
    sealed::{open_sealed, sealed},
};
use crate::restorable::Restorable;

/// How often counts are written that nothing else has come with.
const COUNTS_EVERY: Duration = Duration::from_secs(300);
/// Largest file read, in bytes; far above what the largest state needs.
const MAX_SIZE: u64 = 256 << 20;
/// Smaller states are always written whole, in bytes: that takes as long as the disk needs for the first of them.
const SMALL: u64 = 256 << 10;
/// By how much the wall clock may have been set for the moments in a journal to be told by the clock of its state.
const SLEW: Duration = Duration::from_secs(1);

/// A state file that no other controller works with.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// Whether what is there may become the previous one.
    good: bool,
    /// What is there, if this process has written it.
    written: Option<Written>,
    /// The length from which on there is a journal, in bytes.
    small: u64,
    _lock: Flock<File>,
}

/// What is in a state file and its journal.
#[derive(Debug)]
struct Written {
    state: Restorable,
    /// When it was last written whole.
    at: Instant,
    clock: Option<SavedClock>,
    /// Bytes of the whole state.
    length: u64,
    journal: Journal,
}

/// What a state file held.
#[derive(Debug)]
pub enum Loaded {
    /// There is none.
    Nothing,
    /// The state.
    State(Box<SavedState>),
    /// An earlier state, and why.
    Older(Box<SavedState>, String),
}

/// What a state is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// A change is about to be made.
    Change,
    /// Something may have happened. Where nothing has but counts, nothing is written for five minutes.
    Refresh,
    /// The whole state is wanted in one file: at the start and at the end.
    Whole,
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
        let this = Self { path: path.to_owned(), good: true, written: None, small: SMALL, _lock: lock };
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
            Ok((state, None)) => return Ok(Loaded::State(Box::new(state))),
            Ok((state, Some(why))) => {
                let warning =
                    format!("{why}: going on from the changes before that; what was changed after them is lost");
                return Ok(Loaded::Older(Box::new(state), warning));
            }
            Err(Bad::Missing) => return Ok(Loaded::Nothing),
            Err(Bad::Newer(version)) => bail!(
                "the state file {path} is of version {version}, this controller reads up to {VERSION}: start the newer \
                 balancer again, or move the file away to start with the configuration file alone"
            ),
            Err(Bad::Broken(why)) => why,
        };
        self.good = false;
        let then = match read(&previous) {
            Ok((state, _)) => {
                let date = fs::metadata(&previous)
                    .and_then(|metadata| metadata.modified())
                    .map(|modified| format!(" of {}", humantime::format_rfc3339_seconds(modified)));
                let warning = format!(
                    "the state file {path} cannot be used ({why}): going on from {before}{}; what was changed after \
                     that is lost",
                    date.unwrap_or_default()
                );
                return Ok(Loaded::Older(Box::new(state), warning));
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

    /// Has the files say `state`; they do when this returns.
    ///
    /// # Errors
    /// Where the kernel refuses; the files then say what they said.
    pub fn keep(&mut self, state: Restorable, occasion: Occasion) -> anyhow::Result<()> {
        let Some(mut written) = self.written.take() else { return self.keep_whole(state) };
        let now = state.clocks.now;
        let aged = now >= written.at + COUNTS_EVERY;
        let changes = state.changes_since(&written.state);
        let counted = aged && !state.controller.is_untouched_since(&written.state.controller);
        if occasion == Occasion::Refresh && changes.is_empty() && !counted {
            self.written = Some(written);
            return Ok(());
        }
        let small = written.length < self.small;
        if small || counted || occasion == Occasion::Whole || !goes_on(written.clock.as_ref(), state.clock.as_ref()) {
            return self.keep_whole(state);
        }
        let line = written.journal.line(&changes).with_context(|| self.cannot())?;
        if written.journal.length + line.len() as u64 > written.length / 2 {
            return self.keep_whole(state);
        }
        written.journal.append(&line).with_context(|| self.cannot())?;
        self.written = Some(Written { state, ..written });
        Ok(())
    }

    fn keep_whole(&mut self, state: Restorable) -> anyhow::Result<()> {
        let saved = state.state();
        let (checksum, length) = self.save(&saved)?;
        let journal = Journal::begin(&self.path, checksum);
        self.written = Some(Written { at: state.clocks.now, clock: saved.clock, state, length, journal });
        Ok(())
    }

    fn cannot(&self) -> String {
        format!("cannot write the state file {}", self.path.display())
    }

    /// Replaces the state; gives its checksum and its length in bytes.
    fn save(&mut self, state: &SavedState) -> anyhow::Result<(String, u64)> {
        let body = serde_json::to_string(state).with_context(|| self.cannot())?;
        let text = sealed(state.version, &body);
        self.replace(text.as_bytes()).with_context(|| self.cannot())?;
        self.good = true;
        Ok((sealed::checksum(state.version, &body), text.len() as u64))
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let new = with_suffix(&self.path, "new");
        let mut file = create(&new)?;
        file.write_all(bytes).and_then(|()| file.sync_all())?;
        let journal = journal::of_state(&self.path);
        if self.good {
            let previous = with_suffix(&self.path, "previous");
            keep(&journal, &journal::of_state(&previous))?;
            keep(&self.path, &previous)?;
        }
        fs::rename(&new, &self.path)?;
        sync_directory(&self.path)?;
        // It belongs to the state before, and says so.
        let _ = remove(&journal);
        Ok(())
    }
}

/// Whether the wall clock has gone on from one moment to the other as the machine has.
fn goes_on(from: Option<&SavedClock>, to: Option<&SavedClock>) -> bool {
    match (from, to) {
        (None, None) => true,
        (Some(from), Some(to)) if from.boot == to.boot => {
            let (wall, uptime) = (to.wall.0, to.uptime.saturating_sub(from.uptime));
            wall.abs_diff(from.wall.0 + uptime) < SLEW
        }
        (Some(_) | None, Some(_) | None) => false,
    }
}

/// A file for its owner alone: it may hold the hash key.
fn create(path: &Path) -> io::Result<File> {
    remove(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Has `previous` be what is at `path`, which stays; nothing if there is nothing.
fn keep(path: &Path, previous: &Path) -> io::Result<()> {
    remove(previous)?;
    match fs::hard_link(path, previous) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Not every file system has links.
        Err(_) => fs::copy(path, previous).map(drop),
        Ok(()) => Ok(()),
    }
}

/// Has the directory of `path` be on disk as it is.
fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The state in the file at `path` and its journal, and what of the latter is of no use.
fn read(path: &Path) -> Result<(SavedState, Option<String>), Bad> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Bad::Missing),
        Err(error) => return Err(Bad::Broken(format!("it cannot be read: {error}"))),
    }
    let opened = sealed::open(&bytes)?;
    let mut state = sealed::state(&opened)?;
    let replayed = journal::replay(&mut state, path, opened.checksum);
    Ok((state, replayed.err()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

    use balancer_common::map_types::Forwarding;
    use balancer_core::{
        controller::Controller,
        io::{Change, Event},
        service::Service,
        state::{Clocks, Moment},
    };
    use balancer_model::fixture::{KEY, backend, config, name, now, service, web};
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
            Loaded::Older(state, warning) => {
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

    /// A controller that serves, of which `web` is the smaller part; the moment it began.
    fn begun() -> (Controller, Instant) {
        let web = service("web", "198.51.100.10:80", Forwarding::Nat, &["web1 10.0.0.1:80", "web2 10.0.0.2:80"]);
        let mut dns = service("dns", "198.51.100.11:53", Forwarding::Nat, &[]);
        dns.backends = (1..20).map(|host| backend(&format!("dns{host}"), &format!("10.0.1.{host}:53"))).collect();
        let mut controller = Controller::new(config(vec![web, dns]), KEY);
        let now = now();
        controller.start(now);
        (controller, now)
    }

    fn weigh(controller: &mut Controller, weight: u16, now: Instant) {
        controller.change(Change::SetWeight { name: name("web/web1"), weight }, now).unwrap();
    }

    /// Counts a sweep, and nothing else.
    fn sweep(controller: &mut Controller, known: u64, now: Instant) {
        let ids = controller.services().iter().flat_map(Service::backends).map(|backend| (backend.id(), known));
        let known = ids.collect();
        controller.handle(Event::Swept { known }, now);
    }

    fn loaded(file: &mut StateFile) -> SavedState {
        match file.load().unwrap() {
            Loaded::State(saved) => *saved,
            other @ (Loaded::Nothing | Loaded::Older(..)) => panic!("{other:?}"),
        }
    }

    fn keep_now(file: &mut StateFile, controller: &Controller, now: Instant, occasion: Occasion) {
        file.keep(Restorable::of(controller.clone(), now), occasion).unwrap();
    }

    #[test]
    fn counts_alone_are_written_from_time_to_time() {
        let (_directory, path) = place();
        let mut file = StateFile::open(&path).unwrap();
        let (mut controller, now) = begun();
        keep_now(&mut file, &controller, now, Occasion::Refresh);
        let first = loaded(&mut file);
        sweep(&mut controller, 7, now);
        keep_now(&mut file, &controller, now + COUNTS_EVERY / 2, Occasion::Refresh);
        assert_eq!(loaded(&mut file), first);
        // With something else, at once.
        weigh(&mut controller, 50, now);
        keep_now(&mut file, &controller, now + COUNTS_EVERY / 2, Occasion::Refresh);
        let second = loaded(&mut file);
        assert_eq!((second.generation, second.services[0].backends[0].known), (1, 7));
        // And after a while; not even then where nothing was counted.
        sweep(&mut controller, 8, now);
        keep_now(&mut file, &controller, now + 2 * COUNTS_EVERY, Occasion::Refresh);
        assert_eq!(loaded(&mut file).services[0].backends[0].known, 8);
        fs::remove_file(&path).unwrap();
        keep_now(&mut file, &controller, now + 4 * COUNTS_EVERY, Occasion::Refresh);
        assert!(matches!(file.load().unwrap(), Loaded::Nothing), "written again");
    }

    #[test]
    fn a_large_state_is_written_by_its_changes_until_they_are_half_as_much() {
        let (_directory, path) = place();
        let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
        let (mut controller, now) = begun();
        keep_now(&mut file, &controller, now, Occasion::Whole);
        let whole = fs::read(&path).unwrap();
        let journal = journal::of_state(&path);
        let mut journals = 0;
        for weight in 1..40 {
            weigh(&mut controller, weight, now);
            keep_now(&mut file, &controller, now, Occasion::Change);
            assert_eq!(loaded(&mut file).services, controller.export(Clocks { now, wall: UNIX_EPOCH }).services);
            let length = fs::metadata(&journal).map_or(0, |metadata| metadata.len());
            assert!(length <= whole.len() as u64 / 2, "{length} of {}", whole.len());
            if length == 0 {
                break;
            }
            assert_eq!(fs::read(&path).unwrap(), whole, "the state was written whole");
            journals += 1;
        }
        assert!((1..39).contains(&journals), "{journals}");
        // With the journal that belonged to it, the state before is as late as it was.
        fs::write(&path, "").unwrap();
        assert_eq!(generation(&file.load().unwrap()), journals);
    }

    #[test]
    fn changes_are_not_told_by_a_wall_clock_that_was_set_meanwhile() {
        let (_directory, path) = place();
        let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
        let (mut controller, now) = begun();
        let at = |controller: &Controller, uptime: u64, wall: u64| Restorable {
            clock: Some(SavedClock {
                boot: "b".to_owned(),
                uptime: Duration::from_secs(uptime),
                wall: Moment(Duration::from_secs(wall)),
            }),
            ..Restorable::of(controller.clone(), now)
        };
        file.keep(at(&controller, 100, 1000), Occasion::Whole).unwrap();
        let journal = journal::of_state(&path);
        weigh(&mut controller, 50, now);
        file.keep(at(&controller, 110, 1010), Occasion::Change).unwrap();
        assert!(journal.exists());
        weigh(&mut controller, 51, now);
        file.keep(at(&controller, 111, 700), Occasion::Change).unwrap();
        assert!(!journal.exists(), "moments of two clocks are in one state");
        assert_eq!(loaded(&mut file).generation, 2);
    }

    #[test]
    fn a_journal_cut_or_flipped_anywhere_is_noticed() {
        let (_directory, path) = place();
        let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
        let (mut controller, now) = begun();
        keep_now(&mut file, &controller, now, Occasion::Whole);
        for weight in [50, 51] {
            weigh(&mut controller, weight, now);
            keep_now(&mut file, &controller, now, Occasion::Change);
        }
        let journal = journal::of_state(&path);
        let good = fs::read(&journal).unwrap();
        let first = good.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let mut check = |bytes: &[u8], expected: u64, told: Option<&str>| {
            fs::write(&journal, bytes).unwrap();
            let (state, warning) = match file.load().unwrap() {
                Loaded::State(state) => (state, None),
                Loaded::Older(state, warning) => (state, Some(warning)),
                Loaded::Nothing => panic!("a silent empty state"),
            };
            assert_eq!(state.generation, expected, "{warning:?}");
            assert_eq!(warning.is_some(), told.is_some(), "{warning:?}");
            assert!(warning.is_none_or(|warning| warning.contains(told.unwrap()) && warning.contains("is lost")));
        };
        // What was being written when the machine ended.
        for length in (0..good.len()).filter(|length| length % first < 60 || length % 7 == 0) {
            check(&good[..length], u64::from(length >= first), None);
        }
        check(&good, 2, None);
        // All of the seals, and a part of what is under them.
        for place in (0..good.len()).filter(|place| place % first < 60 || place % 7 == 0) {
            let mut bytes = good.clone();
            bytes[place] ^= 0x01;
            match place {
                // Without its end, it is not a whole line.
                _ if place + 1 == good.len() => check(&bytes, 1, None),
                _ if place < first => check(&bytes, 0, Some("line 1")),
                _ => check(&bytes, 1, Some("line 2")),
            }
        }
        check(&good[first..], 0, Some("the one before it is missing"));
        check(&[&good[..first], &good[..first]].concat(), 1, Some("line 2"));
    }

    #[test]
    fn a_journal_of_another_state_is_passed_over() {
        let (_directory, path) = place();
        let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
        let (mut controller, now) = begun();
        keep_now(&mut file, &controller, now, Occasion::Whole);
        weigh(&mut controller, 50, now);
        keep_now(&mut file, &controller, now, Occasion::Change);
        let journal = journal::of_state(&path);
        let left = fs::read(&journal).unwrap();
        weigh(&mut controller, 51, now);
        keep_now(&mut file, &controller, now, Occasion::Whole);
        assert!(!journal.exists());
        // The machine ended between the two.
        fs::write(&journal, &left).unwrap();
        assert_eq!(loaded(&mut file).generation, 2);
        // A change that comes next begins anew.
        weigh(&mut controller, 52, now);
        keep_now(&mut file, &controller, now, Occasion::Change);
        assert_eq!(loaded(&mut file).generation, 3);
    }

    #[test]
    fn after_a_failure_the_state_is_written_whole() {
        let (directory, path) = place();
        let mut file = StateFile { small: 0, ..StateFile::open(&path).unwrap() };
        let (mut controller, now) = begun();
        keep_now(&mut file, &controller, now, Occasion::Whole);
        let away = directory.path().join("away");
        fs::rename(path.parent().unwrap(), &away).unwrap();
        weigh(&mut controller, 50, now);
        let refused = file.keep(Restorable::of(controller.clone(), now), Occasion::Change).unwrap_err();
        assert!(format!("{refused:#}").starts_with("cannot write the state file "), "{refused:#}");
        fs::rename(&away, path.parent().unwrap()).unwrap();
        assert_eq!(loaded(&mut file).generation, 0);
        keep_now(&mut file, &controller, now, Occasion::Change);
        assert!(!journal::of_state(&path).exists());
        assert_eq!(loaded(&mut file).generation, 1);
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
                loaded @ (Loaded::Nothing | Loaded::Older(..)) => assert_eq!(generation(&loaded), 1),
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
