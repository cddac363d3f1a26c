//! Tests of backends that run on the balancer's own machine.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod direct;
mod release;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    path::Path,
    thread,
};

use balancer_api::model::HealthView;
use balancer_common::map_types::Forwarding;
use balancer_config::config::forwarding_word;
use balancer_testkit::{
    backend::Backend,
    binaries,
    controller::Controller,
    site::{PATIENCE, PORT, QUICK_CHECK, Site, backend_port, service},
    topology::{Family, Shape, Topology},
    xdp::{Hook, Passer},
};
use tempfile::TempDir;

use crate::{
    doctor,
    support::{homes, requests, wait_for},
};

const CLIENTS: RangeInclusive<u16> = 1..=60;

/// Starts a site with two servers, and a third server named `own` on the balancer's host.
fn site(shape: Shape, forwarding: Forwarding, family: Family) -> (Site, Backend) {
    let (own, _) = Topology::balancer_address(family);
    let own = SocketAddr::new(own, backend_port(forwarding));
    let site = Site::start(shape, forwarding, 2, |settings, _| {
        settings.families = vec![family];
        settings.remember = "60s";
        settings.check = QUICK_CHECK.to_owned();
        settings.on_exit = "keep";
        settings.service_lines = format!("[[service.backend]]\nname = \"own\"\naddress = \"{own}\"\n");
        Ok(())
    })
    .unwrap();
    let server = serve(&site, forwarding, family);
    for name in ["web1", "web2", "own"] {
        wait_for(PATIENCE, &format!("{name} is up"), || state(&site, name) == "up");
    }
    (site, server)
}

fn serve(site: &Site, forwarding: Forwarding, family: Family) -> Backend {
    let port = backend_port(forwarding);
    let (own, _) = Topology::balancer_address(family);
    let vip = site.topology().vip(family);
    let translated = matches!(forwarding, Forwarding::Nat | Forwarding::Snat);
    let at = if translated { vec![own] } else { vec![own, vip] };
    let listen: Vec<_> = at.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    Backend::start(&binaries::balancer().unwrap(), site.topology().balancer(), "own", &listen, site.files()).unwrap()
}

fn state(site: &Site, name: &str) -> String {
    let status = site.status().unwrap();
    status.services[0].backends.iter().find(|backend| backend.name == name).unwrap().state.clone()
}

fn local(site: &Site) -> u64 {
    site.status().unwrap().interfaces.iter().map(|interface| interface.packets_seen.local).sum()
}

fn this_machine_serves_its_share(cells: &[(Forwarding, Family, Shape)]) {
    for &(forwarding, family, shape) in cells {
        let (site, _server) = site(shape, forwarding, family);
        let homes = served(site.topology(), family, CLIENTS);
        let own = homes.values().filter(|home| *home == "own").count();
        assert!((5..=35).contains(&own), "{forwarding:?} {family:?}: {homes:?}");
        assert_eq!(homes, served(site.topology(), family, CLIENTS), "{forwarding:?} {family:?}");
        for (client, home) in &homes {
            assert_eq!(site.locate(family, *client).unwrap().1, *home);
        }
        // Each client sends at least three packets: a SYN, a request and a FIN.
        assert!(local(&site) >= 3 * own as u64);
        let metrics = site.metrics().unwrap();
        assert!(metrics.sum("packets_seen_total", &["verdict=\"local\""]).unwrap() >= 3.0 * own as f64);
        assert_eq!(doctor::found(&site), Vec::<String>::new(), "{forwarding:?} {family:?}");
    }
}

#[test]
fn when_this_machine_is_a_backend_then_it_serves_its_share_and_keeps_its_clients() {
    this_machine_serves_its_share(&[
        (Forwarding::Nat, Family::V4, Shape::TwoLegged),
        (Forwarding::Gue, Family::V6, Shape::OneLegged),
    ]);
}

