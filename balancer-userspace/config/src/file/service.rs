//! Reads the sections `[[service]]` and `[[service.backend]]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use balancer_common::{
    map_types::{Forwarding, LAST_BACKEND},
    share,
};

use super::{
    agent, bounded,
    check::{Keys, check},
    discover::discover,
    findings::Findings,
    heavy, quic, rule,
    section::{Either, Located, Section},
    snat,
};
use crate::{
    addresses::{implied_check_port, port_zero},
    config::{
        AssignVip, BackendConfig, CheckConfig, CheckKind, ClientPrefix, Failback, FailureAction, Limits, OnFailure,
        Outage, Protocol, ServiceConfig, Via, WhenAllDown, WhenFull, forwarding_word,
    },
    deny::DenyConfig,
    discover::{DiscoverConfig, Own, Source},
    dns::{self, DnsSource, Records},
    listeners::{Family, Listener, PortRange},
    primes::{MAX_TABLE_SIZE, is_prime},
    quic::ServerId,
    snat::DrainUntil,
    table_size::{SLOTS_PER_BACKEND, TableSize},
    validate::enough_slots,
    value,
    words::counted,
};

const FORWARDING: &[(&str, Forwarding)] = &[
    ("dsr", Forwarding::Dsr),
    ("nat", Forwarding::Nat),
    ("snat", Forwarding::Snat),
    ("ipip", Forwarding::Ipip),
    ("gue", Forwarding::Gue),
];
const DEFAULT_TABLE_SIZE: TableSize = TableSize::Fixed(65_537);
const DEFAULT_WEIGHT: u16 = 100;
const DEFAULT_REMEMBER: Duration = Duration::from_secs(3 * 3600);
const DEFAULT_DRAIN: Duration = Duration::from_secs(300);
const VIP_ON: &str = "true, false, or the name of an interface such as \"lo\"";
const MIN_SLOW_START: Duration = Duration::from_secs(1);
const MAX_WITHHOLD: Duration = Duration::from_secs(5);
const MAX_RESTART_GRACE: Duration = Duration::from_secs(10);
/// The maximum of `outage.hold`.
const MAX_HOLD: Duration = Duration::from_secs(3600);

/// A service, with the positions that a report about a conflict with another service needs.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) service: Arc<ServiceConfig>,
    pub(super) name_at: usize,
    pub(super) listen_at: Vec<usize>,
    pub(super) table_size_at: usize,
    /// The positions of the names and the addresses of backends.
    pub(super) backends_at: Vec<(usize, usize)>,
}

/// The settings of a service that determine the addresses of its backends.
struct Front {
    listen: Vec<Listener>,
    ports: BTreeMap<u16, u16>,
    forwarding: Forwarding,
}

impl Front {
    /// The port to which a check connects if it has no port of its own; the checked backend has the port `port`.
    fn check_port(&self, kind: &CheckKind, port: u16) -> u16 {
        let family = self.listen.first().map_or(Family::V4, Listener::family);
        if port == 0 { implied_check_port(&self.listen, &self.ports, family, kind.protocol()) } else { port }
    }
}

