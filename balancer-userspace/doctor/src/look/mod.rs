//! Gathers facts from the controller, the kernel, neighbours and backends. The module changes nothing on the machine.

mod attempt;
mod filters;
mod machine;
mod netlink;
mod packets;
mod pretend;
mod probe;
mod ways_back;
mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use balancer_api::{
    client::{Client, ClientError},
    model::{BackendView, HealthView, ServiceView},
    statistics::TopQuery,
};
use balancer_common::map_types::Forwarding;
use balancer_config::{
    config::{Protocol, XdpMode},
    listeners::Listener,
};
use balancer_netlink::xdp_features::{self, RUNS_PROGRAMS, TAKES_FRAMES};

use tokio::time::timeout;

pub use self::attempt::Clients;
use self::{
    netlink::Netlink,
    packets::Outer,
    probe::{Asked, Entries, MOST, Target},
    wire::Wire,
};
use crate::{
    facts::{
        Address, Backend, Controller, Duplicates, Facts, Hanging, Link, Neighbour, Outcome, Pool, Vip, Way, XdpFeatures,
    },
    finding::Unseen,
};

/// The time after which the doctor assumes that the controller does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gathers the facts about one service, or about all services. With `clients`, the doctor also sends requests to connect
/// like those of these clients. If there is no controller, that is no error.
///
/// # Errors
/// Fails if the controller does not know the service, or if the controller's answer is malformed.
pub async fn look(
    client: &Client,
    socket: &Path,
    service: Option<&str>,
    clients: Option<Clients>,
) -> Result<Facts, ClientError> {
    let (kernel, kernel_build) = machine::kernel();
    let mut facts = Facts { kernel, kernel_build, ..Facts::default() };
    let mut services = match timeout(PATIENCE, client.status()).await {
        Ok(Ok(status)) => {
            let services = status.services.clone();
            facts.controller = Some(controller(client, status).await?);
            services
        }
        Ok(Err(ClientError::Unreachable { .. })) => Vec::new(),
        Ok(Err(error)) => return Err(error),
        Err(_elapsed) => {
            let pid = machine::controller(socket).ok();
            let stopped = pid.is_some_and(machine::is_stopped);
            facts.hanging = Some(Hanging { pid, stopped, waited_seconds: PATIENCE.as_secs() });
            Vec::new()
        }
    };
    if let Some(name) = service
        && facts.controller.is_some()
    {
        services = vec![client.service(name).await?];
    }
    enter(socket, &mut facts);
    if let Err(error) = ask_kernel(&mut facts).await {
        facts.unseen.push(Unseen::new("interfaces, routes and neighbours", format!("{error:#}")));
        return Ok(facts);
    }
    if facts.controller.is_some() {
        find_clients(client, &mut facts).await;
        let probed = look_at_services(client, &mut facts, &services).await;
        // The second status also shows problems that occurred during the examination.
        let (after, health) = (client.status().await?, client.health(None).await?);
        if let Some(controller) = &mut facts.controller {
            (controller.after, controller.health) = (after, health);
        }
        // The program may drop answers to these requests, which the status must not count as those to clients.
        if let (Some(clients), Some((mut wire, targets))) = (clients, probed) {
            attempt::attempt(client, &mut wire, &targets, clients, &mut facts).await;
        }
    }
    Ok(facts)
}

/// Sends requests to connect like those of a recently seen client to the backends of a service, and gathers only the
/// facts about these.
///
/// # Errors
/// Fails if there is no controller, or if it does not know the service.
pub async fn try_service(client: &Client, socket: &Path, service: &str) -> Result<Facts, ClientError> {
    let mut facts = Facts { controller: Some(controller(client, client.status().await?).await?), ..Facts::default() };
    let services = [client.service(service).await?];
    enter(socket, &mut facts);
    find_clients(client, &mut facts).await;
    if let Err(error) = prepare(&mut facts, &services).await {
        facts.unseen.push(Unseen::new("interfaces, routes and neighbours", format!("{error:#}")));
        return Ok(facts);
    }
    if let (Ok((targets, _)), Ok(mut wire)) = (plan(&mut facts, &services).await, Wire::open()) {
        attempt::attempt(client, &mut wire, &targets, Clients::Seen, &mut facts).await;
    }
    Ok(facts)
}

/// Reads the interfaces and addresses of this machine, and the ways to the backends.
async fn prepare(facts: &mut Facts, services: &[ServiceView]) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    facts.addresses = netlink.addresses().await?;
    facts.links = netlink.links().await?;
    name_subjects(facts, services);
    ways(facts).await
}

