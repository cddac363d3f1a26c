//! Starts the data path: first the object with its parameters, then the maps, then the programs.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context as _;
use aya::EbpfLoader;
use aya_log::Level;
use balancer_common::{
    features::Features,
    map_types::{Control, LAYOUT_VERSION, SAMPLE_INTERVAL, SLOTS_PER_LINE, WATCH_NO_HANDSHAKE},
    service_table::TableView,
};
use bytemuck::Zeroable as _;
use nix::unistd::{SysconfVar, sysconf};

use super::{KernelDataplane, TAKEN};
use crate::{
    OBJECT,
    backends::Backends,
    budgets::Budgets,
    capacity::{Capacity, NOBODY},
    classifiers,
    clients::ClientTable,
    counter_rows::Cpus,
    counters::{Counters, interface_multiplier},
    devices::DeviceTable,
    direct::{self, DIRECT},
    flows::{FlowMaps, FormerFlows},
    former_clients::FormerClients,
    grace::GracePeriods,
    halves::Halves,
    handshakes::{Handshakes, UnansweredHandshakes},
    interfaces::{Interfaces, WaysIn},
    kept::{Kept, second},
    load::not_loaded,
    map_sizes::{self, CLIENTS},
    mapped::MappedArray,
    object::take,
    peers::Peers,
    pins::{self, Pins},
    programs::{Constants, Programs},
    quic::QuicTable,
    redirects::{self, RedirectErrors, Whose},
    replaced::Replaced,
    rules::RuleTable,
    scanner::Scanner,
    seen::Seen,
    signs::SignTable,
    stickiness::Stickiness,
    tables::Tables,
    threads::{Threads, Unwatched},
};

/// The parameters for the kernel program and its maps.
struct Parameters<'a> {
    capacity: &'a Capacity,
    /// The number of interfaces of this network namespace.
    interfaces: usize,
    constants: Constants,
    features: Features,
    /// The size of the log's ring buffer in bytes.
    log_size: u32,
}

impl KernelDataplane {
    /// Loads the program with all features, and makes maps that end with this process. The program is not attached yet,
    /// so the call affects no packet.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program or a map.
    pub fn load(capacity: Capacity, ifindexes: &[u32]) -> anyhow::Result<Self> {
        Self::load_with_features(capacity, ifindexes, Features::ALL)
    }

    /// Loads a program that has only the code for `features`, and makes maps that end with this process.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program or a map.
    pub fn load_with_features(capacity: Capacity, ifindexes: &[u32], features: Features) -> anyhow::Result<Self> {
        Self::load_kept(capacity, ifindexes, None, false, &Unwatched, features)
    }

    /// Loads the program with `features`. The maps that outlive a controller come from `pins`, or are pinned in them.
    /// `tells` says whether the program logs rare and unexpected events; this setting cannot change later.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program or a map.
    pub fn load_kept(
        capacity: Capacity,
        ifindexes: &[u32],
        pins: Option<Pins>,
        tells: bool,
        threads: &dyn Threads,
        features: Features,
    ) -> anyhow::Result<Self> {
        Self::load_limited(capacity, ifindexes, pins, tells, threads, (features, Budgets::here()))
    }

