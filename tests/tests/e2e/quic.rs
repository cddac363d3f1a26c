//! Tests of QUIC connection IDs that name a backend, with crafted datagrams between real sockets, for all forwarding
//! modes and both families.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use balancer_api::quic::{QuicServerConfig, QuicView};
use balancer_common::{map_types::Forwarding, quic::QuicFormat};
use balancer_config::config::{Protocol, forwarding_word};
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape, Topology},
};

use crate::{
    doctor,
    listeners::{BACKENDS, PORTS, ask, backends, serve},
    observing::watch,
    support::wait,
};

/// The port of the TCP and QUIC listeners.
const PORT: u16 = PORTS[1].0;
const DRAFT: &str = "{ format = \"draft\", key = \"hex:8f95f09245765f80256934e50c66207f\" }";

pub(crate) fn shop(topology: &Topology, forwarding: Forwarding, quic: &str) -> String {
    let [v4, v6] = Family::BOTH.map(|family| topology.vip(family));
    let ports = if matches!(forwarding, Forwarding::Nat | Forwarding::Snat) { "ports = { 7443 = 9443 }\n" } else { "" };
    let text = format!(
        "[[service]]\nname = \"shop\"\nforwarding = \"{}\"\nremember = \"1h\"\nquic = {quic}\n\
         client_prefix = {{ v4 = 32, v6 = 128 }}\ncheck = {{ type = \"none\" }}\n{ports}\
         listen = [\"{v4}:7443\", \"{v4}:7443/quic\", \"[{v6}]:7443\", \"[{v6}]:7443/quic\"]\n",
        forwarding_word(forwarding)
    );
    text + &backends(topology)
}

struct Scene {
    site: Site,
    forwarding: Forwarding,
}

impl Scene {
    fn start(forwarding: Forwarding, quic: &str) -> Self {
        let shape = if forwarding == Forwarding::Dsr { Shape::OneLegged } else { Shape::TwoLegged };
        let site = Site::start(shape, forwarding, BACKENDS, |settings, topology| {
            settings.on_exit = "keep";
            settings.families = Vec::new();
            settings.lines = shop(topology, forwarding, quic);
            Ok(())
        })
        .unwrap();
        let serves = if forwarding == Forwarding::Snat { Forwarding::Nat } else { forwarding };
        (1..=BACKENDS).for_each(|number| serve(&site, serves, number));
        Self { site, forwarding }
    }

    /// Returns a connection ID as a backend's server would create it with the current key.
    fn id(&self, number: u16) -> Vec<u8> {
        let text = self.site.cli(&["quic", "server-config", &format!("shop/web{number}"), "--json"]).unwrap();
        let config: QuicServerConfig = serde_json::from_str(&text).unwrap();
        let (format, server) = maker(&config);
        let nonce: Vec<u8> = (0..config.nonce_length).collect();
        let first = (config.config << 5) | (config.id_length - 1);
        format.id(first, &server, &nonce)[..usize::from(config.id_length)].to_vec()
    }

    fn answers(&self, family: Family, client: u16, datagram: &[u8]) -> Option<String> {
        let topology = self.site.topology();
        let from = SocketAddr::new(topology.client_address(family, client), 0);
        let vip = SocketAddr::new(topology.vip(family), PORT);
        let answer = topology.client().run_in_thread(|| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(vip)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            let mut answer = [0; 64];
            for _ in 0..10 {
                socket.send(datagram)?;
                if let Ok(length) = socket.recv(&mut answer) {
                    return Ok(Some(String::from_utf8_lossy(&answer[..length]).into_owned()));
                }
            }
            Ok(None)
        });
        let answer: std::io::Result<Option<String>> = answer.unwrap();
        answer.unwrap()
    }

    fn at(&self, family: Family, client: u16, datagram: &[u8]) -> String {
        let answer = self.answers(family, client, datagram);
        assert!(answer.is_some(), "{:?}: no answer to {family:?} client {client}", self.forwarding);
        answer.unwrap()
    }

    fn by_tcp(&self, family: Family, client: u16) -> String {
        ask(&self.site, family, client, PORT, Protocol::Tcp).unwrap()
    }

    fn quic(&self) -> QuicView {
        serde_json::from_str(&self.site.cli(&["quic", "show", "shop", "--json"]).unwrap()).unwrap()
    }
}