/// Adds the backends and the VIPs of services.
fn name_subjects(facts: &mut Facts, services: &[ServiceView]) {
    let health = facts.controller.as_ref().map(|of| of.health.as_slice()).unwrap_or_default();
    facts.backends = services.iter().flat_map(|service| backends(service, health)).collect();
    facts.vips = services.iter().flat_map(vips).collect();
}

async fn controller(client: &Client, status: balancer_api::model::StatusView) -> Result<Controller, ClientError> {
    Ok(Controller {
        after: status.clone(),
        before: status,
        health: client.health(None).await?,
        rules: client.rules(None).await?,
        asks_generic: None,
        clients: None,
        client: None,
        oom_kills: None,
    })
}

/// Moves the doctor to the network namespace of the controller.
fn enter(socket: &Path, facts: &mut Facts) {
    if facts.controller.is_none() && facts.hanging.is_none() {
        return;
    }
    let pid = match machine::controller(socket) {
        Ok(pid) => pid,
        Err(error) => {
            return facts.unseen.push(Unseen::new("the controller's process", error.to_string()));
        }
    };
    if let Err(error) = machine::enter_network_of(pid) {
        let why = format!("{error}; what follows is of this process's own network namespace");
        facts.unseen.push(Unseen::new("the network namespace of the controller", why));
    }
    match machine::configuration(pid) {
        Ok(config) => {
            if let Some(controller) = &mut facts.controller {
                controller.asks_generic = Some(config.xdp_mode == XdpMode::Generic);
            }
            for service in config.services.iter().filter(|service| service.forwarding == Forwarding::Snat) {
                let ports = service.snat.ports;
                let pool = |&address: &IpAddr| Pool { service: service.name.clone(), address, ports };
                facts.pools.extend(service.snat.addresses.iter().map(pool));
            }
        }
        Err(error) => {
            let what = "the XDP mode and the addresses of `snat` that the configuration asks for";
            facts.unseen.push(Unseen::new(what, error.to_string()));
        }
    }
    match machine::oom_kills(pid) {
        Ok(count) => {
            if let Some(controller) = &mut facts.controller {
                controller.oom_kills = count;
            }
        }
        Err(error) => facts.unseen.push(Unseen::new("the memory of the controller's control group", error.to_string())),
    }
}

async fn ask_kernel(facts: &mut Facts) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    facts.addresses = netlink.addresses().await?;
    facts.links = netlink.links().await?;
    let names = machine::programs();
    if let Err(error) = &names {
        facts.unseen.push(Unseen::new("the names of XDP programs", error.clone()));
    }
    let names = names.unwrap_or_default();
    let features = xdp_features::of_interfaces();
    if let Err(error) = &features {
        facts.unseen.push(Unseen::new("what drivers can do with XDP", error.to_string()));
    }
    let features = features.unwrap_or_default();
    match filters::chains() {
        Ok(chains) => facts.filters.chains = Some(chains),
        Err(error) => facts.unseen.push(Unseen::new("the rules of the firewall", error.to_string())),
    }
    facts.filters.legacy = filters::has_legacy_tables();
    for link in &mut facts.links {
        link.xdp = features.get(&link.ifindex).map(|bits| XdpFeatures {
            runs_programs: bits & RUNS_PROGRAMS != 0,
            takes_frames: bits & TAKES_FRAMES != 0,
        });
        for program in &mut link.programs {
            program.name = names.get(&program.id).cloned();
        }
        link.forwards = machine::forwards(&link.name);
        link.answers_for_all = machine::answers_for_all(&link.name);
        match machine::offloads(&link.name) {
            Ok(offloads) => link.offloads = Some(offloads),
            Err(error) => {
                facts.unseen.push(Unseen::new(format!("the offloads of {}", link.name), error.to_string()));
            }
        }
    }
    Ok(())
}

