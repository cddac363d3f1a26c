//! Tests of servers on this machine, which are `nat` backends: only packets of connections that came through the VIP get
//! the VIP as their source.

use std::{net::SocketAddr, thread};

use balancer_common::map_types::Forwarding;
use balancer_config::config::Protocol;
use balancer_testkit::{
    frame::{ACK, DESTINATION_OPTIONS, Frame, SYN, Transport, options},
    rig::{Rig, Service, Setup, Target, backend_mac},
};

use crate::{
    rows::{self, Row, rows},
    share::{connect, serve},
};

/// A client, a VIP, and the own address of the VIP's server, which is this machine.
struct Cell {
    client: &'static str,
    vip: &'static str,
    own: &'static str,
    transport: Transport,
}

const SEGMENT: Transport = Transport::Tcp(SYN);

const CELLS: [Cell; 4] = [
    Cell { client: "203.0.113.7:40000", vip: "198.51.100.20:80", own: "10.0.0.1:8080", transport: SEGMENT },
    Cell { client: "203.0.113.7:40000", vip: "198.51.100.20:53", own: "10.0.0.1:5353", transport: Transport::Udp },
    Cell { client: "[2001:db8:c::7]:40000", vip: "[2001:db8::20]:80", own: "[fd00::1]:8080", transport: SEGMENT },
    Cell {
        client: "[2001:db8:c::7]:40000",
        vip: "[2001:db8::20]:53",
        own: "[fd00::1]:5353",
        transport: Transport::Udp,
    },
];

fn services() -> Vec<Service> {
    let service = |cell: &Cell| Service {
        address: cell.vip,
        protocol: if cell.is_tcp() { Protocol::Tcp } else { Protocol::Udp },
        forwarding: Forwarding::Nat,
        target: Target::ThisMachine(cell.own),
    };
    CELLS.iter().map(service).collect()
}

impl Cell {
    fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
    }

    /// A packet by which the client opens a connection to `to`.
    fn opening(&self, to: &str) -> Frame {
        Frame::new(self.client, to, self.transport)
    }

    /// A packet from `source` to the client.
    fn answer(&self, source: &str, flags: u8) -> Frame {
        let transport = if self.is_tcp() { Transport::Tcp(flags) } else { Transport::Udp };
        Frame::new(source, self.client, transport)
    }

    /// Sends a client's packet, which must pass to this machine as a packet to the server's own address.
    #[track_caller]
    fn arrives(&self, rig: &Rig, frame: &Frame) {
        let ran = rig.run(&frame.bytes()).expect("a run");
        assert_eq!(ran.action, XDP_PASS, "{frame:?}");
        let destination = self.own.parse().expect("an address");
        let ttl = if frame.destination == destination { frame.ttl } else { frame.ttl - 1 };
        let own = Frame { destination, ttl, ..frame.clone() };
        assert!(ran.frame == own.bytes(), "{frame:?} arrives as another frame");
    }

    #[track_caller]
    fn leaves(&self, rig: &mut Rig, flags: u8, source: &str) {
        leaves(rig, &self.answer(self.own, flags), &self.answer(source, flags));
    }

    #[track_caller]
    fn leaves_translated(&self, rig: &mut Rig) {
        self.leaves(rig, SYN | ACK, self.vip);
        self.leaves(rig, ACK, self.vip);
    }

    #[track_caller]
    fn leaves_unchanged(&self, rig: &mut Rig) {
        self.leaves(rig, SYN | ACK, self.own);
        self.leaves(rig, ACK, self.own);
    }
}

const XDP_PASS: u32 = 2;
const FIN: u8 = 1;
const RST: u8 = 4;

/// Checks that a frame that this machine sends leaves as `expected`.
#[track_caller]
fn leaves(rig: &mut Rig, sent: &Frame, expected: &Frame) {
    let left = rig.sends(&sent.bytes()).expect("a run");
    assert!(left == Some(expected.bytes()), "{sent:?} does not leave as {expected:?}");
}

fn when_a_connection_came_through_the_vip_or_is_unknown_then_its_replies_get_the_vip(rig: &mut Rig) {
    for cell in &CELLS {
        cell.leaves_translated(rig);
        cell.arrives(rig, &cell.opening(cell.vip));
        cell.leaves_translated(rig);
    }
}

fn when_a_client_connects_to_the_servers_own_address_then_replies_keep_their_source(rig: &mut Rig) {
    for cell in &CELLS {
        cell.arrives(rig, &cell.opening(cell.own));
        cell.leaves_unchanged(rig);
        let other = Cell {
            client: if cell.client.starts_with('[') { "[2001:db8:c::8]:40000" } else { "203.0.113.8:40000" },
            transport: cell.transport,
            ..*cell
        };
        other.leaves_translated(rig);
        // The server's last packets belong to the connection, too.
        cell.leaves(rig, FIN | ACK, cell.own);
        cell.leaves(rig, ACK, cell.own);
        cell.leaves(rig, RST, cell.own);
    }
}

fn when_a_client_uses_the_same_port_through_the_vip_afterwards_then_replies_get_the_vip(rig: &mut Rig) {
    for cell in &CELLS {
        cell.arrives(rig, &cell.opening(cell.own));
        cell.arrives(rig, &cell.opening(cell.vip));
        cell.leaves_translated(rig);
    }
}

