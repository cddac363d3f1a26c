//! What outlives the controller: maps, links and notes, pinned in a directory of their own.
//!
//! There is one directory for each network namespace and state file, `balancer/NAMESPACE-STATEFILE` below the BPF file
//! system. Whoever works with it holds a lock on it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Array, Map, MapData};
use balancer_common::{kept::NotesRow, map_types::LAYOUT_VERSION};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    handover,
    link_pins::{LinkPin, LinkPins},
    pinned_link::take_off,
};
use crate::{
    HostChanges,
    bpffs::{Bpffs, DIRECTORY},
};

/// The maps that are pinned. The others are made anew from the configuration by each controller.
pub(super) const MAPS: [&str; 15] = [
    "NOTES",
    "BACKEND_HISTORY",
    "SERVICE_HISTORY",
    "CLIENTS",
    "FRAGMENTS",
    "RULES",
    "RULE_STATS",
    "INTERFACE_STATS",
    "BACKEND_STATS",
    "LISTENER_STATS",
    "DROP_STATS",
    "MEMORY_STATS",
    "REPLY_STATS",
    "SAMPLE_STATS",
    "REDIRECT_ERRORS",
];
const NOTES: &str = "NOTES";

/// A locked directory of pins.
#[derive(Debug)]
pub struct Pins {
    bpffs: Bpffs,
    name: String,
    /// Made by this process, for a controller that has not started yet.
    unfinished: bool,
    /// What the controller before wrote down.
    left: Option<Notes>,
    lock: Option<Flock<OwnedFd>>,
}

/// What a controller writes down for the next one, and for `balancer detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Of the pinned maps.
    pub layout_version: u32,
    /// The balancer's version that made them.
    pub version: String,
    /// What the state file must say as well: names and ids in it are those of the maps.
    pub instance: u64,
    /// By which interfaces are told apart in the map of their counters.
    pub interface_multiplier: u32,
    /// Buckets of the client table.
    pub buckets: u32,
    /// Known clients that the client table is made for.
    pub clients: u32,
    /// The process that holds the lock, while it lives.
    pub process: u32,
    /// Where the state is saved.
    pub state_file: PathBuf,
    /// What was changed on this machine and is to be put back.
    pub host: HostChanges,
}

impl Notes {
    /// What is written in the row of notes, up to its first zero. `None`: nothing is.
    ///
    /// # Errors
    /// When that is no note.
    pub fn read(row: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let text = row.split(|&byte| byte == 0).next().unwrap_or_default();
        if text.is_empty() { Ok(None) } else { serde_json::from_slice(text).map(Some) }
    }
}

impl Pins {
    /// The pins left by an earlier controller with this state file in this network namespace. `None`: there are none.
    ///
    /// # Errors
    /// When a living controller has them, and when they have layouts that this program cannot go on with: the error says
    /// what to do.
    pub fn find(state_file: &Path) -> anyhow::Result<Option<Self>> {
        let Some(bpffs) = Bpffs::find() else { return Ok(None) };
        let name = name(network_namespace()?, state_file);
        if !bpffs.path(DIRECTORY).join(&name).exists() {
            return Ok(None);
        }
        let mut pins = Self { bpffs, name, unfinished: false, left: None, lock: None };
        pins.lock()?;
        pins.left = pins.notes()?;
        match &pins.left {
            Some(notes) => {
                adoptable(notes)?;
                Ok(Some(pins))
            }
            None => {
                // Its maker did not get as far as attaching anything.
                pins.remove()?;
                Ok(None)
            }
        }
    }

    /// A new, empty directory. It is removed again when this is dropped before [`finish`](Self::finish).
    ///
    /// # Errors
    /// When there is no BPF file system and none can be mounted, and when a living controller has the directory.
    pub fn create(state_file: &Path) -> anyhow::Result<Self> {
        let bpffs = Bpffs::find_or_mount()?;
        let name = name(network_namespace()?, state_file);
        let mut pins = Self { bpffs, name, unfinished: true, left: None, lock: None };
        fs::create_dir_all(pins.directory()).context("making a directory for pins in the BPF file system")?;
        pins.lock()?;
        Ok(pins)
    }

    /// The pins of this network namespace that no living controller has, and the notes of those that one has.
    ///
    /// # Errors
    /// When the file system cannot be read.
    pub fn all() -> anyhow::Result<(Vec<Self>, Vec<Notes>)> {
        let (mut free, mut held) = (Vec::new(), Vec::new());
        let Some(first) = Bpffs::find() else { return Ok((free, held)) };
        let prefix = format!("{}-", network_namespace()?);
        let entries = match fs::read_dir(first.path(DIRECTORY)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((free, held)),
            Err(error) => return Err(error).context("reading the directory of pins"),
        };
        for entry in entries {
            let name = entry.context("reading the directory of pins")?.file_name().to_string_lossy().into_owned();
            if !name.starts_with(&prefix) {
                continue;
            }
            let bpffs = Bpffs::find().context("the BPF file system went away")?;
            let mut pins = Self { bpffs, name, unfinished: false, left: None, lock: None };
            match pins.lock() {
                Ok(()) => free.push(pins),
                Err(_) => held.push(pins.notes().ok().flatten().unwrap_or_default()),
            }
        }
        Ok((free, held))
    }

