//! Tests of changing a configuration key in a running service: the effects on the service's known clients and on their
//! connections. The balancer must announce and count exactly the effects that the table in `docs/src/configuration.md`
//! lists for the key. The kernel program and the controller's core run in one process.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use balancer_common::verdict::{Decision, MoveCause};
use balancer_config::config::{BackendConfig, Config, ServiceConfig};
use balancer_control::{io::CheckOutcome, plan::PlannedService};
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{VIP, World, client};
use balancer_testkit::frame::{ACK, Frame, SYN, Transport};

const CLIENTS: u32 = 400;
const ONE: &str = r#"listen = ["198.51.100.10:80"]"#;

/// The effect that the change of a key has on known clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    /// All known clients stay known at their backends.
    Stay,
    /// All known clients become unknown.
    Forgotten,
    /// Clients that did not return during the second half of the test's waiting time become unknown.
    OlderForgotten,
    /// The clients of web3 move, for the given reason.
    Moved(MoveCause),
    /// Clients that moved because web3 failed move back to web3.
    GoHome,
    /// No backend takes the clients of web3 any more.
    TurnedAway,
    /// After the change, some clients go to the host; all other clients stay at their backends.
    SentBack,
}

/// The effect of the change on the connections of clients that do not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connections {
    /// The connections continue at their backends.
    GoOn,
    /// Connections to the old address or over the old protocol no longer belong to the service.
    End,
}

/// The events before the test changes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A minute and a half passes, and half of the clients send packets again.
    HalfComeBack,
    /// The checks of web3 get no answer, so web3 fails.
    Failed,
    /// web3 fails, the clients of web3 move when they return, and web3 recovers.
    FailedAndReturned,
    /// All backends fail; the test considers only web3's clients.
    AllFailed,
}

struct Case {
    /// The configuration key: a key of the service, or `backend.KEY` for a key of a backend.
    key: &'static str,
    /// The line `KEY = VALUE` before and after the change; `""` if the key is absent from the file.
    change: (&'static str, &'static str),
    /// Additional lines in the service's section.
    with: &'static str,
    before: Before,
    clients: Clients,
    connections: Connections,
}

const fn case(key: &'static str, change: (&'static str, &'static str), clients: Clients) -> Case {
    Case { key, change, with: "", before: Before::Nothing, clients, connections: Connections::GoOn }
}

