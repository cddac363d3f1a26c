//! Findings about the path to each backend, and about the results of probes.

use std::net::IpAddr;

use balancer_api::model::HealthView;

use crate::{
    facts::{Backend, Controller, Direct, Facts, Neighbour, Outcome, ServiceProbe, Way},
    finding::{Cure, Finding, Kind},
};

pub(super) fn findings(facts: &Facts, controller: &Controller, broken: &[u32]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for finding in facts.backends.iter().filter_map(|backend| of(facts, controller, broken, backend)) {
        let same = findings.iter_mut().find(|known| known.kind == Kind::Firewall && finding.kind == Kind::Firewall);
        match same {
            Some(known) => join(known, finding),
            None => findings.push(finding),
        }
    }
    findings
}

/// Joins two findings about the same firewall, because the firewall is a single cause for all backends behind it.
fn join(known: &mut Finding, other: Finding) {
    let names = other.service.iter().chain(&other.backend).map(String::as_str).collect::<Vec<_>>().join("/");
    known.what.push_str(&format!("; the same of {names}"));
    known.backend = None;
    let look = known.cure.commands.pop();
    let new = other.cure.commands.into_iter().filter(|command| !known.cure.commands.contains(command));
    let new: Vec<String> = new.filter(|command| Some(command) != look.as_ref()).collect();
    known.cure.commands.extend(new);
    known.cure.commands.extend(look);
}

/// Returns only the first problem on the path to a backend, because the first problem causes the later ones.
fn of(facts: &Facts, controller: &Controller, broken: &[u32], backend: &Backend) -> Option<Finding> {
    let (ifindex, next_hop) = match &backend.way {
        Way::Known { ifindex, next_hop } => (*ifindex, *next_hop),
        Way::Local => return without_the_vip(facts, backend).or_else(|| unhealthy(backend, controller)),
        Way::None(_) if !broken.is_empty() => return None,
        Way::None(why) => return Some(no_route(facts, backend, why)),
    };
    if broken.contains(&ifindex) {
        return None;
    }
    let interface = facts.link(ifindex).map_or("its interface", |link| link.name.as_str());
    neighbour(backend, interface, next_hop)
        .or_else(|| direct(facts, backend))
        .or_else(|| checksum(backend, controller))
        .or_else(|| service(backend))
        .or_else(|| path(facts, backend, (ifindex, next_hop)))
        .or_else(|| unhealthy(backend, controller))
}

pub(super) fn name(backend: &Backend) -> String {
    format!("{}/{}", backend.service, backend.name)
}

pub(super) fn machine(backend: &Backend) -> String {
    format!("{} ({})", backend.name, backend.address.ip())
}

pub(super) fn about(backend: &Backend, kind: Kind, what: String, seen: String, cure: Cure) -> Finding {
    let (service, backend) = (Some(backend.service.clone()), Some(backend.name.clone()));
    Finding { kind, service, backend, what, seen, cure }
}

/// Returns a finding if this machine is the backend and lacks the VIP, because it then receives untranslated packets
/// for the VIP.
fn without_the_vip(facts: &Facts, backend: &Backend) -> Option<Finding> {
    let vip = backend.vip.filter(|vip| backend.has_the_vip() && !facts.is_own(vip.ip()))?.ip();
    let place = if vip.is_ipv4() { format!("{vip}/32 dev lo") } else { format!("{vip}/128 dev lo") };
    let name = name(backend);
    Some(about(
        backend,
        Kind::VipMissing,
        format!("backend {name} is this machine, which does not have the VIP {vip}"),
        format!("`ip address show to {vip}` says nothing"),
        Cure::fixable(&format!("ip addr add {place}"), &format!("ip addr del {place}")),
    ))
}