/// Reads a service; `None` if the service is invalid. The function adds errors to `findings`.
pub(super) fn service(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<Placed> {
    let at = section.at;
    section.require("name", "name = \"…\"", findings);
    if !section.has("listen") {
        section.require("address", "address = \"ADDR:PORT\", the virtual IP and port", findings);
    }
    section.require("forwarding", "forwarding = \"dsr\" or \"nat\"", findings);
    let name = section.text("name", findings, value::name);
    let renamed_from = renamed_from(&mut section, name.as_ref(), findings);
    let listen = listen(&mut section, findings);
    let ports = section
        .table("ports", "ports", "{ 80 = 8080, 443 = 8443 }", findings)
        .map(|section| section.ports(findings))
        .unwrap_or_default();
    let forwarding = section.text("forwarding", findings, |text| value::word("forwarding", text, FORWARDING));
    let table_size = section.integer_or("table_size", findings, (2, MAX_TABLE_SIZE), &[("auto", TableSize::Auto)]);
    let client_prefix = section
        .table("client_prefix", "client_prefix", "{ v4 = 32, v6 = 64 }", findings)
        .map(|section| client_prefix(section, findings));
    let remember = section.text("remember", findings, remember);
    let failback = section.text("failback", findings, |text| {
        value::word("failback", text, &[("stay", Failback::Stay), ("return", Failback::Return)])
    });
    let when_all_down = section.text("when_all_down", findings, |text| {
        value::word("when_all_down", text, &[("open", WhenAllDown::Open), ("drop", WhenAllDown::Drop)])
    });
    let when_full = section.text("when_full", findings, |text| value::word("when_full", text, &WhenFull::WORDS));
    let slow_start = section.text("slow_start", findings, slow_start);
    let drain = section
        .table("drain", "drain", "{ timeout = \"5m\" }", findings)
        .map(|section| snat::drain(section, findings))
        .unwrap_or_default();
    let on_failure = section
        .table("on_failure", "on_failure", "{ hard = \"move\", soft = \"drain\" }", findings)
        .map(|section| on_failure(section, findings));
    let outage = section
        .table("outage", "outage", "{ share = 0.5, hold = \"10s\" }", findings)
        .map(|section| outage(section, findings))
        .unwrap_or_default();
    let withhold = section.text("withhold", findings, |text| up_to(MAX_WITHHOLD, "withhold", text));
    let restart_grace = section.text("restart_grace", findings, |text| up_to(MAX_RESTART_GRACE, "restart_grace", text));
    let mode = forwarding.as_ref().map(|forwarding| forwarding.value);
    let snat = snat::section(&mut section, mode, findings);
    let start_down = section.boolean("start_down", findings).unwrap_or(false);
    let reject = section.boolean("reject", findings).unwrap_or(false);
    let steer = section.integer("steer", findings, (0, share::WHOLE.into()));
    let assign_vip = match section.boolean_or("assign_vip", VIP_ON, findings, value::interface) {
        None | Some(Either::Boolean(false)) => AssignVip::No,
        Some(Either::Boolean(true)) => AssignVip::First,
        Some(Either::Text(interface)) => AssignVip::On(interface),
    };
    if let (Some(withhold), Some(forwarding)) = (&withhold, &forwarding)
        && !matches!(forwarding.value, Forwarding::Nat | Forwarding::Snat)
    {
        let text = "withhold has an effect only with forwarding = \"nat\" and \"snat\": in other modes, resets do not \
                    pass through the balancer";
        findings.warn(withhold.at, text.to_owned());
    }
    let deny = section
        .table("deny", "deny", "{ file = \"/etc/balancer/deny.txt\" }", findings)
        .and_then(|section| deny(section, findings));
    let agent = section
        .table("agent", "agent", "{ port = 9777, interval = \"5s\" }", findings)
        .and_then(|section| agent::section(section, findings));
    let bounded_load = section
        .table("bounded_load", "bounded_load", "{ factor = 1.25, by = \"clients\" }", findings)
        .and_then(|section| bounded::section(section, findings));
    let quic =
        section.table("quic", "quic", "{ format = \"nlb\" }", findings).map(|section| quic::section(section, findings));
    let spread_heavy = heavy::share(&mut section, findings);
    let expect = section.integer("expect", findings, (1, LAST_BACKEND.into()));
    let check_section = section.table("check", "check", "{ type = \"tcp\" }", findings);
    let check_at = check_section.as_ref().map(|section| section.at);
    let backends = section.tables("backend", "[[service.backend]]", findings).unwrap_or_default();
    let lists = section.tables("discover", "[[service.discover]]", findings).unwrap_or_default();
    let rules = section.tables("rule", "[[service.rule]]", findings).unwrap_or_default();
    section.finish(findings);

    if let (Some(until), Some(forwarding)) = (&drain.until, &forwarding)
        && until.value == DrainUntil::Connections
        && forwarding.value != Forwarding::Snat
    {
        let text = "until = \"connections\" needs forwarding = \"snat\", the only mode that counts connections; \
                    remove it";
        findings.error(until.at, text.to_owned());
    }
    if let Some(failback) = &failback
        && failback.value == Failback::Stay
        && remember.as_ref().is_some_and(|remember| remember.value.is_zero())
    {
        let text = "failback = \"stay\" has no effect without memory (remember = \"0s\"): clients always return";
        findings.warn(failback.at, text.to_owned());
    }

    let (listen, listen_at): (Vec<_>, Vec<_>) = listen
        .map(|listen| listen.into_iter().map(|listener| (listener.value, listener.at)).unzip())
        .unwrap_or_default();
    let known = !listen.is_empty();
    for port in ports.keys().filter(|_| known) {
        if !listen.iter().any(|listener| listener.ports.single() == Some(*port)) {
            findings.error(at, format!("ports has {port}, and no listener has that port; remove it"));
        }
    }
    let front = (forwarding.filter(|_| known)).map(|forwarding| Front {
        listen: listen.clone(),
        ports: ports.clone(),
        forwarding: forwarding.value,
    });
    let front = front.as_ref();
    // UDP servers answer only requests of their own protocol, and no connection to port 0 is possible.
    let connects = !known || listen.iter().any(|of| of.protocol == Protocol::Tcp && of.ports.single().is_some());
    let implied = Keys::implied(connects);
    let (keys, service_check) = match check_section.and_then(|section| check(section, None, findings)) {
        Some((keys, check)) => {
            if let Some(front) = front {
                needs_port(&check, front.check_port(&check.value.kind, 0), findings);
                via_fits(&check, front.forwarding, findings);
            }
            (keys, check.value)
        }
        None => (implied.clone(), implied.config()),
    };
    if let Some(front) = front
        && front.listen.iter().any(|listener| listener.protocol == Protocol::Tcp)
    {
        via_could_be_service(check_at.unwrap_or(at), front, &keys, findings);
    }
    if let Some(bounded_load) = &bounded_load {
        let remembers = remember.as_ref().is_none_or(|remember| !remember.value.is_zero());
        bounded::needs(bounded_load, (remembers, service_check.kind != CheckKind::None), findings);
    }
    let backend_count = backends.len();
    let read: Vec<_> = backends.into_iter().filter_map(|section| backend(section, front, &keys, findings)).collect();
    let (mut backends, mut named) = (Vec::with_capacity(read.len()), Vec::new());
    for backend in read {
        match backend {
            Read::Backend(backend) => backends.push(backend),
            Read::Named(backend) => named.push(backend),
        }
    }
    distinct(&backends, &named, findings);
    let has_lists = !lists.is_empty();
    let mut discover = discover(lists, front.map(|front| (front.listen.as_slice(), front.forwarding)), findings);
    discover.extend(named.into_iter().map(|named| named.list));
    if backend_count == 0 && !has_lists {
        findings.warn(at, "[[service]] has no [[service.backend]]: its packets will be dropped".to_owned());
    }
    if let Some(expect) = &expect {
        can_be_up(expect, (backend_count, discover.is_empty()), findings);
    }
    let rules: Vec<_> = rules.into_iter().filter_map(|section| rule::rule(section, findings)).collect();
    let table_size = table_size.unwrap_or(Located { at, value: DEFAULT_TABLE_SIZE });
    uneven_shares(table_size, backend_count, findings);

    let (name, forwarding) = (name?, forwarding.filter(|_| known)?);
    let remember = remember.map_or(DEFAULT_REMEMBER, |remember| remember.value);
    for PlacedBackend { config, limits_at, .. } in &backends {
        if let Some((text, at)) = config.limits.fault(remember, forwarding.value).zip(*limits_at) {
            findings.error(at, text);
        }
    }
    let (backends, backends_at) =
        backends.into_iter().map(|backend| (backend.config, (backend.name_at, backend.address_at))).unzip();
    let mut service = ServiceConfig {
        drop_in: None,
        name: name.value,
        renamed_from,
        listen,
        ports,
        forwarding: forwarding.value,
        table_size: table_size.value,
        client_prefix: client_prefix.unwrap_or(ClientPrefix { v4: 32, v6: 64 }),
        remember,
        failback: failback.map_or(Failback::Stay, |failback| failback.value),
        when_all_down: when_all_down.map_or(WhenAllDown::Open, |when| when.value),
        when_full: when_full.map_or(WhenFull::Open, |when| when.value),
        slow_start: slow_start.map_or(Duration::ZERO, |slow_start| slow_start.value),
        drain_timeout: drain.timeout.unwrap_or(DEFAULT_DRAIN),
        drain_until: drain.until.map(|until| until.value),
        drain_grace: drain.grace,
        on_failure: on_failure.unwrap_or(OnFailure { hard: FailureAction::Move, soft: FailureAction::Drain }),
        withhold: withhold.map_or_else(ServiceConfig::withhold_by_default, |withhold| withhold.value),
        restart_grace: restart_grace.map(|grace| grace.value),
        snat,
        outage,
        start_down,
        reject,
        steer: steer.map_or_else(ServiceConfig::steer_by_default, |steer| steer.value),
        assign_vip,
        deny,
        discover,
        agent,
        bounded_load: bounded_load.map(|bounded_load| bounded_load.value),
        quic,
        spread_heavy,
        expect: expect.map(|expect| expect.value),
        check: service_check,
        backends,
        rules: Vec::new(),
    };
    rule::put(rules, &mut service, findings);
    Some(Placed {
        name_at: name.at,
        listen_at,
        table_size_at: table_size.at,
        backends_at,
        service: Arc::new(service.normalised()),
    })
}

/// Reads `listen`, or reads `address` and `protocol`, which specify a single listener.
fn listen(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Vec<Located<Listener>>> {
    let at = section.at;
    let protocol = section.text("protocol", findings, |text| {
        value::word("protocol", text, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("quic", Protocol::Quic)])
    });
    let address = section.text("address", findings, value::service_address);
    let wanted = "a list such as [\"198.51.100.10:80\", \"198.51.100.10:443/udp\"]";
    let listen = section.texts("listen", wanted, findings, |text| text.parse::<Listener>());
    if let Some(listen) = listen {
        if let Some(other) = address.map(|address| address.at).or(protocol.map(|protocol| protocol.at)) {
            let text = "listen has address and protocol of every listener; remove address and protocol".to_owned();
            findings.error(other, text);
        }
        if listen.is_empty() && !findings.has_errors() {
            findings.error(at, "listen is empty; give at least one \"ADDR:PORT\"".to_owned());
        }
        return Some(listen);
    }
    let Located { at, value: address } = address?;
    let protocol = protocol.map_or(Protocol::Tcp, |protocol| protocol.value);
    Some(vec![Located { at, value: Listener::at(address, protocol) }])
}

/// Reads `renamed_from`; the current name as its value has no effect.
fn renamed_from(
    section: &mut Section<'_>,
    name: Option<&Located<String>>,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let from = section.text("renamed_from", findings, value::name)?;
    let renamed = name.is_none_or(|name| name.value != from.value);
    if !renamed {
        findings.warn(from.at, format!("renamed_from = {:?} is its name: leave it out", from.value));
    }
    renamed.then_some(from.value)
}

fn client_prefix(mut section: Section<'_>, findings: &mut Findings<'_>) -> ClientPrefix {
    let v4 = section.integer("v4", findings, (0, 32)).map_or(32, |v4| v4.value);
    let v6 = section.integer("v6", findings, (0, 128)).map_or(64, |v6| v6.value);
    section.finish(findings);
    ClientPrefix { v4, v6 }
}

fn remember(text: &str) -> Result<Duration, String> {
    let remember = value::duration(text)?;
    if remember.subsec_nanos() != 0 {
        return Err(format!("remember = {} is not in whole seconds; give some, such as \"90s\"", value::quoted(text)));
    }
    Ok(remember)
}

fn slow_start(text: &str) -> Result<Duration, String> {
    let slow_start = value::duration(text)?;
    if !slow_start.is_zero() && slow_start < MIN_SLOW_START {
        return Err(format!("slow_start = {} is too short; give \"0s\", or \"1s\" and more", value::quoted(text)));
    }
    Ok(slow_start)
}

fn up_to(most: Duration, key: &str, text: &str) -> Result<Duration, String> {
    let duration = value::duration(text)?;
    if duration > most {
        let most = humantime::format_duration(most);
        return Err(format!("{key} = {} is too long; give \"0s\" to \"{most}\"", value::quoted(text)));
    }
    Ok(duration)
}

fn on_failure(mut section: Section<'_>, findings: &mut Findings<'_>) -> OnFailure {
    let words = [("move", FailureAction::Move), ("drain", FailureAction::Drain)];
    let mut action = |key: &'static str, default| {
        section.text(key, findings, |text| value::word(key, text, &words)).map_or(default, |action| action.value)
    };
    let (hard, soft) = (action("hard", FailureAction::Move), action("soft", FailureAction::Drain));
    section.finish(findings);
    OnFailure { hard, soft }
}

