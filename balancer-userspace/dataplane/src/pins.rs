//! Kernel objects that outlive the controller (maps, links and notes), pinned in a directory.
//!
//! Each network namespace and state file has its own directory, `balancer/INODE-cCOOKIE-STATEFILE` below the BPF file
//! system. The process that uses a directory holds a lock on this directory.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Array, Map, MapData};
use balancer_common::{kept::NotesRow, map_types::LAYOUT_VERSION};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};

use super::{
    classifiers,
    direct::DIRECT,
    link_pins::{LinkPin, LinkPins},
    map_sizes::CLIENTS,
    network_namespace::{NetworkNamespace, is_deserted},
    pinned_link::{is_defunct, take_off},
};
use crate::{
    HostChanges,
    bpffs::{Bpffs, DIRECTORY},
};

/// The number of attempts to lock the directory at a start, 10 ms apart.
const LOCK_TRIES: u32 = 100;

/// The names of the maps that are pinned. Each controller creates all other maps anew from the configuration.
pub(super) const MAPS: [&str; 22] = [
    "NOTES",
    "BACKEND_HISTORY",
    "SERVICE_HISTORY",
    CLIENTS,
    "FLOW_LINES",
    "FLOWS",
    "FLOW_RETURNS",
    "FRAGMENTS",
    DIRECT,
    "RULES",
    "RULE_STATS",
    "INTERFACE_STATS",
    "BACKEND_STATS",
    "LISTENER_STATS",
    "SHARED_RULES",
    "SHARED_BACKENDS",
    "SHARED_LISTENERS",
    "DROP_STATS",
    "MEMORY_STATS",
    "REPLY_STATS",
    "SAMPLE_STATS",
    "REDIRECT_ERRORS",
];
const NOTES: &str = "NOTES";

/// A directory of pins that this process has locked.
#[derive(Debug)]
pub struct Pins {
    bpffs: Bpffs,
    name: String,
    /// Whether the pins belong to the network namespace of this process.
    here: bool,
    /// Whether this process made the directory for a controller that has not started yet.
    unfinished: bool,
    /// The notes that the previous controller has left.
    left: Option<Notes>,
    lock: Option<Flock<OwnedFd>>,
}

/// Every directory that contains pins.
#[derive(Debug)]
pub struct AllPins {
    /// The directories that no running controller has locked.
    pub free: Vec<Pins>,
    /// The notes in the locked directories, each with a flag that says whether the directory belongs to this network
    /// namespace.
    pub held: Vec<(bool, Notes)>,
}

/// The notes that a controller leaves for the next controller and for `balancer detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// The layout version of the pinned maps.
    pub layout_version: u32,
    /// The version of the balancer that wrote these notes.
    pub version: String,
    /// A number that the state file must also have, because names and ids in that file refer to the maps.
    pub instance: u64,
    /// The multiplier by which the map of interface counters maps interfaces to rows.
    pub interface_multiplier: u32,
    /// The number of connections for which the flow table is sized; 0: there is no table.
    pub flows: u32,
    /// The process that holds the lock, while this process is running.
    pub process: u32,
    /// The path of the file with the saved state.
    pub state_file: PathBuf,
    /// The changes to this machine that a later process must undo.
    pub host: HostChanges,
}

impl Notes {
    /// Reads the notes from the row that contains them, up to the first zero byte. `None`: the row is empty.
    ///
    /// # Errors
    /// Fails if the row does not contain notes.
    pub fn read(row: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let text = row.split(|&byte| byte == 0).next().unwrap_or_default();
        if text.is_empty() { Ok(None) } else { serde_json::from_slice(text).map(Some) }
    }
}

impl Pins {
    /// The pins that an earlier controller with this state file has left in this network namespace. `None`: there are
    /// no such pins.
    ///
    /// # Errors
    /// Fails if a running controller uses the pins, or if this version cannot use maps with the pinned layouts; the
    /// error tells the user what to do.
    pub fn find(state_file: &Path) -> anyhow::Result<Option<Self>> {
        let Some(bpffs) = Bpffs::find() else { return Ok(None) };
        let here = NetworkNamespace::here()?;
        Self::clear_dead(here)?;
        let mut pins = Self::of(bpffs, name(here, state_file), here);
        if !pins.directory().exists() {
            return Ok(None);
        }
        pins.lock()?;
        pins.left = pins.notes()?;
        match &pins.left {
            Some(notes) => {
                adoptable(notes)?;
                Ok(Some(pins))
            }
            None => {
                // The process that made this directory ended before it had attached a program.
                pins.remove()?;
                Ok(None)
            }
        }
    }