/// Returns the format of a server's connection IDs, and the server ID in these connection IDs.
pub(crate) fn maker(config: &QuicServerConfig) -> (QuicFormat, Vec<u8>) {
    let server = hex(&config.server_id[2..]);
    let key = config.key.as_ref().map(|key| hex(&key[4..]).try_into().unwrap());
    (QuicFormat::new(server.len() as u8, config.nonce_length, key), server)
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Returns a packet of an established connection.
pub(crate) fn short(id: &[u8]) -> Vec<u8> {
    [&[0x41], id, &[7; 24]].concat()
}

/// Returns a packet with a long header of QUIC version 1.
fn long(kind: u8, id: &[u8]) -> Vec<u8> {
    let header = [0xc0 | kind << 4, 0, 0, 0, 1, id.len() as u8];
    [&header, id, &[0; 30]].concat()
}

/// Returns an invented connection ID with the configuration bits of `id`.
fn foreign(id: &[u8]) -> Vec<u8> {
    id.iter().enumerate().map(|(at, byte)| if at == 0 { *byte } else { byte ^ 0x5a }).collect()
}

fn connections_stay_whatever_their_address(forwarding: Forwarding) {
    let mut scene = Scene::start(forwarding, DRAFT);
    let ids: Vec<(String, Vec<u8>)> = (1..=BACKENDS).map(|number| (format!("web{number}"), scene.id(number))).collect();
    for family in Family::BOTH {
        for client in 0..4 {
            let home = scene.by_tcp(family, client);
            // If a client has invented the connection ID in its packets, the packets reach the same backend as the
            // client's TCP connections.
            for (_, id) in &ids {
                for kind in [0, 1] {
                    assert_eq!(scene.at(family, client, &long(kind, id)), home, "long header {kind}");
                }
                assert_eq!(scene.at(family, client, &short(&foreign(id))), home);
            }
            assert_eq!(scene.at(family, client, &[0x41]), home, "no ID at all");
            assert_eq!(scene.at(family, client, &short(&ids[0].1[..5])[..8]), home, "half an ID");
        }
        // If an unknown client sends a packet of an established QUIC connection, the client's TCP connections reach the
        // same backend as the packet.
        for (client, (backend, id)) in (20..).zip(&ids) {
            assert_eq!(scene.at(family, client, &short(id)), *backend);
            assert_eq!(scene.at(family, client, &long(2, id)), *backend, "a handshake packet");
            assert_eq!(scene.by_tcp(family, client), *backend, "{family:?} client {client} after its connection");
        }
        // A client that the balancer knows at another backend stays there. Datagrams of QUIC connections still reach the
        // backends of their connections.
        let (backend, id) = &ids[0];
        let elsewhere = (30..60).find(|client| scene.by_tcp(family, *client) != *backend).unwrap();
        let home = scene.by_tcp(family, elsewhere);
        for (backend, id) in &ids {
            assert_eq!(scene.at(family, elsewhere, &short(id)), *backend);
        }
        assert_eq!(scene.at(family, elsewhere, &short(id)), *backend);
        assert_eq!(scene.by_tcp(family, elsewhere), home);
    }
    let quic = scene.quic();
    assert_eq!((quic.encrypted, quic.learns, quic.config, quic.config_before), (true, true, 0, None));
    assert_eq!(quic.migrated, 2 * u64::from(BACKENDS));
    assert!(quic.unknown_id >= 2 * 4 * u64::from(BACKENDS) && quic.steered > 0, "{quic:?}");
    let metrics = scene.site.metrics().unwrap();
    let sum = |name, labels: &[&str]| metrics.sum(name, labels).unwrap() as u64;
    assert_eq!(sum("quic_unknown_id_total", &["service=\"shop\""]), quic.unknown_id);
    assert_eq!(sum("quic_migrated_total", &["service=\"shop\""]), quic.migrated);
    assert_eq!(sum("moves_total", &["service=\"shop\"", "cause=\"migrated\""]), 0);
    assert_eq!(doctor::found(&scene.site), Vec::<String>::new(), "{forwarding:?}");

    // A drained backend keeps its QUIC connections, and a backend in maintenance loses its QUIC connections.
    let (family, client, (backend, id)) = (Family::V4, 70, &ids[1]);
    let away = |scene: &Scene| scene.answers(family, client, &short(id));
    scene.site.cli(&["backend", "drain", "shop/web2", "--timeout", "10m"]).unwrap();
    assert_eq!(away(&scene).as_ref(), Some(backend));
    scene
        .site
        .cli(&["rule", "add", "shop", &format!("{}/32", scene.site.topology().client_address(family, 71)), "deny"])
        .unwrap();
    assert_eq!(scene.answers(family, 71, &short(id)), None, "who is denied brings nothing");
    scene.site.restart(|_| {}).unwrap();
    assert_eq!(away(&scene).as_ref(), Some(backend), "after a restart");
    scene.site.cli(&["backend", "maint", "shop/web2"]).unwrap();
    assert!(away(&scene).is_some_and(|other| other != *backend));
    scene.site.cli(&["backend", "ready", "shop/web2"]).unwrap();
    assert_eq!(away(&scene).as_ref(), Some(backend), "back again");
}

#[test]
fn when_clients_of_nat_change_their_address_then_their_connections_stay() {
    connections_stay_whatever_their_address(Forwarding::Nat);
}

#[test]
fn when_clients_of_ipip_change_their_address_then_their_connections_stay() {
    connections_stay_whatever_their_address(Forwarding::Ipip);
}

#[test]
fn when_a_key_is_rotated_then_connections_under_the_one_before_stay_until_the_next_rotation() {
    let mut scene = Scene::start(Forwarding::Nat, DRAFT);
    let (family, first) = (Family::V4, scene.id(2));
    let said = scene.site.cli(&["quic", "key", "rotate", "shop"]).unwrap();
    assert!(said.contains("a new key of quic under config 1") && said.contains("server-config shop/NAME"), "{said}");
    let second = scene.id(2);
    assert_eq!((second[0] >> 5, scene.quic().config, scene.quic().config_before), (1, 1, Some(0)));
    let status = scene.site.cli(&["apply", "--dry-run", &scene.site.config().display().to_string()]).unwrap();
    assert!(status.contains("the key of quic of shop: rotated to config 1 at run time and kept"), "{status}");
    // Connection IDs with the old key and with the new key stay valid, even after a restart and a reload.
    let both = |scene: &Scene, client| {
        assert_eq!(scene.at(family, client, &short(&first)), "web2");
        assert_eq!(scene.at(family, client, &short(&second)), "web2");
    };
    both(&scene, 1);
    scene.site.restart(|_| {}).unwrap();
    both(&scene, 2);
    scene.site.apply(|_| {}).unwrap();
    both(&scene, 3);
    scene.site.cli(&["quic", "key", "rotate", "shop"]).unwrap();
    assert_eq!(scene.at(family, 4, &short(&second)), "web2");
    let unknown = scene.quic().unknown_id;
    scene.at(family, 5, &short(&first));
    assert_eq!(scene.quic().unknown_id, unknown + 1);
    let events = scene.site.cli(&["events"]).unwrap();
    assert!(events.contains("has a new key of quic under config 2") && !events.contains("hex:"), "{events}");
}

#[test]
fn when_server_ids_are_readable_then_they_steer_and_teach_nothing() {
    let scene = Scene::start(Forwarding::Nat, "{ format = \"nlb\" }");
    let (family, id) = (Family::V4, scene.id(3));
    assert_eq!((id.len(), scene.quic().learns), (16, false));
    // The first byte of an unencrypted connection ID may have any value.
    for first in [0x00, 0x5f, 0xff] {
        let id = [&[first], &id[1..]].concat();
        assert_eq!(scene.at(family, 1, &short(&id)), "web3");
    }
    let client = (2..40).find(|client| scene.by_tcp(family, *client) != "web3").unwrap();
    let home = scene.by_tcp(family, client);
    assert_eq!(scene.at(family, client, &short(&id)), "web3");
    assert_eq!(scene.by_tcp(family, client), home, "anybody can make such an ID up");
    assert_eq!(scene.quic().migrated, 0);
    let refused = scene.site.output(&["quic", "key", "rotate", "shop"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("there is no key to rotate"), "{said}");
    let shown = scene.site.cli(&["quic", "show", "shop"]).unwrap();
    assert!(shown.contains("format nlb: readable server IDs of 8 bytes") && shown.contains("web3"), "{shown}");
}

/// The report of trace or capture on datagrams from a client: the word, the backend, and the reason.
fn traced(scene: &Scene, name: &str, family: Family, client: u16, datagram: &[u8]) -> (String, String, String) {
    let address = scene.site.topology().client_address(family, client).to_string();
    let mut trace = watch::start(&scene.site, name, &["trace", &address, "--service", "shop", "--json"]);
    let home = scene.at(family, client, datagram);
    wait("no packet is seen", || !trace.packets().is_empty());
    trace.interrupt();
    let packets = trace.packets();
    let first = packets.first().unwrap();
    assert_eq!(first["backend"], home.as_str(), "{first}");
    let word = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
    (word("connection_id"), home, word("why"))
}

fn each_trace_says_whether_the_connection_id_decided(forwarding: Forwarding, family: Family) {
    let scene = Scene::start(forwarding, DRAFT);
    let id = scene.id(2);
    let home = scene.by_tcp(family, 1);
    let traced = |name, client, datagram: &[u8]| traced(&scene, name, family, client, datagram);
    let (word, at, why) = traced("initial", 1, &long(0, &id));
    assert_eq!((word.as_str(), at.as_str()), ("none", home.as_str()), "{why}");
    let (word, at, why) = traced("unknown", 1, &short(&foreign(&id)));
    assert_eq!((word.as_str(), at.as_str()), ("unknown", home.as_str()), "{why}");
    assert!(why.ends_with("; its connection ID names no server"), "{why}");
    let (word, at, why) = traced("taught", 30, &short(&id));
    assert_eq!((word.as_str(), at.as_str()), ("taught", "web2"), "{why}");
    let (word, at, why) = traced("named", 30, &short(&id));
    assert_eq!((word.as_str(), at.as_str()), ("named", "web2"), "{why}");
    assert!(why.starts_with("its connection ID names this backend"), "{why}");

    // A capture contains the same report about the connection ID, in the comments of packets.
    let file = scene.site.files().join("named.pcapng");
    let mut capture = watch::start(&scene.site, "capture", &["capture", "-w", file.to_str().unwrap()]);
    scene.at(family, 30, &short(&id));
    let said = "backend web2: its connection ID names this backend";
    let has = || std::fs::read(&file).unwrap().windows(said.len()).any(|bytes| bytes == said.as_bytes());
    wait("no comment says it", has);
    capture.interrupt();

    scene.site.cli(&["backend", "maint", "shop/web2"]).unwrap();
    let (word, at, why) = traced("gone", 30, &short(&id));
    assert_eq!(word, "gone", "{why}");
    assert_ne!(at, "web2", "{why}");
}

#[test]
fn when_datagrams_of_nat_are_traced_then_it_is_told_whether_the_connection_id_decided() {
    each_trace_says_whether_the_connection_id_decided(Forwarding::Nat, Family::V6);
}

#[test]
fn when_datagrams_of_ipip_are_traced_then_it_is_told_whether_the_connection_id_decided() {
    each_trace_says_whether_the_connection_id_decided(Forwarding::Ipip, Family::V6);
}