/// Examines services. Returns the socket and the backends that it has probed; `None` if it could probe none.
async fn look_at_services(client: &Client, facts: &mut Facts, services: &[ServiceView]) -> Option<(Wire, Vec<Target>)> {
    name_subjects(facts, services);
    if let Err(error) = ways(facts).await {
        facts.unseen.push(Unseen::new("the ways to the backends", format!("{error:#}")));
        return None;
    }
    ways_back::find(client, facts, services).await;
    let probed = match Wire::open() {
        Ok(mut wire) => {
            let (targets, asked) = plan(facts, services).await.ok()?;
            probe::probe(&mut wire, &targets, &asked, facts).await;
            find_filters(facts);
            Some((wire, targets))
        }
        Err(error) => {
            let why = format!("{error}; run it as root, or with CAP_NET_RAW");
            facts.unseen.push(Unseen::new("neighbours, and what probes meet", why));
            None
        }
    };
    if let Err(error) = look_again(facts).await {
        facts.unseen.push(Unseen::new("IPv6 neighbours and addresses", format!("{error:#}")));
    }
    probed
}

/// Adds the filters of `tc` on the interfaces towards backends with which this machine's connections fail.
fn find_filters(facts: &mut Facts) {
    let stuck = |backend: &&Backend| {
        backend.direct.as_ref().is_some_and(|direct| direct.outcome == Outcome::Silent && (direct.came || !direct.left))
    };
    let stuck = facts.backends.iter().filter(stuck).filter_map(|backend| Some(Target::way(backend)?.0));
    let mut interfaces: Vec<u32> = stuck.collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    for ifindex in interfaces {
        let Some(name) = facts.link(ifindex).map(|link| link.name.clone()) else { continue };
        match filters::on_interface(ifindex, &name) {
            Ok(filters) => facts.filters.tc.extend(filters),
            Err(error) => facts.unseen.push(Unseen::new(format!("filters of tc on {name}"), error.to_string())),
        }
    }
}

/// Asks the kernel again for what changes while it waits for answers from IPv6 neighbours.
async fn look_again(facts: &mut Facts) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    let entries = netlink.neighbours().await?;
    for backend in &mut facts.backends {
        if let Way::Known { ifindex, next_hop: next_hop @ IpAddr::V6(_) } = backend.way
            && entries.get(&(ifindex, next_hop)).is_some_and(|entry| entry.silent)
        {
            backend.neighbour = Some(Neighbour::default());
        }
    }
    if facts.addresses.iter().any(|own| own.duplicates == Duplicates::Searching) {
        let now = netlink.addresses().await?;
        for own in facts.addresses.iter_mut().filter(|own| own.duplicates == Duplicates::Searching) {
            let same = |of: &&Address| (of.ifindex, of.address) == (own.ifindex, own.address);
            own.duplicates = now.iter().find(same).map_or(Duplicates::None, |of| of.duplicates);
        }
    }
    Ok(())
}

/// The addresses to which a service sends packets, for each of its backends.
fn backends<'a>(service: &'a ServiceView, health: &'a [HealthView]) -> impl Iterator<Item = Backend> + 'a {
    let in_use = service.backends.iter().filter(|backend| backend.admin != "maint");
    in_use.flat_map(move |backend| {
        let checks = health.iter().filter(|view| view.service == service.name && view.backend == backend.name);
        addresses(backend).map(move |(own, port)| {
            let target = checks.clone().filter_map(|view| view.target.parse::<SocketAddr>().ok());
            let checked = target.clone().find(|target| target.ip() == own);
            let vip = service.listeners.iter().filter_map(|view| view.listener.parse::<Listener>().ok());
            let families = target.count();
            // Inside a tunnel, packets may have the other address family.
            let vip = vip
                .clone()
                .find(|vip| vip.address.is_ipv4() == own.is_ipv4())
                .or_else(|| vip.clone().next().filter(|_| families < 2));
            Backend {
                service: service.name.clone(),
                name: backend.name.clone(),
                forwarding: service.forwarding.clone(),
                address: checked.unwrap_or_else(|| SocketAddr::new(own, port)),
                vip: vip.map(|vip| SocketAddr::new(vip.address, vip.ports.first)),
                way: Way::None("not looked up".to_owned()),
                source: None,
                route_mtu: None,
                neighbour: None,
                direct: None,
                service_probe: None,
                datagram: None,
                path: None,
                replied: false,
                untranslated: Vec::new(),
                attempt: None,
            }
        })
    })
}

/// The addresses of a backend, each with the backend's port, or 0 if it has no port.
fn addresses(backend: &BackendView) -> impl Iterator<Item = (IpAddr, u16)> {
    let families = backend.families.iter().map(|family| family.address.as_str());
    let one = backend.families.is_empty().then_some(backend.address.as_str());
    families.chain(one).filter_map(|text| {
        let with_port = text.parse::<SocketAddr>().map(|at| (at.ip(), at.port()));
        with_port.or_else(|_| text.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| (ip, 0))).ok()
    })
}

