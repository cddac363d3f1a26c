//! Startup, which turns a configuration into a serving balancer.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use balancer_common::features::Features;
use balancer_config::{
    config::{Config, OnExit},
    deny::DenyList,
    validate::Valid,
    words::counted,
};
use balancer_control::{
    features::words,
    io::Event,
    readiness::{FleetFacts, Stage},
};
use balancer_dataplane::{Capacity, Dataplane as _, KernelDataplane, Pins};
use balancer_listeners::{
    api_server::{Answering, ControlSocket},
    audit::Audit,
    configuration::Configurations,
    metrics, reload,
    statistics::Statistics,
};
use balancer_netlink::neighbours::DefaultHopThread;
use balancer_runtime::{
    events::Events,
    service_manager::ServiceManager,
    shutdown::Signals,
    supervisor::{Endings, Supervisor},
};
use balancer_sources::{
    followed_files::{Files, follow},
    list_sources::{FirstLists, ListSources},
};
use balancer_state::state_file::Occasion;
use nix::sys::socket::SockaddrStorage;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use super::{
    FIRST_NEXT_HOPS, Launch,
    inbox::Inbox,
    preparation::{Loading, Prepared},
    running::{Api, EVENTS, Ring, Running},
    waiting::{self, AsRead},
};
use crate::{
    fleet::{self, Fleet},
    flows,
    host::{Host, Surroundings},
    kernel_log, near_clients,
    owner::Owner,
    persistence::Persistence,
    resume::{Resumed, resume},
};

/// The resources that must exist before the balancer loads the program and that may be unavailable.
pub(super) struct Startup {
    config: Config,
    named: Vec<String>,
    file: PathBuf,
    configurations: Configurations,
    supervisor: Supervisor,
    endings: Endings,
    signals: Signals,
    hangup: Signal,
    ifindexes: Vec<u32>,
    socket: ControlSocket,
    readers: Option<ControlSocket>,
    /// The pins, which will outlive this process or have outlived an earlier process.
    pins: Option<Pins>,
    resumed: Resumed,
    /// This balancer as a member of the fleet, if there is a fleet.
    fleet: Option<Fleet>,
    metrics: Option<TcpListener>,
}

impl Startup {
    /// Prepares the start; returns `None` if a signal arrived before an interface for the program existed.
    pub(super) async fn new(launch: Launch) -> anyhow::Result<Option<Self>> {
        let Launch { config, as_written, named, file, configurations } = launch;
        if let Some(fleet) = &config.fleet {
            // An invalid member name must be reported before anything is set up.
            fleet.member_name().map_err(anyhow::Error::msg)?;
        }
        let (supervisor, endings) = Supervisor::new();
        let mut signals = Signals::new().context("catching signals")?;
        let hangup = signal(SignalKind::hangup()).context("catching SIGHUP")?;
        let as_read = AsRead { config: &as_written, file: &file, configurations: &configurations };
        let Some(ifindexes) = waiting::interfaces(&config.interfaces, as_read, &mut signals).await? else {
            return Ok(None);
        };
        let control = &config.control;
        let socket = ControlSocket::bind(&control.socket, control.group.as_deref()).await?;
        let readers = match &control.readers {
            Some(group) => Some(ControlSocket::bind_readers(&control.socket, group).await?),
            None => None,
        };
        let pins = pins(&config)?;
        let mut resumed = resume(&config, as_written, pins.as_ref())?;
        let fleet = match &config.fleet {
            Some(settings) => Some(resumed.join(settings, &config, pins.as_ref(), &supervisor).await?),
            None => None,
        };
        let metrics = match config.metrics_listen {
            // If the balancer cannot bind the listener at the start, it does the same as a running balancer: it serves
            // in degraded state, and retries.
            Some(listen) => metrics::bind(listen).await.ok(),
            None => None,
        };
        Ok(Some(Self {
            config,
            named,
            file,
            configurations,
            supervisor,
            endings,
            signals,
            hangup,
            ifindexes,
            socket,
            readers,
            pins,
            resumed,
            fleet,
            metrics,
        }))
    }

