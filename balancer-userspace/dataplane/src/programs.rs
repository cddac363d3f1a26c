//! The programs that steer packets: the plain program and the tracing program. The verifier neither verifies nor keeps
//! the code of features that a constant in the programs excludes. If a change needs more features, richer programs are
//! loaded beside the present ones. Richer programs use the same maps. If a change needs more room, programs with larger maps
//! are loaded in the same way.

use std::{
    collections::HashMap,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
    programs::Xdp,
};
use balancer_common::features::Features;

use super::{
    OBJECT,
    budgets::Budgets,
    classifiers,
    growth::{Growth, Larger},
    load::{load_program, not_loaded},
    map_sizes::MapSize,
    object::{self, PLAIN},
    redirects, telling,
};

/// The values of the object's constants, apart from the features. All programs of a process have the same values.
pub(super) struct Constants {
    pub(super) budgets: Budgets,
    pub(super) interface_multiplier: u32,
    pub(super) client_bucket_mask: u32,
    pub(super) log_level: u8,
    pub(super) handover_key: u64,
    /// The number of backends with counters on each CPU.
    pub(super) counted: u32,
    pub(super) whose: Option<redirects::Whose>,
}

impl Constants {
    /// Sets the constants in an object that has not been loaded yet.
    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>, features: &'a u64) {
        let Self { budgets, interface_multiplier, client_bucket_mask, log_level, handover_key, counted, whose } = self;
        let Budgets { errors, rejections, echo, fragments, waiting } = budgets;
        if let Some(whose) = whose {
            whose.tell(loader);
        }
        loader
            .override_global("FEATURES", features, true)
            .override_global("ERROR_BUDGET", errors, true)
            .override_global("REJECTION_BUDGET", rejections, true)
            .override_global("ECHO_BUDGET", echo, true)
            .override_global("FRAGMENT_BUDGET", fragments, true)
            .override_global("WAITING_BUDGET", waiting, true)
            .override_global("INTERFACE_MULTIPLIER", interface_multiplier, true)
            .override_global("CLIENT_BUCKET_MASK", client_bucket_mask, true)
            .override_global(aya_log::LEVEL, log_level, true)
            .override_global("HANDOVER_KEY", handover_key, true)
            .override_global("BACKEND_COUNTERS", counted, true);
    }
}

/// The features of the programs in use, which the task that attaches programs shares with the owner of the maps.
#[derive(Clone, Debug)]
pub(super) struct InUse(Arc<AtomicU64>);

impl InUse {
    fn new(features: Features) -> Self {
        Self(Arc::new(AtomicU64::new(features.bits())))
    }

    pub(super) fn get(&self) -> Features {
        Features::from_bits(self.0.load(Ordering::Acquire))
    }

    fn set(&self, features: Features) {
        self.0.store(features.bits(), Ordering::Release);
    }
}

/// The programs, and the object from which all maps and all other programs come; see the [module](self).
pub(super) struct Programs {
    object: Ebpf,
    /// The object with the programs in use, if it is not the first object.
    richer: Option<Ebpf>,
    constants: Constants,
    /// The maps of the first object, except its constants.
    maps: HashMap<String, OwnedFd>,
    in_use: InUse,
}

/// Loaded programs with more features or larger maps than the programs in use.
pub(super) struct Richer {
    object: Ebpf,
    features: Features,
    /// The larger maps.
    maps: HashMap<String, OwnedFd>,
}

impl Richer {
    /// The plain program, or the tracing program if `tells`, which this function loads if necessary.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program.
    pub(super) fn program(&mut self, tells: bool) -> anyhow::Result<&mut Xdp> {
        if tells { loaded_telling(&mut self.object) } else { object::program(&mut self.object) }
    }

    pub(super) const fn features(&self) -> Features {
        self.features
    }

    /// The object with these programs.
    pub(super) const fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// The larger maps of these programs, each with another descriptor.
    ///
    /// # Errors
    /// Fails if the process has no more file descriptors.
    pub(super) fn larger_maps(&self, growth: Growth) -> anyhow::Result<Larger> {
        let again = |name: &'static str| {
            let map = self.maps.get(name).with_context(|| format!("the kernel object holds no map {name}"))?;
            anyhow::Ok((name, MapData::from_fd(map.as_fd().try_clone_to_owned()?)?))
        };
        let maps = growth.maps.iter().map(|map| again(map.name)).collect::<anyhow::Result<_>>();
        Ok(Larger::new(growth, maps.context("sharing the larger maps")?))
    }

    /// A larger map, with another descriptor; `None`: this map does not grow.
    ///
    /// # Errors
    /// Fails if the process has no more file descriptors.
    pub(super) fn larger_map(&self, name: &str) -> anyhow::Result<Option<MapData>> {
        let Some(map) = self.maps.get(name) else { return Ok(None) };
        Ok(Some(MapData::from_fd(map.as_fd().try_clone_to_owned()?)?))
    }
}

impl Programs {
    /// Makes the value from an object whose constants are set and whose maps are still in it. No program is loaded yet.
    ///
    /// # Errors
    /// Fails if the process has no more file descriptors.
    pub(super) fn new(object: Ebpf, constants: Constants, features: Features) -> anyhow::Result<Self> {
        let shared = object.maps().filter(|(name, _)| !holds_constants(name));
        let maps = shared
            .map(|(name, map)| Ok((name.to_owned(), data(map)?.fd().as_fd().try_clone_to_owned()?)))
            .collect::<anyhow::Result<_>>()
            .context("sharing the maps of the kernel program")?;
        Ok(Self { object, richer: None, constants, maps, in_use: InUse::new(features) })
    }