    /// Loads the program with these features, and with other limits for each CPU.
    ///
    /// # Errors
    /// Fails if the kernel refuses the program or a map.
    pub fn load_limited(
        capacity: Capacity,
        ifindexes: &[u32],
        pins: Option<Pins>,
        tells: bool,
        threads: &dyn Threads,
        (features, budgets): (Features, Budgets),
    ) -> anyhow::Result<Self> {
        let multiplier_left = pins.as_ref().and_then(Pins::left).map(|notes| notes.interface_multiplier);
        let others = all_interfaces();
        let interface_multiplier = interface_multiplier(ifindexes, &others, multiplier_left)?;
        let buckets = capacity.buckets();
        let handover_key = classifiers::draw_key()?;
        let (log_level, log_size) = log_settings(tells)?;
        let constants = Constants {
            budgets,
            interface_multiplier,
            client_bucket_mask: buckets - 1,
            log_level,
            handover_key,
            counted: capacity.counted,
            whose: Whose::here(),
        };
        let counts_redirects = constants.whose.is_some();
        let parameters = Parameters { capacity: &capacity, interfaces: others.len(), constants, features, log_size };
        let mut former_clients = FormerClients::find(pins.as_ref(), buckets)?;
        let mut former_flows = FormerFlows::find(pins.as_ref(), &capacity)?;
        let former = (former_clients.as_ref(), former_flows.as_ref());
        let (mut programs, map_bytes) = parameters.load(pins.as_ref(), former)?;
        let ebpf = programs.object();

        let handshakes = Handshakes::new(take(ebpf, "HANDSHAKES")?)?;
        let mut control = MappedArray::new(take(ebpf, "CONTROL")?)?;
        let kept = Kept::new(ebpf, pins)?;
        direct::prepare(second(ebpf, DIRECT)?)?;
        let seen = Seen::new(MappedArray::new(take(ebpf, "SEEN")?)?, buckets, kept.elapsed_before());
        control.store(0, first_control(seen.salt()));
        let grace_periods = Arc::new(GracePeriods::spawn(threads)?);
        let lines = capacity.slots.div_ceil(SLOTS_PER_LINE);
        let tables = Tables::new(MappedArray::new(take(ebpf, "SLOTS")?)?, lines, Arc::clone(&grace_periods));
        let known = MappedArray::new(take(ebpf, CLIENTS)?)?;
        if let Some(former) = former_clients.as_mut().filter(|_| capacity.clients != NOBODY) {
            former.copy_to(known.words());
        }
        let clients = ClientTable::new(known, capacity.backends as usize);
        let flows = FlowMaps::new(ebpf, &capacity)?;
        if let Some(former) = &mut former_flows {
            former.copy_to(&flows.table());
        }
        let stickiness = Stickiness::new(tables, clients, Scanner::spawn(threads)?, Arc::clone(&grace_periods));
        let mut this = Self {
            control,
            listeners: Halves::new(take(ebpf, "LISTENERS")?)?,
            ranges: Halves::new(take(ebpf, "RANGES")?)?,
            services: Halves::new(take(ebpf, "SERVICES")?)?,
            returns: Halves::new(take(ebpf, "RETURNS")?)?,
            backends: Backends::new(take(ebpf, "BACKENDS")?, Arc::clone(&grace_periods))?,
            interfaces: Interfaces::new(take(ebpf, "INTERFACES")?, interface_multiplier, ifindexes)?,
            ways_in: WaysIn::default(),
            counters: Counters::new(ebpf, capacity.counted, interface_multiplier)?,
            stickiness,
            reported: Arc::default(),
            former_clients,
            former_flows,
            seen,
            rules: RuleTable::new(ebpf, &kept)?,
            capacity,
            map_bytes,
            directory: Vec::new(),
            settled: None,
            former: HashMap::new(),
            rescan: None,
            elapsed: kept.elapsed_before(),
            grace_periods,
            published: None,
            attached: Vec::new(),
            handover_key,
            replies: Arc::default(),
            devices: DeviceTable::new(ebpf)?,
            peers: Peers::new(ebpf)?,
            redirect_errors: RedirectErrors::new(ebpf)?,
            flows,
            quic: QuicTable::new(ebpf)?,
            signs: SignTable::new(take(ebpf, "SIGNS")?, UnansweredHandshakes::new(handshakes.clone()))?,
            handshakes,
            kept,
            sharing: None,
            in_use: programs.in_use(),
            programs: Some(programs),
            growing: None,
        };
        if multiplier_left.is_some_and(|left| left != interface_multiplier) {
            this.counters.forget_interfaces()?;
        }
        let programs = this.programs.as_mut().context(TAKEN)?;
        programs.load()?;
        classifiers::load(programs.object())?;
        if counts_redirects {
            redirects::attach(programs.object())?;
        }
        Ok(this)
    }
}

impl Parameters<'_> {
    /// Makes the maps of the program, or takes the pinned maps. The function also returns the total size of the maps in
    /// bytes.
    fn load(
        self,
        pins: Option<&Pins>,
        (former_clients, former_flows): (Option<&FormerClients>, Option<&FormerFlows>),
    ) -> anyhow::Result<(Programs, u64)> {
        let Self { capacity, interfaces, constants, features, log_size } = self;
        let cpus = Cpus::here()?;
        let (replaced, counters) = Replaced::before_load(pins, capacity, cpus)?;
        let sizes = map_sizes::sizes(capacity, &counters, cpus, interfaces);
        let mut loader = EbpfLoader::new();
        for (name, path) in pins.iter().flat_map(|pins| pins::MAPS.map(|name| (name, pins.map(name)))) {
            loader.map_pin_path(name, replaced.path(name).unwrap_or(path));
        }
        if let Some(former) = former_clients {
            loader.map_pin_path(CLIENTS, former.path());
        }
        for (name, path) in former_flows.iter().flat_map(|former| former.paths()) {
            loader.map_pin_path(name, path);
        }
        let bits = features.bits();
        constants.set(&mut loader, &bits);
        loader.map_max_entries("AYA_LOGS", log_size);
        for map in &sizes {
            if let Some(entries) = map.entries {
                loader.map_max_entries(map.name, entries);
            }
        }
        let ebpf = loader.load(OBJECT).map_err(|error| not_loaded(error, &sizes))?;
        replaced.carry_over()?;
        drop(loader);
        Ok((Programs::new(ebpf, constants, features)?, map_sizes::total(&sizes)))
    }
}

/// The indices of all interfaces in this network namespace; empty if they cannot be read.
fn all_interfaces() -> Vec<u32> {
    let all = nix::net::if_::if_nameindex().ok();
    all.iter().flat_map(|all| all.iter()).map(|interface| interface.index()).collect()
}

/// The level of the program's log, and the size of the log's ring buffer in bytes, which must be whole pages.
fn log_settings(tells: bool) -> anyhow::Result<(u8, u32)> {
    if tells {
        return Ok((Level::Debug as u8, 1 << 17));
    }
    let page = sysconf(SysconfVar::PAGE_SIZE).context("the size of a page")?.context("the size of a page")?;
    Ok((0, u32::try_from(page)?))
}

/// The control words before the first publication: views of two empty tables, which are valid.
fn first_control(seen_salt: u64) -> Control {
    let view = TableView { base: 0, bits: 1, factor: 1 }.to_word();
    Control {
        listeners: view,
        returns: view,
        seen_salt,
        layout_version: LAYOUT_VERSION,
        sample_interval: SAMPLE_INTERVAL,
        unsampled: WATCH_NO_HANDSHAKE,
        ..Control::zeroed()
    }
}