    /// Loads the kernel program, fills its maps, and attaches it.
    pub(super) async fn finish(self) -> anyhow::Result<Running> {
        let Self {
            config,
            named,
            file,
            configurations,
            supervisor,
            endings,
            signals,
            hangup,
            ifindexes,
            socket,
            readers,
            pins,
            resumed,
            mut fleet,
            metrics,
        } = self;
        let outlives = pins.is_some();
        let Resumed {
            mut controller,
            removed_backends,
            repeated_moves,
            withdrawn,
            file: mut state_file,
            epoch,
            mut largest,
            ..
        } = resumed;
        let (services, _) = controller.with_drop_ins(config.services.clone());
        let lists = FirstLists::read(&services).await;
        for (service, list) in services.iter().flat_map(|of| of.discover.iter().map(move |list| (of, list))) {
            largest.expect_targets(&service.name, &list.source, lists.targets(&list.source));
        }
        let capacity = Capacity::for_largest(&config, &largest);
        controller.name_interfaces(named);
        controller.set_backend_rows(capacity.backends);
        let instance = controller.instance();
        let own = own_addresses();
        let fleets = fleet.as_ref().and_then(Fleet::first_state).map_or(Features::NONE, |state| state.features(&own));
        let features = controller.features_with(own) | fleets;
        let loading = Loading::begin(capacity, features, ifindexes, pins, &supervisor);
        let (mut dataplane, prepared) = loading.meanwhile(controller, &supervisor).await?;
        let Prepared { beginning, neighbours, prober, mut events, found } = prepared;
        tell_of(&mut dataplane, &services, capacity);
        let inherited = dataplane.kept().notes().map(|notes| notes.host.clone()).unwrap_or_default();
        let (neighbours_wanted, suspects) = (dataplane.take_neighbours_wanted()?, dataplane.take_suspects()?);
        let (samples, handshakes) = (dataplane.take_samples()?, dataplane.handshake_record());
        let default_hops = dataplane.take_default_hops()?;
        if kernel_log::wanted() {
            kernel_log::read(&mut dataplane, &supervisor)?;
        }
        dataplane.sample_every(config.statistics.sample_interval);
        let (wanted, suspects) = (Ring::new(neighbours_wanted)?, Ring::new(suspects)?);

        let files = Files::<DenyList>::of(&services).await;
        let (senders, inbox) = Inbox::new();
        let (mut devices, mut layers) = (neighbours.devices(), neighbours.layers());
        let member = fleet.as_ref().map(|fleet| fleet.name().to_owned());
        let history = Events::beside(&config.state_file, member, &supervisor);
        let patience = beginning.at() + FIRST_NEXT_HOPS;
        prober.tell_words(senders.loads.clone());
        let mut owner = Owner::new(beginning, dataplane, neighbours, prober, history.clone());
        owner.take_over_counters(removed_backends, repeated_moves);
        owner.take_over_withdrawn(withdrawn);
        owner.set_room(capacity.most_room());
        owner.set_fleet(config.fleet.as_ref().map(|fleet| FleetFacts::stranger(fleet.when_alone)));
        owner.start()?;
        if let Some(epoch) = epoch {
            owner.set_epoch(epoch);
        }
        if let Some(fleet) = &mut fleet {
            fleet.set_file(&file);
            fleet.set_room(capacity.most_room());
            fleet.catch_up(&mut owner);
        }
        // The owner applies the deny lists before the first packet arrives.
        files.all().for_each(|(file, read)| owner.deny_file_was_read(file, read));
        owner.begin_lists();
        // A member of a fleet reads the lists of targets only after it has become the leader.
        owner.read_lists(fleet.is_none());
        let mut list_files = Files::default();
        if fleet.is_none() {
            let (reads, files) = lists.into_reads();
            reads.into_iter().for_each(|(source, read)| owner.list_was_read(source, read));
            list_files = files;
        }
        owner.begin_discovery();
        await_next_hops(&mut owner, found, &mut events, patience).await;
        owner.dataplane().set_layers(layers.borrow_and_update().clone());
        owner.dataplane().set_devices(&devices.borrow_and_update())?;
        // The balancer saves the state before it creates pins, because pins could not be identified without the state.
        state_file.keep(owner.restorable(), Occasion::Whole)?;
        let ends = owner.dataplane().take_host_ends(instance, &config.state_file)?;
        let answering =
            Answering::new(senders.calls.clone(), configurations.clone().of(file.clone()), Audit::new(&supervisor));
        let audit = answering.audit().clone();
        let surroundings = Surroundings {
            ends,
            state_file: config.state_file.clone(),
            inherited,
            events: history.clone(),
            calls: senders.calls.clone(),
            metrics,
            socket: config.control.socket.clone(),
            readers,
            answering: answering.clone(),
            supervisor: supervisor.clone(),
        };
        let mut host = Host::start(owner.wanted(), surroundings).await?;
        let default_hops = DefaultHopThread::spawn(default_hops, &supervisor)?;
        owner.set_present(host.present());
        owner.set_stage(Stage::Serving);
        owner.tell_readiness();
        let statistics = Arc::new(if outlives {
            let adopted = owner.dataplane().kept().adopted();
            Statistics::beside(config.statistics, &config.state_file, adopted, &supervisor)
        } else {
            Statistics::new(config.statistics)
        });
        statistics.tell(history.clone());
        let watch = Arc::clone(&statistics).watch(samples, senders.calls.clone());
        let watching = supervisor.attend("the keeping of statistics", watch);
        let near =
            near_clients::watch(handshakes, owner.neighbours().near(), senders.tasks.clone(), Arc::clone(&statistics));
        let finding = supervisor.attend("the search for clients on backends' links", near);
        let api = Api::serve(socket, answering, &supervisor);
        let table = owner.dataplane().flows();
        let counting = (table.capacity() > 0)
            .then(|| supervisor.attend("the counting of connections", flows::watch(table, senders.tasks.clone())));
        let telling = fleet.as_ref().map(|_| {
            supervisor
                .attend("the telling of statistics", fleet::tell_tallies(senders.calls.clone(), senders.tasks.clone()))
        });
        let (deny_files, wanted_files) = watch::channel(owner.deny_files());
        let denying =
            supervisor.attend("the reading of denied prefixes", follow(files, wanted_files, senders.reads.clone()));
        let lists = ListSources::follow(owner.wanted_lists(), list_files, senders.reads.clone(), &supervisor);
        let (agents, wanted_agents) = watch::channel(owner.agents(fleet.is_none()));
        let asking = supervisor
            .attend("the asking of agents", balancer_checks::agents::follow(wanted_agents, senders.loads.clone()));
        let reload = reload::follow(hangup, senders.calls.clone(), configurations, file, audit);
        let reloads = supervisor.attend("the reading of the configuration", reload);
        let count = counted(services.len(), "service");
        history.note(&format!("serving {count}, control socket {}", config.control.socket.display()));
        Ok(Running {
            manager: ServiceManager::ready(services.len()),
            settings: config.statistics,
            state_file: config.state_file,
            persistence: Persistence::new(state_file),
            signals,
            events,
            inbox,
            layers,
            devices,
            wanted,
            suspects,
            history,
            reloads,
            deny_files,
            denying,
            default_hops,
            lists,
            agents,
            asking,
            tasks: senders.tasks,
            watching,
            finding,
            counting,
            telling,
            api,
            host,
            statistics,
            fleet,
            owner,
            endings,
            supervisor,
        })
    }
}

