//! Tests of QUIC connection IDs in `snat` services: the ID decides about a datagram's backend, and a made-up ID opens no
//! flow to a backend that takes no new clients and takes no packets away from other flows.

use balancer_common::{features::Features, map_types::Forwarding, quic::QuicFormat};
use balancer_config::{
    config::Protocol,
    quic::{Format, Keyed, QuicConfig, QuicKey},
};
use balancer_control::io::QuicSpec;
use balancer_testkit::{
    frame::Frame,
    rig::{Rig, Service, Setup, TUNNEL_SOURCE_V4, Target, backend_id, backend_mac},
};

use crate::{
    flows::{comes_back, sent},
    rows::{self, rows},
};

const VIP: &str = "198.51.100.40:443";
/// The backends by their numbers in the rig: the number, and the address. The first is the home of half of the clients,
/// the second of the others, and the third takes no new clients.
const BACKENDS: [(usize, &str); 3] = [(0, "10.0.0.41:443"), (5, "10.0.0.42:443"), (6, "10.0.0.43:443")];
const DRAINS: usize = 2;

fn config(key: Option<QuicKey>) -> QuicConfig {
    QuicConfig {
        format: Format::Draft,
        server_id_length: 8,
        nonce_length: 8,
        current: Keyed { config: 0, key },
        before: None,
        learn: true,
    }
}

const READABLE: Option<QuicKey> = None;
const SECRET: Option<QuicKey> = Some(QuicKey([7; 16]));

/// Adds the backends and their server IDs to the service.
fn configure(rig: &mut Rig, key: Option<QuicKey>) {
    for (place, (number, at)) in BACKENDS.into_iter().enumerate().skip(1) {
        let at: std::net::SocketAddr = at.parse().expect("an address");
        rig.add_backend(VIP, number, at.ip(), place != DRAINS).expect("a backend");
    }
    let config = config(key);
    let servers = BACKENDS.map(|(number, at)| (backend_id(number), config.derived_id(at)));
    rig.quic(VIP, QuicSpec { config, servers: servers.into() }).expect("connection IDs");
}

fn datagram(client: &str, payload: Vec<u8>) -> Frame {
    Frame { payload, ..Frame::udp(client, VIP) }
}

/// A packet that opens a connection; the client has chosen the connection ID.
fn initial(client: &str) -> Frame {
    let header = [0xc0, 0, 0, 0, 1, 17];
    datagram(client, [&header[..], &[9; 17], &[0; 30]].concat())
}

/// A packet of an open connection to the backend at a place of [`BACKENDS`].
fn named(client: &str, key: Option<QuicKey>, place: usize) -> Frame {
    let config = config(key);
    let server = config.derived_id(BACKENDS[place].1);
    let format = QuicFormat::new(config.server_id_length, config.nonce_length, key.map(|key| key.0));
    let id = format.id(16, server.bytes(), &[3; 8])[..usize::from(config.id_length())].to_vec();
    datagram(client, [&[0x41], &id[..], &[7; 24]].concat())
}

/// Sends a datagram to the backend at a place, and returns the port that the backend sees.
fn to(rig: &Rig, place: usize, frame: &Frame) -> u16 {
    let (number, at) = BACKENDS[place];
    sent(rig, number, frame, at)
}

fn answers(rig: &Rig, place: usize, port: u16, client: &str) {
    comes_back(rig, &Frame::udp(BACKENDS[place].1, &format!("{TUNNEL_SOURCE_V4}:{port}")), VIP, client);
}

/// A client whose home is the first backend.
fn client(rig: &Rig) -> String {
    let is_home = |client: &String| {
        let ran = rig.run(&initial(client).bytes()).expect("a run");
        ran.frame.starts_with(&backend_mac(BACKENDS[0].0))
    };
    (1..100).map(|host| format!("10.9.8.{host}:5000")).find(is_home).expect("a client of the first backend")
}

/// The client with another port, from which it has sent nothing yet.
fn elsewhere(client: &str, port: u16) -> String {
    client.replace(":5000", &format!(":{port}"))
}

fn when_a_connection_id_names_another_backend_than_the_flow_then_the_id_decides_and_the_flow_stays(rig: &mut Rig) {
    for key in [READABLE, SECRET] {
        rig.reset().expect("a rig as new");
        configure(rig, key);
        let client = client(rig);
        let first = to(rig, 0, &initial(&client));
        assert_eq!(to(rig, 0, &named(&client, key, 0)), first, "the flow of the ID's backend goes on");
        let second = to(rig, 1, &named(&client, key, 1));
        for _ in 0..3 {
            answers(rig, 1, second, &client);
            answers(rig, 0, first, &client);
            assert_eq!(to(rig, 1, &named(&client, key, 1)), second);
            assert_eq!(to(rig, 0, &named(&client, key, 0)), first);
            assert_eq!(to(rig, 0, &initial(&client)), first);
            assert_eq!(to(rig, 0, &datagram(&client, b"no QUIC".to_vec())), first);
        }
    }
}

fn when_a_connection_id_has_opened_a_flow_then_packets_without_one_do_not_follow(rig: &mut Rig) {
    configure(rig, READABLE);
    let other = elsewhere(&client(rig), 5001);
    let named_first = to(rig, 1, &named(&other, READABLE, 1));
    let plain = to(rig, 0, &initial(&other));
    assert_eq!(to(rig, 1, &named(&other, READABLE, 1)), named_first);
    assert_eq!(to(rig, 0, &initial(&other)), plain);
    assert_eq!(to(rig, 0, &named(&other, READABLE, 0)), plain);
}

fn when_an_id_that_anybody_can_make_up_names_a_draining_backend_then_the_clients_address_decides(rig: &mut Rig) {
    configure(rig, READABLE);
    let client = client(rig);
    let flow = to(rig, 0, &initial(&client));
    assert_eq!(to(rig, 0, &named(&client, READABLE, DRAINS)), flow, "the client has a flow");
    to(rig, 0, &named(&elsewhere(&client, 5001), READABLE, DRAINS));
}

fn when_a_secret_id_names_a_draining_backend_then_the_connection_goes_on(rig: &mut Rig) {
    configure(rig, SECRET);
    let client = client(rig);
    to(rig, 0, &initial(&client));
    for client in [client.clone(), elsewhere(&client, 5001)] {
        let flow = to(rig, DRAINS, &named(&client, SECRET, DRAINS));
        answers(rig, DRAINS, flow, &client);
        assert_eq!(to(rig, DRAINS, &named(&client, SECRET, DRAINS)), flow);
    }
}

#[test]
fn when_datagrams_of_a_snat_service_carry_connection_ids_then_the_ids_decide_as_far_as_they_can_be_trusted() {
    let service = Service {
        address: VIP,
        protocol: Protocol::Quic,
        forwarding: Forwarding::Snat,
        target: Target::SameInterface(BACKENDS[0].1),
    };
    rows::run(
        vec![service],
        Setup { features: Features::QUIC, ..Setup::default() },
        rows![
            when_a_connection_id_names_another_backend_than_the_flow_then_the_id_decides_and_the_flow_stays,
            when_a_connection_id_has_opened_a_flow_then_packets_without_one_do_not_follow,
            when_an_id_that_anybody_can_make_up_names_a_draining_backend_then_the_clients_address_decides,
            when_a_secret_id_names_a_draining_backend_then_the_connection_goes_on
        ],
    );
}