fn no_route(facts: &Facts, backend: &Backend, why: &str) -> Finding {
    let address = backend.address.ip();
    let near = facts.on_link(address).and_then(|ifindex| {
        let own = facts.addresses.iter().find(|own| own.ifindex == ifindex && covers(own, address))?;
        let prefix = ipnet::IpNet::new(own.address, own.length).ok()?.trunc();
        Some((prefix, &facts.link(ifindex)?.name))
    });
    let cure = match near {
        Some((prefix, interface)) => {
            let route = format!("{prefix} dev {interface}");
            Cure::fixable(&format!("ip route add {route}"), &format!("ip route del {route}"))
        }
        None => Cure::here(&[format!("ip route add {address} via GATEWAY")]),
    };
    // All backends behind the same missing route get the same finding.
    let what = match near {
        Some((prefix, interface)) => format!("there is no route to {prefix}, the prefix of {interface}"),
        None => format!("there is no route to backend {} ({address})", name(backend)),
    };
    let seen = match near {
        Some(_) => format!("the kernel's route lookup says: {why}"),
        None => format!("`ip route get {address}` says: {why}"),
    };
    let finding = about(backend, Kind::Route, what, seen, cure);
    if near.is_some() { Finding { backend: None, ..finding } } else { finding }
}

fn covers(own: &crate::facts::Address, address: IpAddr) -> bool {
    ipnet::IpNet::new(own.address, own.length).is_ok_and(|prefix| prefix.contains(&address))
}

fn neighbour(backend: &Backend, interface: &str, next_hop: IpAddr) -> Option<Finding> {
    let Neighbour { known, permanent, answered } = backend.neighbour.as_ref()?;
    let what =
        if next_hop == backend.address.ip() { format!("backend {}", name(backend)) } else { "the gateway".to_owned() };
    if answered.is_empty() {
        return (!is_alive(backend)).then(|| {
            let is_gateway = next_hop != backend.address.ip();
            let cure = [
                format!("# check that {next_hop} runs, and that its cable, switch port, VLAN and address are right"),
                "# to see its addresses and interfaces: ip -br address; to switch one on: ip link set dev INTERFACE up"
                    .to_owned(),
            ];
            let on = if is_gateway { next_hop.to_string() } else { machine(backend) };
            let finding = about(
                backend,
                Kind::Neighbour,
                format!("{what} ({next_hop}) does not answer on {interface}"),
                format!("no machine answered ARP requests for {next_hop} on {interface}"),
                Cure::elsewhere(&format!("{on}, or on the switch between"), &cure),
            );
            if is_gateway { Finding { service: None, backend: None, ..finding } } else { finding }
        });
    }
    let mac = known.filter(|known| !answered.contains(known))?;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let right = answered.first()?.map(|byte| format!("{byte:02x}")).join(":");
    let how = if *permanent { "a permanent entry" } else { "the entry" };
    let undo = format!("ip neigh replace {next_hop} lladdr {mac} dev {interface} nud permanent");
    Some(about(
        backend,
        Kind::NeighbourEntry,
        format!("packets for {what} ({next_hop}) go to the wrong hardware address, {mac}"),
        format!("the neighbour table has {how} with {mac}, and {right} answers ARP requests for {next_hop}"),
        Cure::fixable(&format!("ip neigh del {next_hop} dev {interface}"), &undo),
    ))
}

/// Whether an answer came from the backend, even if the kernel's neighbour entry is wrong.
fn is_alive(backend: &Backend) -> bool {
    let direct = backend.direct.as_ref().is_some_and(|direct| direct.came || direct.outcome == Outcome::Connected);
    let probe = backend.service_probe.as_ref();
    let vip = probe.is_some_and(|probe| {
        probe.echo || probe.refused_outer || probe.tcp.as_ref().is_some_and(|tcp| *tcp != Outcome::Silent)
    });
    direct || vip || backend.path.is_some()
}

