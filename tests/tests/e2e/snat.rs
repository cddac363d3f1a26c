//! Tests of `snat`: the backends need no special configuration, because they see the balancer's own address.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    thread,
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::send_all,
    site::{PATIENCE, Settings, Site},
    topology::{Family, Shape},
};

use crate::{doctor, support::wait_for};

const CLIENTS: RangeInclusive<u16> = 1..=60;
const BACKENDS: u16 = 3;
const PORT: u16 = 80;

fn site(shape: Shape, lines: &str) -> Site {
    adapted(shape, |settings| settings.service_lines = lines.to_owned())
}

fn adapted(shape: Shape, adapt: impl FnOnce(&mut Settings)) -> Site {
    let mut site = Site::start(shape, Forwarding::Snat, BACKENDS, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        settings.remember = "60s";
        settings.check = balancer_testkit::site::QUICK_CHECK.to_owned();
        settings.on_exit = "keep";
        adapt(settings);
        Ok(())
    })
    .unwrap();
    (1..=BACKENDS).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    site
}

/// Opens a client's connection from the client's own address.
pub(crate) fn connect(site: &Site, family: Family, client: u16) -> TcpStream {
    let vip = SocketAddr::new(site.topology().vip(family), PORT);
    let from = SocketAddr::new(site.topology().client_address(family, client), 0);
    let work = || {
        let domain = socket2::Domain::for_address(vip);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&vip.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>(stream)
    };
    site.topology().client().run_in_thread(work).unwrap().unwrap()
}

/// Sends a request on an open connection, and reads the head of the answer.
pub(crate) fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")?;
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Returns the number of connections of each backend, as `status` reports them.
fn active(site: &Site, service: usize) -> BTreeMap<String, u64> {
    let status = site.status().unwrap();
    let backends = status.services[service].backends.iter();
    backends.map(|backend| (backend.name.clone(), backend.active.unwrap_or(0))).collect()
}

#[test]
fn when_backends_have_no_route_to_clients_then_every_client_is_served_by_its_own() {
    for shape in [Shape::OneLegged, Shape::TwoLegged] {
        let site = site(shape, "");
        for family in Family::BOTH {
            let homes = site.homes(family, CLIENTS).unwrap();
            for (client, home) in &homes {
                assert_eq!(site.locate(family, *client).unwrap().1, *home);
            }
            assert_eq!(homes, site.homes(family, CLIENTS).unwrap());
        }
    }
}

/// Restarts the balancer and drains a backend while clients of both families are at backends of the other family.
fn the_other_family_serves(cells: [(Shape, &'static str); 2]) {
    for (shape, mode) in cells {
        let mut site = adapted(shape, |settings| (settings.crossed, settings.xdp_mode) = (true, mode));
        let homes = Family::BOTH.map(|family| site.homes(family, CLIENTS).unwrap());
        let open = |site: &Site| Family::BOTH.map(|family| connect(site, family, 7));
        let mut kept = open(&site);
        let works = |streams: &mut [TcpStream; 2]| {
            streams.iter_mut().all(|stream| ask(stream).unwrap().starts_with("HTTP/1.1 200"))
        };
        assert!(works(&mut kept));
        site.restart(|_| ()).unwrap();
        assert!(works(&mut kept), "a restart ends connections");
        assert_eq!(Family::BOTH.map(|family| site.homes(family, CLIENTS).unwrap()), homes);
        let listed = site.cli(&["flow", "list", "web", "--json"]).unwrap();
        let listed: Vec<balancer_api::model::FlowView> = serde_json::from_str(&listed).unwrap();
        let six = |text: &str| text.parse::<SocketAddr>().unwrap().is_ipv6();
        let right = |flow: &balancer_api::model::FlowView| {
            [&flow.client, &flow.vip, &flow.seen_as, &flow.address].map(|end| six(end)) == [false, false, true, true]
        };
        assert!(!listed.is_empty() && listed.iter().all(right), "{listed:?}");
        // A failed backend resets its connections, and the clients connect to others.
        let victim = homes[0][&7].clone();
        site.cli(&["backend", "maint", &format!("web/{victim}")]).unwrap();
        assert!(ask(&mut kept[0]).is_err(), "the connection of a backend in maintenance goes on");
        assert_ne!(site.homes(Family::V4, 7..=7).unwrap()[&7], victim);
    }
}

#[test]
fn when_backends_have_the_other_family_only_then_every_client_is_served_by_its_own() {
    the_other_family_serves([(Shape::OneLegged, "generic"), (Shape::TwoLegged, "native")]);
}

#[test]
fn when_both_families_of_a_service_have_backends_of_one_family_then_all_clients_are_served() {
    let site = site(Shape::TwoLegged, "");
    let topology = site.topology();
    let [v4, v6] = Family::BOTH.map(|family| SocketAddr::new(topology.vip(family), 81));
    let server = site.backend_address(Family::V4, 1);
    let text = format!(
        "[[service]]\nname = \"mixed\"\nlisten = [\"{v4}\", \"{v6}\"]\nforwarding = \"snat\"\nremember = \"60s\"\n\
         client_prefix = {{ v4 = 32, v6 = 128 }}\n[[service.backend]]\nname = \"web1\"\naddress = \"{server}\"\n"
    );
    let file = site.files().join("mixed.toml");
    std::fs::write(&file, text).unwrap();
    site.cli(&["drop-in", "apply", "mixed", &file.display().to_string()]).unwrap();
    let served = |family| {
        let mut request = site.request(family, 9);
        request.target.set_port(81);
        let replies = send_all(topology.client(), &[request], 1).unwrap();
        replies.into_iter().all(|reply| reply.is_ok_and(|reply| reply.answer().is_ok()))
    };
    for family in Family::BOTH {
        wait_for(PATIENCE, "it is not served", || served(family));
    }
}

#[test]
fn when_nobody_is_remembered_then_connections_work() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Snat, BACKENDS, |_, _| Ok(())).unwrap();
    (1..=BACKENDS).for_each(|number| site.wait_state(number, &["up"]).unwrap());
    let mut open = connect(&site, Family::V4, 1);
    for _ in 0..3 {
        assert!(ask(&mut open).unwrap().starts_with("HTTP/1.1 200"));
    }
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    assert_eq!(homes, site.homes(Family::V4, CLIENTS).unwrap());
}