    /// The first object, which holds the maps and all other programs.
    pub(super) const fn object(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    pub(super) fn in_use(&self) -> InUse {
        self.in_use.clone()
    }

    /// Loads the plain program.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program.
    pub(super) fn load(&mut self) -> anyhow::Result<()> {
        load_program(PLAIN, self.plain()?)
    }

    /// The plain program in use.
    ///
    /// # Errors
    /// Fails if the object contains no such program, which would be a broken build.
    pub(super) fn plain(&mut self) -> anyhow::Result<&mut Xdp> {
        object::program(self.newest())
    }

    /// The tracing program with the features in use, which this function loads if necessary.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program.
    pub(super) fn telling(&mut self) -> anyhow::Result<&mut Xdp> {
        loaded_telling(self.newest())
    }

    /// The object with the programs in use.
    pub(super) fn newest(&mut self) -> &mut Ebpf {
        self.richer.as_mut().unwrap_or(&mut self.object)
    }

    /// Loads programs that have `features` in addition to those in use: the plain program, and the tracing program if
    /// it `tells`. `None`: the programs in use have these features. Until [`adopt`](Self::adopt), nothing changes.
    ///
    /// # Errors
    /// Fails if the kernel refuses a program or a map.
    pub(super) fn richer(&self, features: Features, tells: bool) -> anyhow::Result<Option<Richer>> {
        let present = self.in_use.get();
        if present.has(features) {
            return Ok(None);
        }
        self.beside(present | features, &[], tells).map(Some)
    }

    /// Loads programs with the features in use and with larger maps. Until [`adopt`](Self::adopt), nothing changes.
    ///
    /// # Errors
    /// Fails if the kernel refuses a program or a map.
    pub(super) fn larger(&self, growth: &Growth, tells: bool) -> anyhow::Result<Richer> {
        self.beside(self.in_use.get(), &growth.maps, tells)
    }

    /// Loads programs with these features and with these larger maps beside the present ones.
    fn beside(&self, features: Features, larger: &[MapSize], tells: bool) -> anyhow::Result<Richer> {
        let (mut object, maps) = self.another(features.bits(), larger)?;
        load_program(PLAIN, object::program(&mut object)?)?;
        classifiers::load_that_read_rows(&mut object)?;
        let mut richer = Richer { object, features, maps };
        if tells {
            richer.program(true)?;
        }
        Ok(richer)
    }

    /// Makes these programs the programs in use. The caller has attached them wherever the present ones are attached.
    pub(super) fn adopt(&mut self, Richer { object, features, maps }: Richer) {
        self.richer = Some(object);
        self.maps.extend(maps);
        classifiers::unload_that_read_rows(&mut self.object);
        for of in [object::program, telling::program] {
            if let Ok(program) = of(&mut self.object) {
                // A program that is not loaded needs no memory either.
                let _not_loaded = program.unload();
            }
        }
        self.in_use.set(features);
    }

    /// Parses the object once more, with other features, with these larger maps, which the function also returns, and
    /// with the same maps otherwise.
    fn another(&self, features: u64, larger: &[MapSize]) -> anyhow::Result<(Ebpf, HashMap<String, OwnedFd>)> {
        let mut loader = EbpfLoader::new();
        self.constants.set(&mut loader, &features);
        for name in self.maps.keys() {
            // The maps that the loader makes are replaced below, so each has as little room as the kernel allows.
            loader.map_max_entries(name, 1);
        }
        for (name, entries) in larger.iter().filter_map(|map| Some((map.name, map.entries?))) {
            loader.map_max_entries(name, entries);
        }
        let object = loader.load(OBJECT).map_err(|error| not_loaded(error, larger))?;
        let mut maps = HashMap::new();
        for (name, map) in object.maps().filter(|(name, _)| !holds_constants(name)) {
            if larger.iter().any(|larger| larger.name == name) {
                maps.insert(name.to_owned(), data(map)?.fd().as_fd().try_clone_to_owned()?);
                continue;
            }
            let shared = self.maps.get(name).with_context(|| format!("the kernel object holds no map {name}"))?;
            replace(data(map)?.fd().as_fd(), shared.as_fd()).with_context(|| format!("sharing the map {name}"))?;
        }
        Ok((object, maps))
    }
}

/// The tracing program of an object, which this function loads if necessary.
fn loaded_telling(object: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    let program = telling::program(object)?;
    if program.fd().is_err() {
        load_program(telling::PROGRAM, program)?;
    }
    Ok(program)
}

fn holds_constants(map: &str) -> bool {
    map.starts_with(".rodata")
}

/// Makes the descriptor `place`, which the instructions of a program name, refer to the map `map`.
fn replace(place: BorrowedFd<'_>, map: BorrowedFd<'_>) -> anyhow::Result<()> {
    // SAFETY: both descriptors are open. `place` remains the descriptor of a BPF map which its owner alone closes; the
    // map that it named before has no other user.
    let result = unsafe { libc::dup3(map.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// A map of the object, of any of the types that the object has.
fn data(map: &Map) -> anyhow::Result<&MapData> {
    if let Map::Array(data)
    | Map::HashMap(data)
    | Map::LpmTrie(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::PerfEventArray(data)
    | Map::RingBuf(data) = map
    {
        Ok(data)
    } else {
        bail!("the kernel object holds a map of another type")
    }
}