/// The addresses of this machine, as far as they can be read.
fn own_addresses() -> BTreeSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    all.filter_map(ip).collect()
}

/// Logs the capacity of the maps, and which process has left the maps, if any.
fn tell_of(dataplane: &mut KernelDataplane, services: &Valid, capacity: Capacity) {
    if let Some(notes) = dataplane.kept().notes() {
        info!("took over the maps that process {} left: known clients, counters and connections", notes.process);
    }
    info!("the kernel program is loaded for {}", words(dataplane.features()));
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    info!("the kernel's maps take {:.1} MiB", mebibytes(dataplane.map_bytes()));
    if services.iter().all(|service| service.remember.is_zero()) {
        return;
    }
    let table = mebibytes(capacity.client_table_bytes());
    info!("client table for {} known clients: {table:.1} MiB", capacity.clients);
}

/// The pins to create or to take over; `None` if the data path will not outlive this process and has not outlived an
/// earlier process.
fn pins(config: &Config) -> anyhow::Result<Option<Pins>> {
    let left = Pins::find(&config.state_file)?;
    match config.on_exit {
        OnExit::Keep if left.is_none() => Pins::create(&config.state_file).map(Some),
        OnExit::Keep | OnExit::Detach => Ok(left),
    }
}

/// Handles `found` and later events until the next hop of every backend is known or impossible, or until `deadline`.
async fn await_next_hops(
    owner: &mut Owner<KernelDataplane>,
    mut found: Vec<Event>,
    events: &mut mpsc::Receiver<Event>,
    deadline: Instant,
) {
    let mut missing: HashSet<IpAddr> = owner.addresses().collect();
    loop {
        for event in &found {
            if let Event::NextHop { address, .. } = event {
                missing.remove(address);
            }
        }
        owner.handle_all(found.drain(..));
        if missing.is_empty() {
            return;
        }
        if !matches!(timeout_at(deadline, events.recv_many(&mut found, EVENTS)).await, Ok(1..)) {
            warn!("{} next hops are not resolved yet", missing.len());
            return;
        }
    }
}