fn deny(mut section: Section<'_>, findings: &mut Findings<'_>) -> Option<DenyConfig> {
    section.require("file", "file = \"/etc/balancer/deny.txt\", a prefix a line", findings);
    let file = section.text("file", findings, value::absolute_path);
    section.finish(findings);
    file.map(|file| DenyConfig { file: file.value })
}

/// Reports an `expect` above the number of backends, if no list of targets adds backends.
fn can_be_up(expect: &Located<u32>, (backends, is_whole): (usize, bool), findings: &mut Findings<'_>) {
    if is_whole && expect.value as usize > backends {
        let backends = counted(backends, "backend");
        let text = format!("expect = {} is more than the service has: {backends}; lower or remove it", expect.value);
        findings.error(expect.at, text);
    }
}

fn outage(mut section: Section<'_>, findings: &mut Findings<'_>) -> Outage {
    let share = section.part("share", findings);
    let hold = section.text("hold", findings, |text| up_to(MAX_HOLD, "hold", text));
    section.finish(findings);
    if let Some(share) = &share
        && share.value <= 0.0
    {
        let text = "share = 0 would turn every failure into an outage; give more than 0, such as 0.5, or 1 for no \
                    outages";
        findings.error(share.at, text.to_owned());
    }
    let default = Outage::default();
    Outage {
        share: share.map_or(default.share, |share| share.value),
        hold: hold.map_or(default.hold, |hold| hold.value),
    }
}

