//! Tests of the tables of listeners and of `nat` replies when almost every row contains a key, so that keys are at all
//! possible positions. The program must find each key of a table, and must not find a key that the table does not
//! contain.

use std::net::{IpAddr, SocketAddr};

use balancer_common::map_types::Forwarding;
use balancer_config::config::Protocol;
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{IN_MAC, ROUTER_MAC, Rig, Service, Target},
};

use crate::cases::{Case, Then, run_services, to_backend_mac};

/// The VIP, the backend and the client of each address family.
const FAMILIES: [(&str, &str, &str); 2] =
    [("198.51.100.20", "10.0.0.20", "203.0.113.7:40000"), ("2001:db8::20", "fd00::20", "[2001:db8:c::7]:40000")];
/// The ports of the listeners of each family. With two addresses for each port, the listeners fill 86% of the rows in
/// the rig's table.
const PORTS: std::ops::Range<u16> = 1000..1440;
/// The ports that have no listeners.
const OTHERS: std::ops::Range<u16> = 1440..2440;
/// The difference between the port of a listener and the port of the listener's backends.
const FURTHER: u16 = 20_000;

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port)
}

fn tcp(source: &str, destination: &str, flags: u8) -> Frame {
    Frame::new(source, destination, Transport::Tcp(flags))
}

fn listen(rig: &mut Rig) -> anyhow::Result<()> {
    for (vip, ..) in FAMILIES {
        let all = PORTS.map(|port| {
            let listener = format!("{}/tcp", at(vip, port)).parse().map_err(anyhow::Error::msg)?;
            Ok((listener, port + FURTHER))
        });
        rig.listen(&at(vip, 80).to_string(), &all.collect::<anyhow::Result<Vec<_>>>()?)?;
    }
    Ok(())
}

fn cases(rig: &Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    for (vip, backend, client) in FAMILIES {
        let service = at(vip, 80).to_string();
        for port in PORTS {
            let (door, behind) = (at(vip, port), at(backend, port + FURTHER));
            let packet = tcp(client, &door.to_string(), SYN);
            let sent = Frame { destination: behind, ttl: packet.ttl - 1, ..to_backend_mac(rig, &packet, &service) };
            cases.push(Case::new(format!("to {door}"), &packet, Then::Tx(sent.bytes())));
            let reply = tcp(&behind.to_string(), client, ACK);
            let macs = Frame { destination_mac: ROUTER_MAC, source_mac: IN_MAC, ..reply.clone() };
            let restored = Frame { source: door, ttl: reply.ttl - 1, ..macs };
            cases.push(Case::new(format!("from {behind}"), &reply, Then::Tx(restored.bytes())));
        }
        for port in OTHERS {
            let (door, behind) = (at(vip, port), at(backend, port + FURTHER));
            cases.push(Case::new(format!("to {door}"), &tcp(client, &door.to_string(), SYN), Then::Pass));
            cases.push(Case::new(format!("from {behind}"), &tcp(&behind.to_string(), client, ACK), Then::Pass));
        }
    }
    cases
}

#[test]
fn when_tables_are_nearly_full_then_every_listener_and_way_back_is_found() {
    let service = |address, target| Service {
        address,
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Nat,
        target: Target::SameInterface(target),
    };
    let services = vec![service("198.51.100.20:80", "10.0.0.20:0"), service("[2001:db8::20]:80", "[fd00::20]:0")];
    run_services(services, listen, cases);
}