/// Returns a case for every key of `[[service]]` and `[[service.backend]]`, with the effects that the table in the book
/// lists.
fn cases() -> Vec<Case> {
    use Clients::{Forgotten, GoHome, Moved, OlderForgotten, SentBack, Stay, TurnedAway};
    let check = r#"check = { type = "tcp" }"#;
    vec![
        case("name", (r#"name = "web""#, r#"name = "www""#), Forgotten),
        case("renamed_from", (r#"name = "web""#, "name = \"www\"\nrenamed_from = \"web\""), Stay),
        case("renamed_from", ("name = \"www\"\nrenamed_from = \"web\"", r#"name = "www""#), Forgotten),
        case("renamed_from", ("name = \"b\"\nrenamed_from = \"a\"", "name = \"c\"\nrenamed_from = \"a\""), Stay),
        case("renamed_from", ("name = \"b\"\nrenamed_from = \"a\"", "name = \"c\"\nrenamed_from = \"b\""), Forgotten),
        Case {
            connections: Connections::End,
            ..case("address", (r#"address = "198.51.100.10:80""#, r#"address = "198.51.100.20:80""#), Stay)
        },
        Case {
            connections: Connections::End,
            ..case("protocol", (r#"protocol = "tcp""#, r#"protocol = "udp""#), Stay)
        },
        case("listen", (ONE, r#"listen = ["198.51.100.10:80", "198.51.100.10:443", "198.51.100.10:443/udp"]"#), Stay),
        case("listen", (r#"listen = ["198.51.100.10:80", "198.51.100.10:443"]"#, ONE), Stay),
        case("listen", (ONE, r#"listen = ["198.51.100.10:0"]"#), Stay),
        case("listen", (ONE, r#"listen = ["198.51.100.10:50-100"]"#), Stay),
        Case { connections: Connections::End, ..case("listen", (ONE, r#"listen = ["198.51.100.10:443"]"#), Stay) },
        Case { with: r#"forwarding = "nat""#, ..case("ports", ("", "ports = { 80 = 8080 }"), Stay) },
        case("forwarding", (r#"forwarding = "dsr""#, r#"forwarding = "nat""#), Stay),
        case("table_size", ("table_size = 65537", "table_size = 1009"), Stay),
        case("client_prefix", ("", "client_prefix = { v4 = 24 }"), Forgotten),
        case("client_prefix", ("client_prefix = { v4 = 24 }", ""), Forgotten),
        // The changed prefix applies to the other address family.
        case("client_prefix", ("", "client_prefix = { v6 = 56 }"), Stay),
        Case {
            before: Before::HalfComeBack,
            ..case("remember", (r#"remember = "10m""#, r#"remember = "1m""#), OlderForgotten)
        },
        // The change gives the ticks of the service's clock another length.
        Case {
            before: Before::HalfComeBack,
            ..case("remember", (r#"remember = "2h""#, r#"remember = "1m""#), OlderForgotten)
        },
        case("remember", (r#"remember = "10m""#, r#"remember = "3h""#), Stay),
        Case {
            before: Before::FailedAndReturned,
            with: check,
            ..case("remember", (r#"remember = "10m""#, r#"remember = "0s""#), Forgotten)
        },
        Case {
            before: Before::FailedAndReturned,
            with: check,
            ..case("failback", (r#"failback = "stay""#, r#"failback = "return""#), GoHome)
        },
        Case {
            before: Before::AllFailed,
            with: check,
            ..case("when_all_down", (r#"when_all_down = "open""#, r#"when_all_down = "drop""#), Stay)
        },
        Case {
            before: Before::AllFailed,
            with: r#"check = { type = "tcp" }
outage = { share = 1 }"#,
            ..case("when_all_down", (r#"when_all_down = "open""#, r#"when_all_down = "drop""#), TurnedAway)
        },
        case("when_full", ("", r#"when_full = "drop""#), Stay),
        case("spread_heavy", ("", "spread_heavy = 0.2"), Stay),
        case("expect", ("", "expect = 1"), Stay),
        case("slow_start", ("", r#"slow_start = "30s""#), Stay),
        case("drain", ("", r#"drain = { timeout = "1m" }"#), Stay),
        Case {
            before: Before::Failed,
            with: check,
            ..case(
                "on_failure",
                (r#"on_failure = { hard = "drain" }"#, r#"on_failure = { hard = "move" }"#),
                Moved(MoveCause::Down),
            )
        },
        Case { with: r#"forwarding = "nat""#, ..case("withhold", ("", r#"withhold = "2s""#), Stay) },
        case("restart_grace", ("", r#"restart_grace = "5s""#), Stay),
        case("outage", ("", "outage = { share = 0.9 }"), Stay),
        case("outage", ("", r#"outage = { hold = "30s" }"#), Stay),
        case("start_down", ("", "start_down = true"), Stay),
        case("reject", ("", "reject = true"), Stay),
        case("steer", ("", "steer = 30"), SentBack),
        case("assign_vip", ("", "assign_vip = true"), Stay),
        case("assign_vip", ("assign_vip = true", "assign_vip = \"lo\""), Stay),
        case("deny", ("", r#"deny = { file = "/nonexistent" }"#), Stay),
        case("discover", ("", r#"discover = [{ file = "/nonexistent" }]"#), Stay),
        case("discover", ("", r#"discover = [{ dns_a = "web.invalid", servers = ["127.0.0.1:9"] }]"#), Stay),
        case("rule", ("", r#"rule = [{ prefix = "203.0.113.0/24", action = "deny" }]"#), Stay),
        case("check", (r#"check = { type = "none" }"#, check), Stay),
        case("backend", ("", "removed"), Moved(MoveCause::Removed)),
        case("backend.name", ("backend.name = web3", "backend.name = web9"), Moved(MoveCause::Removed)),
        case("backend.renamed_from", ("backend.name = web3", "backend.renamed_from = web3"), Stay),
        case("backend.address", ("", "backend.address"), Stay),
        case("backend.address6", ("", r#"backend.address6 = "fd00::13""#), Stay),
        case("backend.weight", ("", "backend.weight = 10"), Stay),
        case("backend.weight", ("", "backend.weight = 0"), Stay),
        case("backend.backup", ("", "backend.backup = true"), Stay),
        case("backend.max_clients", ("", "backend.max_clients = 1"), Stay),
        case("backend.check", ("", r#"backend.check = { type = "tcp" }"#), Stay),
    ]
}

/// Returns a configuration file with the given lines, each of which replaces a default line with the same key. Lines
/// that begin with `backend.` belong to web3.
fn file(with: &str, lines: &str) -> String {
    let defaults = [
        ("name", r#""web""#),
        ("address", r#""198.51.100.10:80""#),
        ("forwarding", r#""dsr""#),
        ("remember", r#""10m""#),
        ("check", r#"{ type = "none" }"#),
    ];
    let mut keys: BTreeMap<&str, &str> = defaults.into();
    let mut third = vec![("name", "\"web3\""), ("address", "\"10.0.0.13\"")];
    let mut there = true;
    for line in with.lines().chain(lines.lines()) {
        match line.split_once(" = ") {
            Some(("backend.name", "web3")) => {}
            Some(("backend.name", _)) => third[0].1 = "\"web9\"",
            Some(("backend.renamed_from", _)) => {
                third[0].1 = "\"web9\"";
                third.push(("renamed_from", "\"web3\""));
            }
            Some((key, value)) => match key.strip_prefix("backend.") {
                Some(key) => third.push((key, value)),
                None => drop(keys.insert(key, value)),
            },
            None if line == "backend.address" => third[1].1 = "\"10.0.0.23\"",
            // The value `removed` stands for an absent line.
            None => there = false,
        }
    }
    if keys.contains_key("listen") {
        keys.remove("address");
    }
    let mut text = "[client_table]\ncapacity = 65536\n[[service]]\n".to_owned();
    keys.iter().for_each(|(key, value)| text += &format!("{key} = {value}\n"));
    for number in [1, 2, 4] {
        text += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"10.0.0.1{number}\"\n");
    }
    if there {
        text += "[[service.backend]]\n";
        third.iter().for_each(|(key, value)| text += &format!("{key} = {value}\n"));
    }
    text
}

/// Returns the keys of a service and a backend. If the structures get a new field, the function does not compile.
fn keys(service: &ServiceConfig, backend: &BackendConfig) -> Vec<&'static str> {
    let ServiceConfig {
        name: _,
        renamed_from: _,
        drop_in: _,
        listen: _,
        ports: _,
        forwarding: _,
        table_size: _,
        client_prefix: _,
        remember: _,
        failback: _,
        when_all_down: _,
        when_full: _,
        slow_start: _,
        drain_timeout: _,
        drain_until: _,
        drain_grace: _,
        snat: _,
        on_failure: _,
        withhold: _,
        restart_grace: _,
        outage: _,
        start_down: _,
        reject: _,
        steer: _,
        assign_vip: _,
        deny: _,
        discover: _,
        agent: _,
        bounded_load: _,
        quic: _,
        spread_heavy: _,
        expect: _,
        check: _,
        backends: _,
        rules: _,
    } = service;
    let BackendConfig {
        name: _,
        renamed_from: _,
        address: _,
        address6: _,
        weight: _,
        backup: _,
        limits: _,
        check: _,
        quic_server_id: _,
        discovered: _,
    } = backend;
    vec![
        "name",
        "renamed_from",
        "address",
        "protocol",
        "listen",
        "ports",
        "forwarding",
        "table_size",
        "client_prefix",
        "remember",
        "failback",
        "when_all_down",
        "when_full",
        "slow_start",
        "drain",
        "on_failure",
        "withhold",
        "restart_grace",
        "outage",
        "start_down",
        "reject",
        "steer",
        "assign_vip",
        "deny",
        "discover",
        "spread_heavy",
        "expect",
        "rule",
        "check",
        "backend",
        "backend.name",
        "backend.renamed_from",
        "backend.address",
        "backend.address6",
        "backend.weight",
        "backend.backup",
        "backend.max_clients",
        "backend.check",
    ]
}

fn config(text: &str) -> Result<Config> {
    Ok(balancer_config::file::parse("file.toml".as_ref(), text.as_bytes())?.0)
}

/// Sends a client's packet to the listener that the service has at this time, and returns the backend.
fn send(world: &mut World, number: u32, flags: u8) -> Result<Option<String>> {
    let service = world.controller().services().first().context("no service")?;
    let (listener, _) = service.listeners().next().context("no listener")?;
    let port = if listener.ports.contains(80) { 80 } else { listener.ports.first };
    let transport = match listener.protocol {
        balancer_config::config::Protocol::Tcp => Transport::Tcp(flags),
        balancer_config::config::Protocol::Udp | balancer_config::config::Protocol::Quic => Transport::Udp,
    };
    let mut frame = Frame::new("192.0.2.1:40000", &SocketAddr::new(listener.address, port).to_string(), transport);
    frame.source = SocketAddr::new(client(number).into(), 40_000);
    frame.payload.clear();
    world.deliver(&frame)
}

fn connect_all(world: &mut World) -> Result<Vec<Option<String>>> {
    (0..CLIENTS).map(|number| send(world, number, SYN)).collect()
}

fn prepare(world: &mut World, before: Before) -> Result<()> {
    let refused = CheckOutcome::Hard("connect: refused".to_owned());
    match before {
        Before::Nothing => {}
        Before::HalfComeBack => {
            world.skip(90)?;
            for number in (0..CLIENTS).filter(|number| number % 2 == 0) {
                send(world, number, SYN)?;
            }
        }
        Before::Failed => world.checked("web3", &refused, 3)?,
        Before::FailedAndReturned => {
            world.checked("web3", &refused, 3)?;
            connect_all(world)?;
            world.checked("web3", &CheckOutcome::Passed, 2)?;
        }
        Before::AllFailed => {
            for backend in ["web1", "web2", "web3", "web4"] {
                world.checked(backend, &refused, 3)?;
            }
        }
    }
    world.pass(1)
}

fn run(case: &Case) -> Result<()> {
    let (old, new) = case.change;
    let mut world = World::of(&file(case.with, old))?;
    connect_all(&mut world)?;
    prepare(&mut world, case.before)?;
    let homes = connect_some(&mut world, case)?;
    let before = world.counters()?;

    let mut known = 0;
    world.dataplane_mut().known_clients().into_iter().for_each(|clients| clients.for_each(|_, _| known += 1));
    let planned = world.plan(&file(case.with, new))?;
    let message = world.apply(&file(case.with, new))?;
    let of: Vec<&PlannedService> =
        planned.services.iter().filter(|of| of.known_clients_moved + of.known_clients_forgotten > 0).collect();
    let (moved, forgotten) = of
        .iter()
        .fold((0, 0), |sum: (u64, u64), of| (sum.0 + of.known_clients_moved, sum.1 + of.known_clients_forgotten));
    println!("{:22} {:?}: {moved} moved, {forgotten} forgotten; {}", case.key, case.change, planned.message);
    ensure!(planned.message.starts_with(&message), "{:?} begins otherwise than {message:?}", planned.message);
    ensure!(world.forgotten() == forgotten, "{} forgotten, {forgotten} announced", world.forgotten());
    ensure!(of.iter().all(|of| of.forgotten_because.is_some() == (of.known_clients_forgotten > 0)), "why? {of:?}");

    let third = homes.iter().flatten().filter(|home| *home == "web3").count() as u64;
    let at_change = world.counters()?.moved(MoveCause::Forgotten) - before.moved(MoveCause::Forgotten);
    // The test uses the open connections first, because open connections must work without help from new connections.
    let renamed = |home: &Option<String>| {
        let is = |name: &str| world.controller().services()[0].backends().iter().any(|backend| backend.name() == name);
        home.as_deref().map(|name| if name == "web3" && is("web9") { "web9".to_owned() } else { name.to_owned() })
    };
    let stays = case.clients == Clients::Stay;
    let expected: Vec<_> = homes.iter().map(|home| if stays { renamed(home) } else { home.clone() }).collect();
    if stays {
        for (number, home) in (0..CLIENTS).zip(&expected) {
            let to = send(&mut world, number, ACK)?;
            ensure!(&to == home, "client {number} of {home:?} went to {to:?} in a connection");
        }
        if case.connections == Connections::End {
            let mut frame = Frame::new("192.0.2.1:40000", VIP, Transport::Tcp(ACK));
            frame.source = SocketAddr::new(client(1).into(), 40_000);
            ensure!(world.deliver(&frame)?.is_none(), "the service's before");
        }
    }
    let after = connect_all(&mut world)?;
    let elsewhere = after.iter().zip(&expected).filter(|(after, before)| after != before).count() as u64;
    let counters = world.counters()?;
    let counted = |cause| counters.moved(cause) - before.moved(cause);
    let new_clients = counters.decided(Decision::New) - before.decided(Decision::New);
    let all = u64::from(CLIENTS);
    let stateless = counters.decided(Decision::Stateless) > before.decided(Decision::Stateless);
    let told = (moved, forgotten);
    match case.clients {
        Clients::Stay => {
            ensure!(told == (0, 0) && elsewhere == 0, "{told:?}, {elsewhere} elsewhere");
            ensure!(counters.moves == before.moves, "{:?}", counters.moves);
        }
        Clients::Forgotten if stateless => {
            ensure!(forgotten == known && known == all, "{told:?} of {known}");
            ensure!(at_change == moved && moved == elsewhere && moved > 50, "{told:?}, {elsewhere} elsewhere");
        }
        Clients::Forgotten => {
            ensure!(told == (0, known) && at_change == known && elsewhere > 0, "{told:?}, {elsewhere} elsewhere");
            // For the balancer, clients that share a prefix are one client.
            ensure!(new_clients == all || case.key == "client_prefix" && new_clients > 0, "{new_clients} new");
        }
        Clients::OlderForgotten => {
            ensure!(told == (0, all / 2) && at_change == 0 && elsewhere == 0, "{told:?}, {elsewhere} elsewhere");
            ensure!(new_clients == all / 2, "{new_clients} new");
        }
        Clients::Moved(cause) => {
            ensure!(told == (third, 0) && elsewhere == third && third > 50, "{told:?}, {elsewhere} of {third}");
            ensure!(counted(cause) == third, "{} counted", counted(cause));
        }
        Clients::GoHome => {
            ensure!(told == (elsewhere, 0) && elsewhere > 50, "{told:?}, {elsewhere} elsewhere");
            ensure!(counted(MoveCause::Failback) == elsewhere, "{:?}", counters.moves);
        }
        Clients::SentBack => {
            let back = after.iter().filter(|home| home.is_none()).count() as u64;
            ensure!(told == (0, 0) && elsewhere == back && back > all / 2 && back < all, "{told:?}, {back} sent back");
            ensure!(counters.moves == before.moves, "{:?}", counters.moves);
        }
        Clients::TurnedAway => {
            ensure!(told == (all, 0) && after.iter().all(Option::is_none), "{told:?}");
        }
    }
    Ok(())
}

/// Opens connections of all clients, unless the case requires that clients do not return.
fn connect_some(world: &mut World, case: &Case) -> Result<Vec<Option<String>>> {
    if case.clients == Clients::OlderForgotten {
        let id = world.controller().services()[0].id();
        let name = |world: &World, number| {
            let known = world.dataplane().client(id, client(number).into())?;
            world.controller().name_of(known.backend).map(str::to_owned)
        };
        return Ok((0..CLIENTS).map(|number| name(world, number)).collect());
    }
    connect_all(world)
}

/// Runs every fourth case from number `part` on, each with a newly loaded program.
#[track_caller]
fn run_part(part: usize) {
    let failures: Vec<String> = cases()
        .iter()
        .skip(part)
        .step_by(4)
        .filter_map(|case| run(case).err().map(|error| format!("{} {:?}: {error:#}", case.key, case.change)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn when_a_key_changes_then_known_clients_fare_as_documented_1() {
    run_part(0);
}

#[test]
fn when_a_key_changes_then_known_clients_fare_as_documented_2() {
    run_part(1);
}

#[test]
fn when_a_key_changes_then_known_clients_fare_as_documented_3() {
    run_part(2);
}

#[test]
fn when_a_key_changes_then_known_clients_fare_as_documented_4() {
    run_part(3);
}

#[test]
fn when_a_key_exists_then_a_case_and_the_book_have_it() -> Result<()> {
    let config = config(&file("", ""))?;
    let service = config.services.first().context("a service")?;
    let backend = service.backends.first().context("a backend")?;
    let chapter = include_str!("../../../docs/src/configuration.md");
    let (_, section) = chapter.split_once("\n## What changing a key does\n").context("the section")?;
    let (table, _) = section.split_once("\n## ").context("the end of the section")?;
    for key in keys(service, backend) {
        assert!(cases().iter().any(|case| case.key == key), "no case for {key}");
        assert!(table.contains(&format!("`{key}`")), "{key} is not in the table of docs/src/configuration.md");
    }
    Ok(())
}