#[test]
fn when_a_client_is_in_the_backends_own_subnet_then_it_is_served() {
    let site = site(Shape::OneLegged, "");
    for family in Family::BOTH {
        let vip = SocketAddr::new(site.topology().vip(family), PORT);
        let answer = site
            .topology()
            .client()
            .run_in_thread(|| {
                let mut stream = TcpStream::connect_timeout(&vip, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                ask(&mut stream)
            })
            .unwrap()
            .unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn when_ports_are_named_then_backends_see_those_and_the_kernel_gives_them_to_nobody() {
    let mut site = site(Shape::TwoLegged, "snat = { ports = \"40000-40099\" }");
    let reserved = |site: &Site| {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
        site.topology().balancer().run_in_thread(read).unwrap().unwrap().trim().to_owned()
    };
    assert_eq!(reserved(&site), "40000-40099");
    let _homes = site.homes(Family::V4, CLIENTS).unwrap();
    let listed = site.cli(&["flow", "list", "web", "--json"]).unwrap();
    let listed: Vec<balancer_api::model::FlowView> = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.len(), CLIENTS.count());
    let port = |flow: &balancer_api::model::FlowView| flow.seen_as.parse::<SocketAddr>().unwrap().port();
    assert!(listed.iter().all(|flow| (40_000..=40_099).contains(&port(flow))), "{listed:?}");
    site.apply(|settings| settings.service_lines = "snat = { ports = \"41000-41099\" }".to_owned()).unwrap();
    wait_for(PATIENCE, "others are not reserved", || reserved(&site) == "41000-41099");
}

#[test]
fn when_four_fifths_of_a_backends_ports_are_taken_then_status_log_and_doctor_say_so() {
    let site = site(Shape::TwoLegged, "snat = { ports = \"40000-40049\" }");
    let client = *CLIENTS.start();
    let said = |site: &Site| site.status().unwrap().services[0].warnings.clone();
    let few: Vec<TcpStream> = (0..30).map(|_| connect(&site, Family::V4, client)).collect();
    wait_for(PATIENCE, "they are not counted", || active(&site, 0).values().sum::<u64>() == 30);
    assert!(said(&site).is_empty(), "{:?}", said(&site));
    let more: Vec<TcpStream> = (0..12).map(|_| connect(&site, Family::V4, client)).collect();
    let home = site.locate(Family::V4, client).unwrap().1;
    let line = format!("84% of the ports for connections to backend web/{home} are taken; ");
    wait_for(PATIENCE, "it is not said", || matches!(&said(&site)[..], [only] if only.starts_with(&line)));
    let log = std::fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert_eq!(log.matches("of the ports for connections to backend").count(), 1, "{log}");
    assert_eq!(doctor::found(&site), ["ports"]);
    drop((few, more));
}

#[test]
fn when_a_client_opens_more_connections_than_a_backend_has_ports_one_after_another_then_all_are_served() {
    let site = site(Shape::TwoLegged, "snat = { ports = \"40000-40099\" }");
    for family in Family::BOTH {
        assert_eq!(site.homes(family, vec![*CLIENTS.start(); 400]).unwrap().len(), 1);
    }
    let dropped =
        |reason: &str| site.metrics().unwrap().sum("drops_total", &[&format!("reason=\"{reason}\"")]).unwrap();
    assert_eq!(["no_port", "flow_table_full"].map(dropped), [0.0; 2]);
}

#[test]
fn when_connections_are_open_then_they_are_listed_and_counted() {
    let site = site(Shape::TwoLegged, "");
    let mut open: Vec<_> = (1..=9).map(|client| connect(&site, Family::V4, client)).collect();
    open.iter_mut().for_each(|stream| assert!(ask(stream).unwrap().starts_with("HTTP/1.1 200")));
    wait_for(PATIENCE, "they are not counted", || active(&site, 0).values().sum::<u64>() == 9);
    let listed = site.cli(&["flow", "list", "web", "--json"]).unwrap();
    let listed: Vec<balancer_api::model::FlowView> = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.len(), 9);
    assert!(listed.iter().all(|flow| flow.state == "established" && flow.bytes_to_client > 0), "{listed:?}");
    let client = site.topology().client_address(Family::V4, 3).to_string();
    let one = site.cli(&["flow", "list", "--client", &client]).unwrap();
    assert_eq!(one.lines().count(), 2, "{one}");
    assert!(one.contains(&client) && one.starts_with("SERVICE"), "{one}");
    assert!(site.cli(&["status"]).unwrap().contains("ACTIVE"));
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("flows", &["service=\"web\""]).unwrap(), 9.0);
    assert_eq!(metrics.sum("flow_table_capacity", &[]).unwrap(), 262_144.0);
    drop(open);
    wait_for(PATIENCE, "they have not ended", || active(&site, 0).values().sum::<u64>() == 0);
}

