//! Tests of QUIC connection IDs in a fleet: the members do not exchange connections, but agree on the backend of each
//! connection.

use std::{
    net::SocketAddr,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use balancer_api::{model::ClientView, quic::QuicServerConfig};
use balancer_config::config::Protocol;
use balancer_testkit::{datagrams, site::PATIENCE, stop::StopOnDrop, topology::Family};

use crate::{
    fleet::{Fleet, PORT, Plan},
    quic::{maker, short},
    support::{homes, requests, wait},
};

const FAMILY: Family = Family::V4;

impl Fleet {
    /// Returns the settings for the QUIC server of a backend, according to a member.
    fn server_config(&self, member: usize, backend: &str) -> QuicServerConfig {
        let said = self.cli(member, &["quic", "server-config", &format!("web/{backend}"), "--json"]);
        serde_json::from_str(&said).unwrap()
    }

    /// Returns a packet of a connection to a backend whose server knows the current key.
    fn packet_to(&self, backend: &str) -> Vec<u8> {
        let configs: Vec<QuicServerConfig> = self.members().map(|member| self.server_config(member, backend)).collect();
        assert!(configs.iter().all(|config| *config == configs[0]), "members tell {backend} differently");
        let (format, server) = maker(&configs[0]);
        let first = configs[0].config << 5 | (configs[0].id_length - 1);
        let nonce: Vec<u8> = (0..configs[0].nonce_length).collect();
        short(&format.id(first, &server, &nonce)[..configs[0].id_length.into()])
    }

    /// Returns the backend that answers a client's packet through one member.
    fn through(&self, member: usize, client: u16, packet: &[u8]) -> String {
        let vip = SocketAddr::new(self.topology.vip(FAMILY), PORT);
        self.route(&[member]);
        let answers = datagrams::ask(&self.topology, FAMILY, client..=client, vip, packet).unwrap();
        answers.into_values().next().unwrap()
    }

    /// Checks that packets of a connection reach the connection's backend from any address and through any member. Once
    /// all members know the client that has sent a packet, TCP connections of the client reach the same backend.
    fn is_kept(&self, backend: &str, packet: &[u8], client: u16) {
        let members: Vec<usize> = self.members().collect();
        for &member in &members {
            assert_eq!(self.through(member, client, packet), backend, "through lb{}", member + 1);
        }
        let (member, client) = (members[usize::from(client) % members.len()], client + 50);
        assert_eq!(self.through(member, client, packet), backend, "through lb{}", member + 1);
        let all = vec![Some(backend.to_owned()); members.len()];
        let deadline = Instant::now() + 3 * PATIENCE;
        while self.known_at(client) != all {
            let known = self.known_at(client);
            assert!(Instant::now() < deadline, "client {client} of {backend} came through lb{}: {known:?}", member + 1);
            thread::sleep(Duration::from_millis(20));
        }
        let homes = self.homes_of(client);
        assert!(homes.iter().all(|name| name == backend), "client {client} of {backend}: {homes:?}");
    }

    /// Returns, for each member, the backend at which the member knows a client, if the member knows the client.
    fn known_at(&self, client: u16) -> Vec<Option<String>> {
        let address = self.topology.client_address(FAMILY, client).to_string();
        let of = |member| {
            let said = self.cli(member, &["client", "where", &address, "--service", "web", "--json"]);
            let located: ClientView = serde_json::from_str(&said).unwrap();
            located.backend.filter(|_| located.known)
        };
        self.members().map(of).collect()
    }

    /// Returns, for each member, the backend that a client's TCP connection reaches.
    fn homes_of(&self, client: u16) -> Vec<String> {
        let members: Vec<usize> = self.members().collect();
        let through = |&member: &usize| {
            self.route(&[member]);
            homes(&self.topology, &requests(&self.topology, FAMILY, PORT, client..=client)).remove(0)
        };
        let homes = members.iter().map(through).collect();
        self.route(&members);
        homes
    }
}

#[test]
fn when_clients_of_a_fleet_change_their_address_then_each_member_sends_them_where_their_connection_is() {
    let mut fleet = Fleet::planned(Plan { datagrams: Some(Protocol::Quic), ..Plan::default() });
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        fleet.answer_datagrams(scope, FAMILY, &stop);
        let _stop = StopOnDrop(&stop);
        let packets = ["web1", "web2", "web3"].map(|backend| (backend, fleet.packet_to(backend)));
        for (client, (backend, packet)) in (1..).zip(&packets) {
            fleet.is_kept(backend, packet, client);
        }
        // Any member can give servers another key, and all members still decrypt connection IDs of the previous key.
        fleet.cli(1, &["quic", "key", "rotate", "web"]);
        fleet.wait_in_step();
        let rotated = fleet.server_config(1, "web1");
        wait("all have the next key", || fleet.members().all(|member| fleet.server_config(member, "web1") == rotated));
        let again = ["web1", "web2", "web3"].map(|backend| (backend, fleet.packet_to(backend)));
        assert!(packets.iter().zip(&again).all(|(before, now)| before.1 != now.1), "the key has not changed");
        for (client, (backend, packet)) in (11..).zip(packets.iter().chain(&again)) {
            fleet.is_kept(backend, packet, client);
        }
        // A drained backend keeps its connections, and connections survive the death of a member.
        fleet.cli(2, &["backend", "drain", "web/web2"]);
        fleet.wait_in_step();
        fleet.kill(0);
        for (client, (backend, packet)) in (21..).zip(packets.iter().chain(&again)) {
            fleet.is_kept(backend, packet, client);
        }
        fleet.start_again(0);
        for (client, (backend, packet)) in (31..).zip(packets.iter().chain(&again)) {
            fleet.is_kept(backend, packet, client);
        }
    });
}