    /// Makes a new, empty directory for pins. If the value is dropped before [`finish`](Self::finish), the directory is
    /// removed.
    ///
    /// # Errors
    /// Fails if no BPF file system exists or can be mounted, or if a running controller uses the directory.
    pub fn create(state_file: &Path) -> anyhow::Result<Self> {
        let bpffs = Bpffs::find_or_mount()?;
        let here = NetworkNamespace::here()?;
        let mut pins = Self::of(bpffs, name(here, state_file), here);
        pins.unfinished = true;
        fs::create_dir_all(pins.directory()).context("making a directory for pins in the BPF file system")?;
        pins.lock()?;
        Ok(pins)
    }

    /// The pins that controllers have left in any network namespace. Only the pins of this namespace stay locked (with
    /// `everywhere`, all pins stay locked), because controllers of other namespaces may be about to start.
    ///
    /// # Errors
    /// Fails if the BPF file system cannot be read.
    pub fn all(everywhere: bool) -> anyhow::Result<AllPins> {
        let (mut free, mut held) = (Vec::new(), Vec::new());
        let here = NetworkNamespace::here()?;
        Self::clear_dead(here)?;
        for mut pins in Self::every(here)? {
            if !pins.try_lock().unwrap_or(false) {
                held.push((pins.here, pins.notes().ok().flatten().unwrap_or_default()));
                continue;
            }
            if !everywhere && !pins.here {
                pins.lock = None;
            }
            free.push(pins);
        }
        Ok(AllPins { free, held })
    }

    /// Whether the pins belong to the network namespace of this process.
    #[must_use]
    pub const fn here(&self) -> bool {
        self.here
    }

    /// Every directory of pins; the function locks none of them.
    fn every(here: NetworkNamespace) -> anyhow::Result<Vec<Self>> {
        let Some(first) = Bpffs::find() else { return Ok(Vec::new()) };
        let entries = match fs::read_dir(first.path(DIRECTORY)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("reading the directory of pins"),
        };
        let mut every = Vec::new();
        for entry in entries {
            let name = entry.context("reading the directory of pins")?.file_name().to_string_lossy().into_owned();
            let bpffs = Bpffs::find().context("the BPF file system went away")?;
            every.push(Self::of(bpffs, name, here));
        }
        Ok(every)
    }

    fn of(bpffs: Bpffs, name: String, here: NetworkNamespace) -> Self {
        let here = Named::read(&name).is_some_and(|named| named.is_of(here));
        Self { bpffs, name, here, unfinished: false, left: None, lock: None }
    }

    /// Removes the pins of those network namespaces that certainly no longer exist. The programs of a removed namespace
    /// have disappeared with its interfaces, but its maps still occupy memory.
    fn clear_dead(here: NetworkNamespace) -> anyhow::Result<()> {
        for mut pins in Self::every(here)? {
            let is_dead = Named::read(&pins.name).is_some_and(|named| pins.are_dead(named, here));
            if is_dead && pins.try_lock().unwrap_or(false) {
                match pins.remove() {
                    Ok(()) => {
                        tracing::info!("removed the maps that a balancer left in a network namespace that is gone")
                    }
                    Err(error) => tracing::warn!("maps of a network namespace that is gone stay: {error:#}"),
                }
            }
        }
        Ok(())
    }

    fn are_dead(&self, Named { inode, cookie }: Named, here: NetworkNamespace) -> bool {
        // Two network namespaces never have the same inode at the same time.
        if inode == here.inode { cookie != here.cookie } else { self.are_defunct() && is_deserted(inode) }
    }

    /// Whether the directory contains links, and the interfaces of all these links no longer exist.
    fn are_defunct(&self) -> bool {
        let links = self.links();
        !links.is_empty() && links.iter().all(|link| is_defunct(&link.path).unwrap_or(false))
    }

    /// Makes the pins permanent: dropping this value no longer removes them. Removes pinned links to interfaces that
    /// are not among `ifindexes`.
    ///
    /// # Errors
    /// Fails if a link cannot be removed.
    pub fn finish(&mut self, ifindexes: &[u32]) -> anyhow::Result<()> {
        for link in self.links().into_iter().filter(|link| !ifindexes.contains(&link.ifindex)) {
            take_off(&link.path)?;
        }
        self.unfinished = false;
        Ok(())
    }

    /// Reads the pinned notes. `None`: the directory contains no notes.
    ///
    /// # Errors
    /// Fails if the notes cannot be read, or an unknown version wrote them.
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

    /// Returns the notes of the previous controller about the maps that it has left; `None` if the maps are new.
    #[must_use]
    pub const fn left(&self) -> Option<&Notes> {
        self.left.as_ref()
    }