#[test]
fn when_this_machine_has_no_address_of_the_clients_family_then_it_is_down_as_a_snat_backend() {
    for family in Family::BOTH {
        let (own, _) = Topology::balancer_address(family.other());
        let own = SocketAddr::new(own, backend_port(Forwarding::Snat));
        let site = Site::start(Shape::TwoLegged, Forwarding::Snat, 2, |settings, _| {
            settings.families = vec![family];
            settings.check = QUICK_CHECK.to_owned();
            settings.service_lines = format!("[[service.backend]]\nname = \"own\"\naddress = \"{own}\"\n");
            Ok(())
        })
        .unwrap();
        let _server = serve(&site, Forwarding::Snat, family.other());
        wait_for(PATIENCE, "it is not down", || state(&site, "own") == "down");
        let status = site.status().unwrap();
        let reason = &status.services[0].backends.iter().find(|backend| backend.name == "own").unwrap().reason;
        let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let expected =
            format!("{} is an address of this machine; give the backend an {name} address as well", own.ip());
        assert!(reason.contains(&expected), "{reason}");
        let homes = served(site.topology(), family, CLIENTS);
        assert!(homes.values().all(|home| home != "own") && local(&site) == 0, "{homes:?}");
    }
}

fn only_its_clients_move(modes: &[Forwarding]) {
    for &forwarding in modes {
        let (site, server) = site(Shape::OneLegged, forwarding, Family::V4);
        let before = served(site.topology(), Family::V4, CLIENTS);
        drop(server);
        wait_for(PATIENCE, "it is down", || state(&site, "own") == "down");
        let after = served(site.topology(), Family::V4, CLIENTS);
        assert!(after.values().all(|home| home != "own"), "{forwarding:?}");
        assert!(before.iter().all(|(client, home)| home == "own" || after[client] == *home), "{forwarding:?}");
    }
}

#[test]
fn when_the_server_on_this_machine_dies_then_only_its_clients_move() {
    only_its_clients_move(&[Forwarding::Nat]);
}

#[test]
fn when_the_kernels_maps_grow_then_this_machine_serves_on() {
    let (mut site, _server) = site(Shape::OneLegged, Forwarding::Nat, Family::V4);
    let before = served(site.topology(), Family::V4, CLIENTS);
    assert!(before.values().any(|home| home == "own"), "{before:?}");
    // There is room for 128 services at the start.
    for (drop_in, services) in [("more", 0..140), ("evenmore", 140..280)] {
        let service = |number: u32| {
            format!(
                "[[service]]\nname = \"s{number}\"\naddress = \"198.18.1.{}:{}\"\n",
                1 + number % 200,
                80 + number / 200
            ) + "forwarding = \"dsr\"\ntable_size = 11\nremember = \"0s\"\ncheck = { type = \"none\" }\n"
        };
        let file = site.files().join("more.toml");
        fs::write(&file, services.map(service).collect::<String>()).unwrap();
        site.cli(&["drop-in", "apply", drop_in, &file.display().to_string()]).unwrap();
        assert_eq!(before, served(site.topology(), Family::V4, CLIENTS), "{drop_in}");
    }
    site.kill_and_restart_with_the_file_as_it_is().unwrap();
    assert_eq!(before, served(site.topology(), Family::V4, CLIENTS));
    assert!(doctor::found(&site).iter().all(|found| found == "no-backends"), "{:?}", doctor::found(&site));
}

fn clients_stay_where_they_are(modes: &[Forwarding]) {
    for &forwarding in modes {
        let (mut site, _server) = site(Shape::OneLegged, forwarding, Family::V4);
        let before = served(site.topology(), Family::V4, CLIENTS);
        site.restart(|_| ()).unwrap();
        assert_eq!(before, served(site.topology(), Family::V4, CLIENTS), "{forwarding:?}");
        site.kill_and_restart(|_| ()).unwrap();
        assert_eq!(before, served(site.topology(), Family::V4, CLIENTS), "{forwarding:?}");
        site.cli(&["backend", "drain", "web/own", "--timeout", "1h"]).unwrap();
        assert_eq!(before, served(site.topology(), Family::V4, CLIENTS), "{forwarding:?}");
        let newcomers = served(site.topology(), Family::V4, 100..=160);
        assert!(newcomers.values().all(|home| home != "own"), "{forwarding:?}");
    }
}

#[test]
fn when_the_balancer_restarts_or_drains_its_own_server_then_clients_stay_where_they_are() {
    clients_stay_where_they_are(&[Forwarding::Nat]);
}

/// Returns the server that answers each client; the server may see any source address.
#[track_caller]
fn served(topology: &Topology, family: Family, clients: RangeInclusive<u16>) -> BTreeMap<u16, String> {
    let homes = homes(topology, &requests(topology, family, PORT, clients.clone()));
    clients.zip(homes).collect()
}