#[test]
fn when_the_balancer_restarts_then_no_connection_is_lost() {
    let mut site = site(Shape::TwoLegged, "");
    let mut open: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| (1..=20).map(move |client| (family, client)))
        .map(|(family, client)| connect(&site, family, client))
        .collect();
    for round in 0..3 {
        open.iter_mut().for_each(|stream| assert!(ask(stream).unwrap().starts_with("HTTP/1.1 200"), "{round}"));
        if round == 0 {
            site.restart(|_| ()).unwrap();
        } else {
            site.kill_and_restart(|_| ()).unwrap();
        }
    }
    wait_for(PATIENCE, "they are not counted again", || active(&site, 0).values().sum::<u64>() == 20);
}

#[test]
fn when_a_drain_waits_for_connections_then_it_ends_once_they_have_ended() {
    let site = site(Shape::TwoLegged, "drain = { timeout = \"5m\", until = \"connections\", grace = \"1s\" }");
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let victims: Vec<u16> = homes.iter().filter(|(_, home)| **home == "web2").map(|(client, _)| *client).collect();
    let mut open = connect(&site, Family::V4, victims[0]);
    assert!(ask(&mut open).unwrap().starts_with("HTTP/1.1 200"));
    wait_for(PATIENCE, "other connections have not ended", || active(&site, 0)["web2"] == 1);
    site.cli(&["backend", "drain", "web/web2"]).unwrap();
    // The connection asks for longer than its grace; the pauses are the pace of the client.
    for _ in 0..8 {
        assert!(ask(&mut open).unwrap().starts_with("HTTP/1.1 200"));
        assert!(site.status().unwrap().services[0].backends[1].state.starts_with("draining"));
        thread::sleep(Duration::from_millis(500));
    }
    drop(open);
    wait_for(PATIENCE, "it is not drained", || site.status().unwrap().services[0].backends[1].state == "drained");
    let after = site.homes(Family::V4, CLIENTS).unwrap();
    assert!(after.iter().all(|(client, home)| home != "web2" && (homes[client] == "web2" || homes[client] == *home)));
}

#[test]
fn when_a_server_dies_then_its_connections_are_reset_and_nobody_else_notices() {
    let mut site = site(Shape::TwoLegged, "");
    let homes = site.homes(Family::V4, CLIENTS).unwrap();
    let of = |wanted: &str| homes.iter().find(|(_, home)| *home == wanted).map(|(client, _)| *client).unwrap();
    let (mut lost, mut kept) = (connect(&site, Family::V4, of("web2")), connect(&site, Family::V4, of("web1")));
    for stream in [&mut lost, &mut kept] {
        assert!(ask(stream).unwrap().starts_with("HTTP/1.1 200"));
    }
    // A failed machine sends nothing, not even a reset.
    site.topology().switch().ip("link set web2 down").unwrap();
    site.wait_state(2, &["down"]).unwrap();
    let error = ask(&mut lost).unwrap_err();
    assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    assert!(ask(&mut kept).unwrap().starts_with("HTTP/1.1 200"));
    let after = site.homes(Family::V4, CLIENTS).unwrap();
    assert!(homes.iter().all(|(client, home)| home == "web2" || after[client] == *home));
}