/// Returns findings about the connection to the backend's own address, which resembles the connection of a health
/// check.
fn direct(facts: &Facts, backend: &Backend) -> Option<Finding> {
    let Direct { outcome, left, came, checksum_wrong } = backend.direct.as_ref()?;
    let (name, address) = (name(backend), backend.address);
    let firewall = |what: String, seen: String, hook: &str| {
        about(backend, Kind::Firewall, what, seen, Cure::here(&accept(facts, hook, address)))
    };
    match outcome {
        Outcome::Connected => None,
        Outcome::Refused => Some(about(
            backend,
            Kind::Server,
            format!("nothing listens on {address} of backend {name}"),
            format!("a connection to {address} was refused"),
            Cure::elsewhere(
                &machine(backend),
                &[
                    format!("# start the server that listens on {address}"),
                    format!("# to see what listens: ss -ltn 'sport = :{}'", address.port()),
                ],
            ),
        )),
        Outcome::NotSent(why) => Some(firewall(
            format!("a firewall of this machine does not let packets to {address} of backend {name} out"),
            format!("connecting to {address}: {why}"),
            "output",
        )),
        Outcome::Silent if *came && *checksum_wrong => Some(unfinished(backend)),
        Outcome::Silent if *came => Some(firewall(
            format!("a firewall of this machine drops what comes back from {address} of backend {name}"),
            format!("{address} answered a request to connect, and this machine's kernel did not get the answer"),
            "input",
        )),
        Outcome::Silent if !*left => Some(firewall(
            format!("a firewall of this machine drops packets to {address} of backend {name}"),
            format!("this machine began a connection to {address}, and no packet left by an interface"),
            "output",
        )),
        Outcome::Silent => Some(about(
            backend,
            Kind::Server,
            format!("backend {name} does not answer on {address}"),
            format!("a request to connect to {address} left, and nothing came back"),
            Cure::elsewhere(
                &machine(backend),
                &[format!(
                    "# check that the server runs, and that no firewall there drops packets to {address}: ss -ltn 'sport = :{}'; nft list ruleset",
                    address.port()
                )],
            ),
        )),
    }
}

/// Returns a finding if the replies of a `nat` or `snat` backend have unfinished checksums: the program loses the
/// kernel's mark of an unfinished checksum. On this machine's own connections, the packets keep the mark.
fn checksum(backend: &Backend, controller: &Controller) -> Option<Finding> {
    let Way::Known { ifindex, .. } = backend.way else { return None };
    let native = controller.after.interfaces.iter().any(|view| view.ifindex == ifindex && view.xdp_mode == "native");
    let wrong = backend.direct.as_ref().is_some_and(|direct| direct.checksum_wrong);
    (native && wrong && backend.answers_the_balancer()).then(|| unfinished(backend))
}

fn unfinished(backend: &Backend) -> Finding {
    about(
        backend,
        Kind::Checksum,
        format!("packets of backend {} arrive with checksums that are not computed", name(backend)),
        format!("{} answered, with a wrong checksum", backend.address),
        Cure::elsewhere(&machine(backend), &["ethtool -K INTERFACE tx off".to_owned()]),
    )
}

/// Returns commands that make a firewall accept the packets of health checks.
fn accept(facts: &Facts, hook: &str, address: std::net::SocketAddr) -> Vec<String> {
    let (family, to) = if address.is_ipv4() { ("ip", address.ip()) } else { ("ip6", address.ip()) };
    let chains = facts.firewall.iter().filter(|chain| chain.hook == hook);
    let mut commands: Vec<String> = chains
        .map(|chain| match hook {
            "input" => format!("nft insert rule {} ct state established,related accept", chain.place),
            _ => format!("nft insert rule {} {family} daddr {to} accept", chain.place),
        })
        .collect();
    if commands.is_empty() {
        let tables = if address.is_ipv4() { "iptables" } else { "ip6tables" };
        commands.push(match hook {
            "input" => format!("{tables} -I INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"),
            _ => format!("{tables} -I OUTPUT -d {to} -j ACCEPT"),
        });
    }
    commands.push("# to see all rules: nft list ruleset; iptables-save".to_owned());
    commands
}