/// Two machines that are both server and balancer. The router sends packets for the VIP to one of the two machines.
struct Pair {
    controllers: [Controller; 2],
    _servers: [Backend; 2],
    _senders: [Passer; 2],
    topology: Topology,
    _files: TempDir,
}

impl Pair {
    fn start(forwarding: Forwarding, family: Family) -> Self {
        let topology = Topology::new(Shape::Routed, Forwarding::Dsr, 2).unwrap();
        let files = tempfile::tempdir().unwrap();
        let binary = binaries::balancer().unwrap();
        let machine = |number: u16| {
            let host = &topology.backends()[usize::from(number)];
            let own = topology.backend_address(family, number);
            let listen = if forwarding == Forwarding::Dsr { vec![own, topology.vip(family)] } else { vec![own] };
            let listen: Vec<_> = listen.into_iter().map(|address| SocketAddr::new(address, 80)).collect();
            let server = Backend::start(&binary, host, &format!("web{}", number + 1), &listen, files.path()).unwrap();
            let (config, socket) = (path(files.path(), number, "toml"), path(files.path(), number, "sock"));
            fs::write(&config, Self::config(&topology, files.path(), (forwarding, family), number)).unwrap();
            let log = path(files.path(), number, "log");
            let mut controller = Controller::start(host, &binary, &config, &socket, &log).unwrap();
            controller.wait_ready(PATIENCE).unwrap();
            let sender = Passer::attach(topology.switch(), &format!("web{}", number + 1), Hook::Native).unwrap();
            (controller, server, sender)
        };
        let ((first, one, here), (second, other, there)) = (machine(0), machine(1));
        Self { controllers: [first, second], _servers: [one, other], _senders: [here, there], topology, _files: files }
    }

    fn config(topology: &Topology, files: &Path, (forwarding, family): (Forwarding, Family), number: u16) -> String {
        let backend = |of: u16| {
            let address = SocketAddr::new(topology.backend_address(family, of), 80);
            format!("[[service.backend]]\nname = \"web{}\"\naddress = \"{address}\"\n", of + 1)
        };
        format!(
            "interfaces = [\"eth0\"]\nstate_file = {:?}\n[control]\nsocket = {:?}\n\
             [hash]\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n\
             [[service]]\nname = \"{}\"\naddress = \"{}\"\nforwarding = \"{}\"\nremember = \"60s\"\nclient_prefix = {{ v6 = 128 }}\n\
             check = {QUICK_CHECK}\n{}{}",
            path(files, number, "json"),
            path(files, number, "sock"),
            service(family),
            SocketAddr::new(topology.vip(family), 80),
            forwarding_word(forwarding),
            backend(0),
            backend(1),
        )
    }

    fn vip_is_at(&self, family: Family, number: u16) {
        let (vip, machine) = (self.topology.vip(family), self.topology.backend_address(family, number));
        self.topology.router().ip(&format!("route replace {vip} via {machine}")).unwrap();
    }

    /// The number of servers that a machine finds up.
    fn up(&self, family: Family, number: u16) -> usize {
        let output = self.controllers[usize::from(number)].cli(&["health", "show", service(family), "--json"]).unwrap();
        let health: Vec<HealthView> = serde_json::from_slice(&output.stdout).unwrap();
        health.iter().filter(|backend| backend.verdict == "up").count()
    }

