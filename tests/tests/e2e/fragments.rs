//! Tests of datagrams of 64 kB. Each datagram has about fifty fragments: all fragments of a request reach the client's
//! backend, and all fragments of an answer reach the client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod release;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::Site,
    stop::StopOnDrop,
    topology::{Family, Shape, Topology},
    transfer::{Transfer, add_services, listens, piece, socket, target},
};
use socket2::Type;

const BACKENDS: u16 = 3;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=24;
const EACH: u64 = 4;
/// The size of a request, in bytes. The answer is one byte longer than the request, because an answer begins with the
/// backend's number.
const SIZE: usize = 65_000;

/// Answers every datagram with the backend's number, followed by the data of the datagram.
fn echo(socket: &UdpSocket, number: u16, stop: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = [&[number as u8], &buffer[..length]].concat();
            socket.send_to(&answer, client).context("answering")?;
        }
    }
    Ok(())
}

/// Returns the number of the backend that answers a client's datagrams.
fn ask(topology: &Topology, family: Family, client: u16) -> Result<u16> {
    let source = SocketAddr::new(topology.client_address(family, client), 0);
    let socket = UdpSocket::from(socket(source, Type::DGRAM)?);
    socket.connect(target(topology, family))?;
    let mut buffer = vec![0; 1 << 16];
    let mut backend = None;
    for round in 0..EACH {
        let sent = piece(u64::from(client) * 1_000_003 + round * 7_919, SIZE);
        socket.send(sent).context("sending")?;
        let length = socket.recv(&mut buffer).with_context(|| format!("no answer to datagram {round}"))?;
        let (number, answer) = buffer[..length].split_first().context("an empty answer")?;
        ensure!(answer == sent, "other bytes came back");
        let number = u16::from(*number);
        ensure!(*backend.get_or_insert(number) == number, "web{number} answers, not {backend:?}");
    }
    backend.context("nothing sent")
}

fn large_datagrams_come_back(shape: Shape, forwarding: Forwarding) {
    let site = Site::start(shape, forwarding, BACKENDS, |settings, topology| {
        settings.families = Family::BOTH.to_vec();
        add_services(settings, topology);
        Ok(())
    })
    .unwrap();
    let topology = site.topology();
    if matches!(forwarding, Forwarding::Ipip | Forwarding::Gue) {
        // The balancer cannot split fragments further, and cannot inform the sender of a fragment, so the sender must
        // know the MTU.
        let gateways = if shape == Shape::OneLegged { ["10.0.0.1", "fd00::1"] } else { ["10.3.0.1", "fd00:3::1"] };
        for (vips, gateway) in ["-4 route replace 10.2.0.0/16", "-6 route replace fd00:2::/64"].iter().zip(gateways) {
            topology.client().ip(&format!("{vips} via {gateway} mtu 1400")).unwrap();
        }
    }
    for family in Family::BOTH {
        let stop = AtomicBool::new(false);
        let shares = thread::scope(|scope| {
            let stop = &stop;
            let _stop = StopOnDrop(stop);
            for number in 1..=BACKENDS {
                let listen = listens(topology, forwarding, family, number);
                let host = &topology.backends()[usize::from(number) - 1];
                let socket = host.run_in_thread(|| socket(listen, Type::DGRAM)).unwrap().unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                scope.spawn(move || echo(&UdpSocket::from(socket), number, stop).unwrap());
            }
            let mut shares = BTreeMap::<u16, usize>::new();
            for client in CLIENTS {
                let home = Transfer::new(&site, forwarding, family, client);
                let home = home.home("udp", home.source).unwrap();
                let number = topology.client().run_in_thread(|| ask(topology, family, client));
                assert_eq!(number.unwrap().unwrap(), home, "{forwarding:?} {family:?}: client {client}");
                *shares.entry(home).or_default() += 1;
            }
            shares
        });
        println!("{forwarding:?} {family:?}: {} datagrams of {SIZE} bytes, clients {shares:?}", 24 * EACH);
        assert_eq!(shares.len(), usize::from(BACKENDS));
    }
    let metrics = site.metrics().unwrap();
    assert_eq!(metrics.sum("drops_total", &[]).unwrap(), 0.0);
    for service in ["udp", "udp6"] {
        let service = format!("service=\"{service}\"");
        let fragments = metrics.sum("packets_total", &[&service]).unwrap();
        assert!(fragments >= (24 * EACH) as f64 * 40.0, "{fragments} packets were no fragments");
    }
}

#[test]
fn when_datagrams_are_large_with_nat_then_they_come_back() {
    large_datagrams_come_back(Shape::TwoLegged, Forwarding::Nat);
}

#[test]
fn when_datagrams_are_large_with_gue_then_they_come_back() {
    large_datagrams_come_back(Shape::OneLegged, Forwarding::Gue);
}