/// Warns if the table has too few slots for the weights of the backends.
fn uneven_shares(size: Located<TableSize>, backends: usize, findings: &mut Findings<'_>) {
    let Located { at, value: TableSize::Fixed(size) } = size else { return };
    let enough = enough_slots(backends);
    if is_prime(size) && size as usize > backends && size < enough {
        let text = format!(
            "table_size = {size} is below {SLOTS_PER_BACKEND} slots for each of {backends} backends, so their shares become \
             uneven; give at least {enough}"
        );
        findings.warn(at, text);
    }
}

/// Reports a check that would have to connect to port 0.
fn needs_port(check: &Located<CheckConfig>, port: u16, findings: &mut Findings<'_>) {
    if check.value.kind.needs_port() && check.value.kind.port().is_none() && port == 0 {
        findings.error(check.at, "the check has no port, and the service has every port; add port = …".to_owned());
    }
}

/// Reports `via = "service"` in a service with `nat` or `snat`, where the packets of clients go to the backend's own
/// address.
fn via_fits(check: &Located<CheckConfig>, forwarding: Forwarding, findings: &mut Findings<'_>) {
    if check.value.via == Via::Service && matches!(forwarding, Forwarding::Nat | Forwarding::Snat) {
        let mode = forwarding_word(forwarding);
        findings.error(
            check.at,
            format!(
                "via = \"service\" means nothing to {mode}, which sends clients' packets to the backend's own address; remove it"
            ),
        );
    }
}