fn vips(service: &ServiceView) -> Vec<Vip> {
    let listeners: Vec<Listener> = service.listeners.iter().filter_map(|view| view.listener.parse().ok()).collect();
    let mut addresses: Vec<IpAddr> = listeners.iter().map(|listener| listener.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let vip = |address| Vip {
        service: service.name.clone(),
        address,
        answered: Vec::new(),
        asked: false,
        listeners: listeners.iter().filter(|listener| listener.address == address).copied().collect(),
        unsteered: Vec::new(),
    };
    addresses.into_iter().map(vip).collect()
}

/// Asks the kernel for the route to each backend.
async fn ways(facts: &mut Facts) -> anyhow::Result<()> {
    let netlink = Netlink::connect()?;
    for backend in &mut facts.backends {
        let route = netlink.way(backend.address.ip()).await?;
        (backend.way, backend.source, backend.route_mtu) = (route.way, route.source, route.mtu);
    }
    Ok(())
}

/// Plans the probes: the backends to which the doctor sends packets, and the addresses for which it sends ARP requests.
async fn plan(facts: &mut Facts, services: &[ServiceView]) -> anyhow::Result<(Vec<Target>, Vec<Asked>)> {
    let netlink = Netlink::connect()?;
    let entries = netlink.neighbours().await?;
    let mut targets = Vec::new();
    for index in 0..facts.backends.len() {
        targets.extend(target(facts, services, &entries, index));
    }
    if targets.len() > MOST {
        let what = format!("{} of {} backends", targets.len() - MOST, targets.len());
        facts.unseen.push(Unseen::new(what, format!("doctor probes at most {MOST}: name a service")));
        targets.truncate(MOST);
    }
    for way in &mut facts.ways_back {
        if let Way::Known { ifindex, next_hop: next_hop @ IpAddr::V4(_) } = way.way {
            let entry = entries.get(&(ifindex, next_hop));
            way.neighbour = Some(Neighbour {
                known: entry.and_then(|entry| entry.mac),
                permanent: entry.is_some_and(|entry| entry.permanent),
                answered: Vec::new(),
            });
        }
    }
    let asked = ask_for_vips(facts);
    Ok((targets, asked))
}

fn target(facts: &Facts, services: &[ServiceView], entries: &Entries, index: usize) -> Option<Target> {
    let backend = facts.backends.get(index)?;
    let (ifindex, next_hop) = Target::way(backend)?;
    let service = services.iter().find(|of| of.name == backend.service);
    let link = facts.link(ifindex)?;
    let own_mac = link.mac?;
    let own = backend.address.ip();
    let source = own_address(facts, ifindex, own.is_ipv4(), backend.source)?;
    let outer = Outer::of(&backend.forwarding);
    let is_tcp = services.iter().any(|service| service.name == backend.service && service.protocol == "tcp");
    let vip = backend.vip.filter(|_| backend.has_the_vip());
    let checks = facts.controller.as_ref().map(|of| of.health.as_slice()).unwrap_or_default();
    let checked = checks.iter().any(|view| {
        let same = view.service == backend.service && view.backend == backend.name;
        let by_tcp = ["tcp", "http"].iter().any(|word| view.check.starts_with(word));
        same && by_tcp && view.target == backend.address.to_string() && !view.check.contains(" via service")
    });
    let attached = facts.controller.iter().flat_map(|of| &of.before.interfaces);
    let widest = attached.filter_map(|view| facts.link(view.ifindex)).map(|link| link.mtu).max().unwrap_or(link.mtu);
    let largest = widest.saturating_add(outer.length(own.is_ipv4()) as u32).min(link.mtu);
    let largest = largest.min(backend.route_mtu.unwrap_or(u32::MAX));
    Some(Target {
        index,
        ifindex,
        own_mac,
        next_hop,
        entry: entries.get(&(ifindex, next_hop)).copied(),
        source,
        vip_source: vip.and_then(|vip| own_address(facts, ifindex, vip.is_ipv4(), Some(source))),
        outer,
        direct: checked
            || matches!(backend.forwarding.as_str(), "nat" | "snat") && is_tcp && backend.address.port() != 0,
        vip: vip.map(|vip| (vip, is_tcp && vip.port() != 0)),
        udp: service.and_then(|service| udp_port(service, backend)),
        translated: service.filter(|_| backend.answers_the_balancer()).and_then(|of| tcp_port(of, backend)),
        largest,
    })
}

/// The address and port to which the program sends the datagrams of clients: those of a UDP listener at the VIP that the
/// backend has, or else those of the backend. A backend without a port of its own may get datagrams at another port than
/// that of the listener (`ports`), which the controller does not say.
fn udp_port(service: &ServiceView, backend: &Backend) -> Option<SocketAddr> {
    let listeners = service.listeners.iter().filter_map(|view| view.listener.parse::<Listener>().ok());
    let mut udp = listeners.filter(|of| of.protocol != Protocol::Tcp && of.ports.first != 0);
    if backend.has_the_vip() {
        let at = udp.find(|of| backend.vip.is_some_and(|vip| vip.ip() == of.address))?;
        return Some(SocketAddr::new(at.address, at.ports.first));
    }
    udp.next()?;
    own_port(service, backend)
}

/// The address and TCP port of a `nat` or `snat` backend that answers clients, and whether the program sends them to this
/// port: the controller does not say to which port of a backend without a port of its own.
fn tcp_port(service: &ServiceView, backend: &Backend) -> Option<(SocketAddr, bool)> {
    let mut listeners = service.listeners.iter().filter_map(|view| view.listener.parse::<Listener>().ok());
    listeners.find(|of| of.protocol == Protocol::Tcp)?;
    let checked = (backend.address.port() != 0).then_some((backend.address, false));
    own_port(service, backend).map(|own| (own, true)).or(checked)
}

/// The address of a backend with its port; `None` if the backend has no port of its own.
fn own_port(service: &ServiceView, backend: &Backend) -> Option<SocketAddr> {
    let view = service.backends.iter().find(|view| view.name == backend.name)?;
    let own = backend.address.ip();
    let (_, port) = addresses(view).find(|(address, _)| *address == own)?;
    (port != 0).then(|| SocketAddr::new(own, port))
}

/// An address of this machine that is not a VIP: the preferred address, otherwise an address of the interface,
/// otherwise any address.
fn own_address(facts: &Facts, ifindex: u32, v4: bool, preferred: Option<IpAddr>) -> Option<IpAddr> {
    let is_vip = |address: IpAddr| facts.vips.iter().any(|vip| vip.address == address);
    let usable = |address: &IpAddr| {
        let scoped = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        address.is_ipv4() == v4 && !address.is_loopback() && !scoped && !is_vip(*address)
    };
    let near = facts.addresses.iter().filter(|own| own.ifindex == ifindex);
    preferred.into_iter().chain(near.chain(&facts.addresses).map(|own| own.address)).find(usable)
}

/// Plans ARP requests for the IPv4 VIPs, on attached interfaces and on interfaces towards backends.
fn ask_for_vips(facts: &mut Facts) -> Vec<Asked> {
    let attached = facts.controller.iter().flat_map(|of| &of.before.interfaces).map(|view| view.ifindex);
    let egress = facts.backends.iter().filter_map(|backend| Target::way(backend).map(|(ifindex, _)| ifindex));
    let mut interfaces: Vec<u32> = attached.chain(egress).collect();
    interfaces.sort_unstable();
    interfaces.dedup();
    let usable = |link: &&Link| link.up && link.carrier;
    let interfaces: Vec<(u32, crate::facts::Mac)> = interfaces
        .iter()
        .filter_map(|&index| facts.link(index).filter(usable))
        .filter_map(|link| Some((link.ifindex, link.mac?)))
        .collect();
    let mut asked = Vec::new();
    let mut unseen = Vec::new();
    for (index, vip) in facts.vips.iter().enumerate() {
        match vip.address {
            IpAddr::V4(address) => asked.push(Asked { index, address, interfaces: interfaces.clone() }),
            IpAddr::V6(address) => unseen.push(Unseen::new(
                format!("whether another machine has {address}"),
                "neighbours are asked by ARP, not by neighbour discovery",
            )),
        }
    }
    facts.unseen.extend(unseen);
    asked
}

/// Finds the destination prefix of the route to a recently seen client.
async fn find_clients(client: &Client, facts: &mut Facts) {
    let Some(controller) = &mut facts.controller else { return };
    let Ok(top) = client.top(&TopQuery { n: Some(1), ..TopQuery::default() }).await else { return };
    let address = top.first().and_then(|top| top.client.split_once('/')?.0.parse().ok());
    if let Some(address) = address
        && let Ok(netlink) = Netlink::connect()
    {
        controller.client = Some(address);
        controller.clients = netlink.prefix(address).await.ok().flatten();
    }
}