    fn tell(&self, number: u16, arguments: &[&str]) {
        let output = self.controllers[usize::from(number)].cli(arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn path(files: &Path, number: u16, kind: &str) -> std::path::PathBuf {
    files.join(format!("machine{number}.{kind}"))
}

#[test]
fn when_two_machines_are_servers_and_balancers_then_clients_stay_when_the_vip_moves() {
    for family in Family::BOTH {
        let pair = Pair::start(Forwarding::Dsr, family);
        pair.vip_is_at(family, 0);
        let before = served(&pair.topology, family, CLIENTS);
        assert!(["web1", "web2"].iter().all(|name| before.values().any(|home| home == name)), "{before:?}");
        pair.vip_is_at(family, 1);
        assert_eq!(before, served(&pair.topology, family, CLIENTS));
        pair.vip_is_at(family, 0);
        assert_eq!(before, served(&pair.topology, family, CLIENTS));
    }
}

#[test]
fn when_two_machines_disagree_then_the_one_that_gets_a_packet_from_the_other_serves_it() {
    let family = Family::V4;
    let mut pair = Pair::start(Forwarding::Dsr, family);
    let name = service(family);
    // Each machine considers its own server unusable, and sends all clients to the server on the other machine.
    for number in 0..2 {
        pair.tell(number, &["backend", "maint", &format!("{name}/web{}", number + 1)]);
    }
    for number in 0..2 {
        pair.vip_is_at(family, number);
        let other = format!("web{}", 2 - number);
        assert!(served(&pair.topology, family, CLIENTS).values().all(|home| *home == other));
    }
    // Each machine now considers the server of the other machine unusable.
    for number in 0..2 {
        pair.tell(number, &["backend", "ready", &format!("{name}/web{}", number + 1)]);
        pair.tell(number, &["backend", "maint", &format!("{name}/web{}", 2 - number)]);
    }
    for number in 0..2 {
        pair.vip_is_at(family, number);
        let own = format!("web{}", number + 1);
        assert!(served(&pair.topology, family, CLIENTS).values().all(|home| *home == own));
    }
    pair.controllers.iter_mut().for_each(|controller| drop(controller.process().stop()));
}

const UDP: u16 = 5300;

/// Checks that a datagram of `size` bytes to `target` returns unchanged.
fn comes_back(site: &Site, family: Family, target: SocketAddr, size: usize) {
    let from = SocketAddr::new(site.topology().client_address(family, 1), 0);
    let ask = || {
        let socket = UdpSocket::bind(from)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target)?;
        let sent: Vec<u8> = (0..size).map(|place| place as u8).collect();
        socket.send(&sent)?;
        let mut answer = vec![0; 1 << 16];
        let length = socket.recv(&mut answer)?;
        assert!(answer[..length] == sent, "other bytes came back");
        Ok::<_, std::io::Error>(())
    };
    let result = site.topology().client().run_in_thread(ask).unwrap();
    assert!(result.is_ok(), "{family:?}, {target}, {size} bytes: {result:?}; {:?}", site.status().unwrap().drops);
}

/// The lengths of datagrams; the longest ones are sent in fragments.
const SIZES: [usize; 3] = [1, 1400, 20_000];

fn datagrams_come_back(cells: &[(Forwarding, &'static str)]) {
    for &(forwarding, mode) in cells {
        for family in Family::BOTH {
            let port = if forwarding == Forwarding::Dsr { UDP } else { UDP + 1 };
            let (own, _) = Topology::balancer_address(family);
            let site = Site::start(Shape::OneLegged, forwarding, 1, |settings, topology| {
                let vip = SocketAddr::new(topology.vip(family), UDP);
                settings.xdp_mode = mode;
                settings.lines = format!(
                    "[[service]]\nname = \"echo\"\naddress = \"{vip}\"\nprotocol = \"udp\"\nforwarding = \"{}\"\n\
                     check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"own\"\naddress = \"{}\"\n",
                    forwarding_word(forwarding),
                    SocketAddr::new(own, port),
                );
                Ok(())
            })
            .unwrap();
            let at = if forwarding == Forwarding::Dsr { site.topology().vip(family) } else { own };
            let bind = || UdpSocket::bind(SocketAddr::new(at, port));
            let server = site.topology().balancer().run_in_thread(bind).unwrap().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            println!("{forwarding:?} {mode} {family:?}");
            let mut targets = vec![SocketAddr::new(site.topology().vip(family), UDP)];
            if forwarding != Forwarding::Dsr {
                targets.push(SocketAddr::new(own, port));
            }
            let asked: Vec<_> = targets.iter().flat_map(|target| SIZES.map(|size| (*target, size))).collect();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut buffer = vec![0; 1 << 16];
                    for _ in 0..asked.len() {
                        let (length, client) = server.recv_from(&mut buffer).unwrap();
                        server.send_to(&buffer[..length], client).unwrap();
                    }
                });
                asked.iter().for_each(|&(target, size)| comes_back(&site, family, target, size));
            });
        }
    }
}

#[test]
fn when_this_machine_serves_datagrams_then_whole_ones_and_fragments_come_back_from_where_they_went() {
    datagrams_come_back(&[(Forwarding::Nat, "generic")]);
}