/// Warns about checks whose packets do not take the path of clients' packets.
fn via_could_be_service(at: usize, front: &Front, keys: &Keys, findings: &mut Findings<'_>) {
    let mode = match front.forwarding {
        Forwarding::Nat | Forwarding::Snat => return,
        Forwarding::Dsr | Forwarding::Ipip | Forwarding::Gue => forwarding_word(front.forwarding),
    };
    if keys.goes_past_the_service() {
        let text = format!(
            "a backend without the VIP {} counts as up although its clients get no answer, because checks go to the \
             backend's own address; add via = \"service\" to the check, which then takes the path of clients' packets \
             with {mode} (via = \"backend\" silences this warning)",
            front.listen.first().map(|listener| listener.address.to_string()).unwrap_or_default()
        );
        findings.warn(at, text);
    }
}

/// A backend as the parser has read it from the file.
enum Read {
    Backend(PlacedBackend),
    Named(NamedBackend),
}

/// A backend whose address in the file is a DNS name.
struct NamedBackend {
    list: DiscoverConfig,
    name_at: usize,
}

/// The address of a backend in the file: an IP address or a DNS name.
enum Place {
    Address(IpAddr, Option<u16>),
    Name(String, Option<u16>),
}

fn place(text: &str) -> Result<Place, String> {
    match value::address_or(text, "or a name such as \"web1.internal:8080\"") {
        Ok((address, port)) => Ok(Place::Address(address, port)),
        Err(error) => dns::host_and_port(text).map(|(name, port)| Place::Name(name, port)).map_err(|_| error),
    }
}