/// Returns findings about the probe to the VIP, which takes the path of clients' packets.
fn service(backend: &Backend) -> Option<Finding> {
    let probe = backend.service_probe.as_ref()?;
    let ServiceProbe { echo, bare_echo, tcp, refused_outer } = probe;
    let (name, vip) = (name(backend), backend.vip?);
    let ip = vip.ip();
    match tcp {
        Some(Outcome::Connected) => None,
        _ if *refused_outer || *bare_echo == Some(true) && !*echo => Some(no_decap(backend, probe)),
        Some(Outcome::Refused) => Some(about(
            backend,
            Kind::ServerBound,
            format!("the server of backend {name} does not listen on the VIP {vip}"),
            format!(
                "a probe to {vip} by the way of clients' packets was refused, and the backend's own address serves"
            ),
            Cure::elsewhere(
                &machine(backend),
                &[
                    format!("# make the server listen on {vip} as well, or on all addresses"),
                    format!("# to see what listens: ss -ltn 'sport = :{}'", vip.port()),
                ],
            ),
        )),
        Some(Outcome::Silent | Outcome::NotSent(_)) if *echo => Some(about(
            backend,
            Kind::Server,
            format!("backend {name} has the VIP and does not answer on {vip}"),
            format!("the VIP answered a ping by the way of clients' packets, and a probe to {vip} was not answered"),
            Cure::elsewhere(
                &machine(backend),
                &[format!("# to see rules and listeners: nft list ruleset; ss -ltn 'sport = :{}'", vip.port())],
            ),
        )),
        Some(Outcome::Silent | Outcome::NotSent(_)) => {
            let length = if ip.is_ipv4() { "32 dev lo" } else { "128 dev lo nodad" };
            let mut commands = Vec::new();
            if ip.is_ipv4() {
                commands.push("sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2".to_owned());
            }
            commands.push(format!("ip addr add {ip}/{length}"));
            let what = match bare_echo {
                None if backend.forwarding != "dsr" => {
                    format!(
                        "backend {name} does not take packets for the VIP {ip}: it does not have it, or nothing removes the outer header"
                    )
                }
                _ => format!("backend {name} does not have the VIP {ip}"),
            };
            let seen = format!(
                "probes to {vip} by the way of clients' packets were not answered, neither a ping nor a request to connect"
            );
            Some(about(backend, Kind::VipMissing, what, seen, Cure::elsewhere(&machine(backend), &commands)))
        }
        // For a service without TCP, an unanswered ping alone proves nothing.
        None => None,
    }
}

fn no_decap(backend: &Backend, probe: &ServiceProbe) -> Finding {
    let (name, mode) = (name(backend), &backend.forwarding);
    let seen = if probe.refused_outer {
        format!("it answered a probe with an outer header of {mode} that it has nothing for it")
    } else {
        format!("the VIP answers a ping without an outer header, and none with that of {mode}")
    };
    let from = backend.source.map(|source| format!(" --from {source}")).unwrap_or_default();
    about(
        backend,
        Kind::NoDecap,
        format!("nothing on backend {name} removes the outer header of {mode}"),
        seen,
        Cure::elsewhere(&machine(backend), &[format!("balancer decap --interface INTERFACE{from}")]),
    )
}

/// The cure is on the narrow side. A smaller MTU of this machine's own interface would also drop large packets for all
/// other backends; a route's MTU concerns one backend alone.
fn path(facts: &Facts, backend: &Backend, (ifindex, next_hop): (u32, IpAddr)) -> Option<Finding> {
    let path = backend.path.filter(|path| path.passed < path.wanted)?;
    let (name, address) = (name(backend), backend.address.ip());
    let interface = facts.link(ifindex).map_or("INTERFACE", |link| link.name.as_str());
    let length = if address.is_ipv4() { 32 } else { 128 };
    let via = if next_hop == address { String::new() } else { format!(" via {next_hop}") };
    let here = format!("ip route replace {address}/{length}{via} dev {interface} mtu {}", path.passed);
    Some(about(
        backend,
        Kind::Mtu,
        format!(
            "large packets do not reach backend {name}: packets of {} bytes are lost, packets of {} bytes arrive",
            path.wanted, path.passed
        ),
        format!("pings of these sizes to {address}, which must not be fragmented"),
        Cure::elsewhere(
            &format!("{}, or on a router before it", machine(backend)),
            &[
                format!("ip link set dev INTERFACE mtu {}", path.wanted),
                format!("# or, if the smaller MTU is wanted, on this machine: {here}"),
            ],
        ),
    ))
}

/// Returns a finding if a server answers although its health check fails.
fn unhealthy(backend: &Backend, controller: &Controller) -> Option<Finding> {
    let view = controller.health.iter().find(|view| is_of(view, backend) && view.verdict == "down")?;
    let name = name(backend);
    Some(about(
        backend,
        Kind::Unhealthy,
        format!("the health check of backend {name} fails: {}", view.last_reason),
        format!("{} of {}", view.check, view.target),
        Cure::elsewhere(
            &machine(backend),
            &[
                "# look at the server's own log".to_owned(),
                format!("# to see the checks, on the balancer: balancer health show {}", backend.service),
            ],
        ),
    ))
}

pub(super) fn is_of(view: &HealthView, backend: &Backend) -> bool {
    view.service == backend.service && view.backend == backend.name
}