    fn foreign(&self) -> anyhow::Error {
        anyhow!("the pins in {} are of another version of balancer; remove them with `balancer detach`", self.name)
    }

    /// The path of the pin for a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Removes the pin of a map, so that the next load creates the map anew, because nobody needs the old contents.
    pub(super) fn make_anew(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.map(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing the pinned map {name}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The path of the directory of pinned links, which is accessible while this value exists.
    pub(super) fn link_pins(&self) -> LinkPins {
        LinkPins::new(self.directory())
    }

    pub(super) fn links(&self) -> Vec<LinkPin> {
        self.link_pins().links()
    }

    /// Detaches the programs that an ended controller has left on interfaces, and removes all pins.
    ///
    /// # Errors
    /// Fails if a pin cannot be removed.
    pub fn detach(&mut self) -> anyhow::Result<usize> {
        let links = self.links();
        links.iter().try_for_each(|link| take_off(&link.path))?;
        for link in &links {
            for pins in classifiers::KINDS {
                self.link_pins().classifiers(pins, link.ifindex).iter().try_for_each(|pin| take_off(pin))?;
            }
            if self.here {
                classifiers::remove_filters(link.ifindex);
            }
        }
        self.remove()?;
        Ok(links.len())
    }

    /// Removes all pins in this directory. Programs whose links this process holds open stay attached.
    ///
    /// # Errors
    /// Fails if a pin cannot be removed.
    pub fn remove(&mut self) -> anyhow::Result<()> {
        let directory = self.directory();
        for entry in fs::read_dir(&directory).context("reading the directory of pins")?.flatten() {
            fs::remove_file(entry.path())
                .with_context(|| format!("removing the pin {}", entry.file_name().to_string_lossy()))?;
        }
        fs::remove_dir(&directory).context("removing the directory of pins")?;
        // When the last directory of pins is removed, the common directory can also be removed.
        let _ = fs::remove_dir(self.bpffs.path(DIRECTORY));
        self.unfinished = false;
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.bpffs.path(DIRECTORY).join(&self.name)
    }

    /// Locks the directory of pins. Another process may hold the lock for a short time: `balancer detach`, which reads
    /// all directories, or a child process of an ended controller that has not called `exec` yet.
    fn lock(&mut self) -> anyhow::Result<()> {
        for _ in 0..LOCK_TRIES {
            if self.try_lock()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let who = match self.notes() {
            Ok(Some(notes)) => format!(" (process {})", notes.process),
            Ok(None) | Err(_) => String::new(),
        };
        bail!("another controller{who} is running with these maps; stop it first")
    }

    /// Tries once to lock the directory. Returns whether this process now holds the lock.
    fn try_lock(&mut self) -> anyhow::Result<bool> {
        let directory = fs::File::open(self.directory()).context("opening the directory of pins")?;
        match Flock::lock(OwnedFd::from(directory), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                self.lock = Some(lock);
                Ok(true)
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(false),
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

pub(super) fn open(pin: &Path) -> anyhow::Result<MapData> {
    MapData::from_pin(pin).with_context(|| format!("opening the pinned map {}", pin.display()))
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

/// The network namespace that the name of a directory contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    inode: u64,
    cookie: u64,
}

impl Named {
    fn read(name: &str) -> Option<Self> {
        let (inode, rest) = name.split_once('-')?;
        let (cookie, _) = rest.strip_prefix('c')?.split_once('-')?;
        Some(Self { inode: inode.parse().ok()?, cookie: cookie.parse().ok()? })
    }

    fn is_of(self, namespace: NetworkNamespace) -> bool {
        self.inode == namespace.inode && self.cookie == namespace.cookie
    }
}

fn name(NetworkNamespace { inode, cookie }: NetworkNamespace, state_file: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;

    let hash = fnv1a(state_file.as_os_str().as_bytes());
    format!("{inode}-c{cookie}-{hash:016x}")
}

/// The FNV-1a hash, which, unlike the standard library's hashes, is the same in every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_directory_has_a_name_then_it_tells_the_namespace() {
        let here = NetworkNamespace { inode: 4_026_531_840, cookie: 7 };
        let other = NetworkNamespace { cookie: 8, ..here };
        let name = name(here, Path::new("/var/lib/balancer/state.json"));
        assert_eq!(Named::read(&name), Some(Named { inode: here.inode, cookie: 7 }), "{name}");
        assert!(Named::read(&name).unwrap().is_of(here) && !Named::read(&name).unwrap().is_of(other));
        assert_eq!(["x", "x-1", "1-2", "1-cx-2"].map(Named::read), [None; 4]);
    }
}