/// Reports duplicate names of backends if one of the two backends has a DNS name as its address.
fn distinct(backends: &[PlacedBackend], named: &[NamedBackend], findings: &mut Findings<'_>) {
    let mut taken: BTreeMap<&str, usize> =
        backends.iter().map(|backend| (backend.config.name.as_str(), backend.name_at)).collect();
    for backend in named {
        let Some(name) = backend.list.source.backend() else { continue };
        if let Some(first) = taken.insert(name, backend.name_at) {
            let line = findings.line(first);
            let text = format!("the backend name {name:?} is taken on line {line}; choose another");
            findings.error(backend.name_at, text);
        }
    }
}

struct PlacedBackend {
    config: BackendConfig,
    name_at: usize,
    address_at: usize,
    limits_at: Option<usize>,
}

fn backend(
    mut section: Section<'_>,
    front: Option<&Front>,
    service_check: &Keys,
    findings: &mut Findings<'_>,
) -> Option<Read> {
    section.require("name", "name = \"…\"", findings);
    section.require("address", "address = \"ADDR\" or \"ADDR:PORT\"", findings);
    let name = section.text("name", findings, value::name);
    let address = section.text("address", findings, place);
    let address = match address {
        Some(Located { at, value: Place::Name(host, port) }) => {
            return named(section, name, Located { at, value: (host, port) }, findings).map(Read::Named);
        }
        Some(Located { at, value: Place::Address(ip, port) }) => Some(Located { at, value: (ip, port) }),
        None => None,
    };
    let renamed_from = renamed_from(&mut section, name.as_ref(), findings);
    let address6 = section.text("address6", findings, value::address);
    let weight = section.integer("weight", findings, (0, 65_535)).map_or(DEFAULT_WEIGHT, |weight| weight.value);
    let backup = section.boolean("backup", findings).unwrap_or(false);
    let quic_server_id = section.text("quic_server_id", findings, str::parse::<ServerId>);
    let (limits, limits_at) = limits(&mut section, findings);
    let check = section
        .table("check", "check", "{ type = \"tcp\" }", findings)
        .and_then(|section| check(section, Some(service_check), findings))
        .map(|(_, check)| check);
    section.finish(findings);

    let (name, address) = (name?, address?);
    let front = front?;
    let mut socket = |address: Located<(IpAddr, Option<u16>)>| {
        let (ip, port) = address.value;
        let every = front.listen.iter().all(|listener| listener.ports == PortRange::EVERY);
        if port == Some(0) && !every {
            findings.error(address.at, port_zero(&name.value));
        }
        SocketAddr::new(ip, port.unwrap_or(0))
    };
    let address_at = address.at;
    let address = socket(address);
    let address6 = address6.map(|Located { at, value: (ip, port) }| {
        socket(Located { at, value: (ip, port.or((address.port() != 0).then_some(address.port()))) })
    });
    if let Some(check) = &check {
        needs_port(check, front.check_port(&check.value.kind, address.port()), findings);
        via_fits(check, front.forwarding, findings);
    }
    Some(Read::Backend(PlacedBackend {
        name_at: name.at,
        address_at,
        limits_at,
        config: BackendConfig {
            name: name.value,
            renamed_from,
            address,
            address6,
            weight,
            backup,
            limits,
            check: check.map(|check| Box::new(check.value)),
            quic_server_id: quic_server_id.map(|id| id.value),
            discovered: None,
        },
    }))
}