    /// From now on they stay when this is dropped. Links to interfaces that are not among `ifindexes` go.
    ///
    /// # Errors
    /// When such a link cannot be removed.
    pub fn finish(&mut self, ifindexes: &[u32]) -> anyhow::Result<()> {
        for link in self.links().into_iter().filter(|link| !ifindexes.contains(&link.ifindex)) {
            take_off(&link.path)?;
        }
        self.unfinished = false;
        Ok(())
    }

    /// What was written down. `None`: nothing was.
    ///
    /// # Errors
    /// When it cannot be read, or was written by a version that nobody knows.
    pub fn notes(&self) -> anyhow::Result<Option<Notes>> {
        let path = self.map(NOTES);
        if !path.exists() {
            return Ok(None);
        }
        let map = Map::Array(MapData::from_pin(&path).context("opening the pinned notes")?);
        let map: Array<_, NotesRow> = map.try_into().map_err(|_| self.foreign())?;
        let row = map.get(&0, 0).context("reading the pinned notes")?;
        Notes::read(row.text.as_flattened()).map_err(|_| self.foreign())
    }

    /// What the controller before wrote down about the maps that it left; `None` if these are new.
    #[must_use]
    pub const fn left(&self) -> Option<&Notes> {
        self.left.as_ref()
    }

    fn foreign(&self) -> anyhow::Error {
        anyhow!("the pins in {} are of another version of balancer; remove them with `balancer detach`", self.name)
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Has a map made anew at the next load: nobody needs what is in the pinned one.
    pub(super) fn make_anew(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.map(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing the pinned map {name}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where links are pinned. It can be reached while this lives.
    pub(super) fn link_pins(&self) -> LinkPins {
        LinkPins::new(self.directory())
    }

    /// The pinned links.
    pub(super) fn links(&self) -> Vec<LinkPin> {
        self.link_pins().links()
    }

    /// Takes off every interface what a controller that is gone has left there, and removes everything.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self) -> anyhow::Result<usize> {
        let links = self.links();
        links.iter().try_for_each(|link| take_off(&link.path))?;
        for link in &links {
            self.link_pins().handovers(link.ifindex).iter().try_for_each(|pin| take_off(pin))?;
            handover::remove_filters(link.ifindex);
        }
        self.remove()?;
        Ok(links.len())
    }

    /// Removes everything. Programs whose links this process has open stay on.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove(&mut self) -> anyhow::Result<()> {
        let directory = self.directory();
        for entry in fs::read_dir(&directory).context("reading the directory of pins")?.flatten() {
            fs::remove_file(entry.path())
                .with_context(|| format!("removing the pin {}", entry.file_name().to_string_lossy()))?;
        }
        fs::remove_dir(&directory).context("removing the directory of pins")?;
        // The last one takes the common directory with it.
        let _ = fs::remove_dir(self.bpffs.path(DIRECTORY));
        self.unfinished = false;
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.bpffs.path(DIRECTORY).join(&self.name)
    }

    fn lock(&mut self) -> anyhow::Result<()> {
        let directory = fs::File::open(self.directory()).context("opening the directory of pins")?;
        match Flock::lock(OwnedFd::from(directory), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.lock = Some(lock);
                Ok(())
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let who = match self.notes() {
                    Ok(Some(notes)) => format!(" (process {})", notes.process),
                    Ok(None) | Err(_) => String::new(),
                };
                bail!("another controller{who} is running with these maps; stop it first")
            }
            Err((_, error)) => Err(error).context("locking the directory of pins"),
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.unfinished
            && let Err(error) = self.remove()
        {
            tracing::warn!("pins stay behind: {error:#}");
        }
    }
}

fn adoptable(notes: &Notes) -> anyhow::Result<()> {
    if notes.layout_version != LAYOUT_VERSION {
        bail!(
            "balancer {} left maps of layout {} running, and this is balancer {} with layout {LAYOUT_VERSION}: start that \
             version again, or give up what it remembers with `balancer detach` and start this one",
            notes.version,
            notes.layout_version,
            env!("CARGO_PKG_VERSION"),
        );
    }
    Ok(())
}

fn network_namespace() -> anyhow::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net").context("looking at the network namespace")?.ino())
}

fn name(namespace: u64, state_file: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;

    format!("{namespace}-{:016x}", fnv1a(state_file.as_os_str().as_bytes()))
}

/// FNV-1a: the same in every version, unlike the standard library's hashes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