fn when_a_client_uses_the_same_port_directly_afterwards_then_a_segment_decides_and_a_datagram_does_not(rig: &mut Rig) {
    for cell in &CELLS {
        cell.arrives(rig, &cell.opening(cell.vip));
        cell.arrives(rig, &cell.opening(cell.own));
        if cell.is_tcp() {
            // No socket has the connection through the VIP, so it has ended.
            cell.leaves_unchanged(rig);
        } else {
            cell.leaves_translated(rig);
        }
    }
}

fn when_headers_have_options_then_the_connection_is_direct_as_well(rig: &mut Rig) {
    for cell in &CELLS {
        let opening = cell.opening(cell.own);
        let opening = if opening.source.is_ipv4() {
            Frame { options: vec![1; 8], ..opening }
        } else {
            Frame { extensions: vec![options(DESTINATION_OPTIONS, 2)], ..opening }
        };
        cell.arrives(rig, &opening);
        cell.leaves_unchanged(rig);
    }
}

fn when_a_direct_datagram_is_answered_in_fragments_then_all_of_them_keep_their_source(rig: &mut Rig) {
    for (cell, id) in CELLS.iter().filter(|cell| !cell.is_tcp()).zip(1..) {
        let whole = |source| Frame { payload: vec![1; 100], dont_fragment: false, ..cell.answer(source, 0) };
        let in_fragments = |rig: &mut Rig, source, id| {
            for (sent, expected) in whole(cell.own).fragments(40, id).iter().zip(whole(source).fragments(40, id)) {
                leaves(rig, sent, &expected);
            }
        };
        in_fragments(rig, cell.vip, id);
        let parts = Frame { payload: vec![1; 100], dont_fragment: false, ..cell.opening(cell.own) }.fragments(40, id);
        for part in parts {
            cell.arrives(rig, &part);
        }
        in_fragments(rig, cell.own, id + 10);
    }
}

fn when_a_server_connects_to_others_from_its_port_then_its_packets_keep_their_source(rig: &mut Rig) {
    for cell in CELLS.iter().filter(|cell| cell.is_tcp()) {
        cell.leaves(rig, SYN, cell.own);
        cell.leaves(rig, ACK, cell.own);
    }
}

/// The number of the other backend of the service, a machine that is a balancer as well.
const PEER: usize = 60;

fn when_another_machine_forwards_a_clients_packet_then_the_reply_gets_the_vip_but_its_own_connections_do_not(
    rig: &mut Rig,
) {
    for (cell, number) in CELLS.iter().zip(PEER..) {
        let peer = if cell.client.starts_with('[') { "[fd00::60]:40000" } else { "10.0.0.60:40000" };
        let address: SocketAddr = peer.parse().expect("an address");
        rig.add_peer(cell.vip, number, address.ip()).expect("another backend");
        let source_mac = backend_mac(number);
        cell.arrives(rig, &Frame { source_mac, ..cell.opening(cell.own) });
        cell.leaves_translated(rig);
        let own = Cell { client: peer, transport: cell.transport, ..*cell };
        own.arrives(rig, &Frame { source_mac, ..own.opening(own.own) });
        own.leaves_unchanged(rig);
    }
}

const ROWS: &[Row] = rows![
    when_a_connection_came_through_the_vip_or_is_unknown_then_its_replies_get_the_vip,
    when_a_client_connects_to_the_servers_own_address_then_replies_keep_their_source,
    when_a_client_uses_the_same_port_through_the_vip_afterwards_then_replies_get_the_vip,
    when_a_client_uses_the_same_port_directly_afterwards_then_a_segment_decides_and_a_datagram_does_not,
    when_headers_have_options_then_the_connection_is_direct_as_well,
    when_a_direct_datagram_is_answered_in_fragments_then_all_of_them_keep_their_source,
    when_a_server_connects_to_others_from_its_port_then_its_packets_keep_their_source,
    when_another_machine_forwards_a_clients_packet_then_the_reply_gets_the_vip_but_its_own_connections_do_not
];

#[test]
fn when_servers_are_on_this_machine_then_only_connections_through_the_vip_are_translated() {
    rows::run(services(), Setup::default(), ROWS);
}

#[test]
fn when_a_connection_through_the_vip_is_open_then_a_forged_segment_to_the_own_address_changes_nothing() {
    let work = || {
        let mut rig = Rig::new(&services()).expect("a rig");
        for cell in CELLS.iter().filter(|cell| cell.is_tcp()) {
            let [listener] = <[_; 1]>::try_from(serve(&[cell.own])).expect("one listener");
            let client: SocketAddr = cell.client.parse().expect("an address");
            // The kernel of this machine has both ends of the connection.
            let (_own, _accepted, from) = connect(client.ip(), &listener);
            let open = Cell { client: from.to_string().leak(), transport: cell.transport, ..*cell };
            open.arrives(&rig, &open.opening(open.own));
            open.leaves_translated(&mut rig);
            // Another port of the client has no connection.
            cell.arrives(&rig, &cell.opening(cell.own));
            cell.leaves_unchanged(&mut rig);
        }
    };
    thread::spawn(work).join().expect("the thread of the test panicked");
}