/// Reads the limits of a backend; the function also returns the position of one of these limits.
fn limits(section: &mut Section<'_>, findings: &mut Findings<'_>) -> (Limits, Option<usize>) {
    let mut limit = |key| section.integer(key, findings, (1, u32::MAX.into()));
    let (clients, connections) = (limit("max_clients"), limit("max_connections"));
    let at = connections.as_ref().or(clients.as_ref()).map(|limit| limit.at);
    (Limits { clients: clients.map(|of| of.value), connections: connections.map(|of| of.value) }, at)
}

/// Reads the remaining keys of a backend whose address is a DNS name.
fn named(
    mut section: Section<'_>,
    name: Option<Located<String>>,
    address: Located<(String, Option<u16>)>,
    findings: &mut Findings<'_>,
) -> Option<NamedBackend> {
    for (key, why) in [
        ("address6", "is for a numeric address: a name has the addresses of both families; remove it"),
        ("check", "is not for a backend whose address is a name; give the service that check"),
        ("renamed_from", "is not for a backend whose address is a name; keep the name"),
        ("quic_server_id", "is not for a backend whose address is a name; its name gives it one"),
        ("max_clients", "is not for a backend whose address is a name; set it at run time"),
        ("max_connections", "is not for a backend whose address is a name; set it at run time"),
    ] {
        section.refuse(key, why, findings);
    }
    let weight = section.integer("weight", findings, (0, 65_535)).map_or(DEFAULT_WEIGHT, |weight| weight.value);
    let backup = section.boolean("backup", findings).unwrap_or(false);
    section.finish(findings);
    let (name, (host, port)) = (name?, address.value);
    let records = Records::Backend { backend: name.value, port };
    let source = Source::Dns(DnsSource { records, name: host, family: None, servers: Vec::new() });
    let list = DiscoverConfig { own: Some(Own { weight, backup }), ..DiscoverConfig::new(source) };
    Some(NamedBackend { list, name_at: name.at })
}
