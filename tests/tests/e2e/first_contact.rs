//! Tests of `nat` with clients on the balancer's own link. The network loses no packet of a client's first contact,
//! although the kernel does not know the client's neighbour entry before the first answer. The test suspends the
//! controller, so that only the kernel program handles packets.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    http_client::{Request, send_all},
    namespace::Namespace,
    site::{PATIENCE, Settings, Site, WORKERS},
    topology::{Family, Shape, Topology},
    transfer::{add_services, listens, socket, target},
};
use nix::sys::signal::Signal;
use socket2::Type;

const BACKENDS: u16 = 2;
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=40;

/// Returns a client's address on the balancer's link, in a subnet without backends.
const fn on_link(family: Family, client: u16) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 4, 1, client as u8)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 4, 0, 0, 0, 0, 1, client)),
    }
}

fn settle(settings: &mut Settings, topology: &Topology) {
    settings.families = Family::BOTH.to_vec();
    add_services(settings, topology);
    topology.balancer().ip("addr add 10.4.0.1/16 dev eth0").unwrap();
    topology.balancer().ip("-6 addr add fd00:4::1/64 dev eth0 nodad").unwrap();
    for backend in topology.backends() {
        backend.ip("route add 10.4.0.0/16 via 10.0.0.1").unwrap();
        backend.ip("-6 route add fd00:4::/64 via fd00::1").unwrap();
    }
    // The kernel must not learn the client's neighbour entry from ARP requests of the client.
    topology.client().sysctl("net/ipv4/conf/all/arp_announce", "2").unwrap();
    topology.client().sysctl("net/ipv4/conf/all/arp_ignore", "1").unwrap();
    for client in CLIENTS {
        let (v4, v6) = (on_link(Family::V4, client), on_link(Family::V6, client));
        topology.client().ip(&format!("addr add {v4}/16 dev eth0")).unwrap();
        topology.client().ip(&format!("addr add {v6}/64 dev eth0 nodad")).unwrap();
    }
    // With reverse path filtering on, the test shows that the filter does not block packets that the kernel forwards.
    for scope in ["all", "default", "eth0"] {
        topology.balancer().sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "1").unwrap();
    }
}

fn one_legged(adapt: impl FnOnce(&mut Settings)) -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, BACKENDS, |settings, topology| {
        settle(settings, topology);
        adapt(settings);
        Ok(())
    })
    .unwrap()
}

/// Returns the number of retransmitted SYN and SYN-ACK segments on a host.
fn sent_again(host: &Namespace) -> u64 {
    let text = host.run_in_thread(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|&(name, _)| name == "TCPSynRetrans").unwrap().1.parse().unwrap()
}

fn all_sent_again(topology: &Topology) -> u64 {
    topology.backends().iter().chain([topology.client()]).map(sent_again).sum()
}

fn unresolved(site: &Site) -> f64 {
    site.metrics().unwrap().sum("drops_total", &["reason=\"no_neighbour\""]).unwrap()
}

fn handed(site: &Site) -> f64 {
    site.metrics().unwrap().sum("packets_seen_total", &["verdict=\"handed\""]).unwrap()
}

fn connect_all(topology: &Topology, from: impl Fn(u16) -> IpAddr, family: Family) {
    let vip = SocketAddr::new(topology.vip(family), 80);
    let request = |client| Request { timeout: PATIENCE, ..Request::new(SocketAddr::new(from(client), 0), vip) };
    let requests: Vec<Request> = CLIENTS.map(request).collect();
    for reply in send_all(topology.client(), &requests, WORKERS).unwrap() {
        reply.unwrap().answer().unwrap();
    }
}

/// Answers each datagram with the data of the datagram, until `stop` is true.
fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], client).unwrap();
        }
    }
}

/// Runs `work` while all backends answer datagrams.
fn with_echo(topology: &Topology, family: Family, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 1..=BACKENDS {
            let listen = listens(topology, Forwarding::Nat, family, number);
            let host = &topology.backends()[usize::from(number) - 1];
            let socket = UdpSocket::from(host.run_in_thread(|| socket(listen, Type::DGRAM)).unwrap().unwrap());
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let stop = &stop;
            scope.spawn(move || echo(&socket, stop));
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Sends one datagram from each client and checks the answer, without retransmissions.
fn ask_all(topology: &Topology, family: Family) {
    with_echo(topology, family, || {
        let to = target(topology, family);
        let asked = topology.client().run_in_thread(|| {
            CLIENTS.for_each(|client| {
                let from = SocketAddr::new(on_link(family, client), 0);
                let socket = UdpSocket::from(socket(from, Type::DGRAM).unwrap());
                socket.connect(to).unwrap();
                socket.send(b"first").unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{from}: {error}"));
                assert_eq!(&buffer[..length], b"first");
            });
        });
        asked.unwrap();
    });
}

fn forget_neighbours(topology: &Topology) {
    for family in ["-4", "-6"] {
        topology.balancer().ip(&format!("{family} neigh flush all")).unwrap();
    }
}

fn nothing_of_a_first_contact_is_lost(xdp_mode: &'static str) {
    let mut site = one_legged(|settings| settings.xdp_mode = xdp_mode);
    let before = all_sent_again(site.topology());
    site.controller().process().signal(Signal::SIGSTOP).unwrap();
    for family in Family::BOTH {
        connect_all(site.topology(), |client| on_link(family, client), family);
    }
    assert_eq!(all_sent_again(site.topology()), before, "a SYN or SYN-ACK was lost");
    for family in Family::BOTH {
        // Makes the kernel forget the neighbour entries that the connections need. The kernel resolves neighbour
        // entries of backends and of clients in the same way.
        let topology = site.topology();
        for client in CLIENTS {
            topology.balancer().ip(&format!("neigh flush {} dev eth0", on_link(family, client))).unwrap();
        }
        ask_all(topology, family);
    }
    site.controller().process().signal(Signal::SIGCONT).unwrap();
    assert_eq!(unresolved(&site), 0.0);
    let handed = handed(&site);
    assert!(handed >= 4.0 * 39.0, "{handed} packets waited for a neighbour");
}

#[test]
fn when_clients_are_on_link_in_native_mode_then_no_packet_of_a_first_contact_is_lost() {
    nothing_of_a_first_contact_is_lost("native");
}

#[test]
fn when_clients_are_on_link_in_generic_mode_then_no_packet_of_a_first_contact_is_lost() {
    nothing_of_a_first_contact_is_lost("generic");
}

/// The kernel no longer has the neighbour entry of the gateway, and the controller has not noticed the loss.
#[test]
fn when_the_gateways_entry_was_forgotten_then_no_packet_is_lost() {
    let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, BACKENDS, |settings, _| {
        settings.families = Family::BOTH.to_vec();
        Ok(())
    })
    .unwrap();
    site.homes(Family::V4, CLIENTS).unwrap();
    let before = all_sent_again(site.topology());
    site.controller().process().signal(Signal::SIGSTOP).unwrap();
    for family in Family::BOTH {
        let topology = site.topology();
        for client in CLIENTS {
            for gateway in ["10.3.0.2", "fd00:3::2"] {
                topology.balancer().ip(&format!("neigh flush {gateway} dev eth0")).unwrap();
            }
            let from = SocketAddr::new(topology.client_address(family, client), 0);
            let request = Request::new(from, SocketAddr::new(topology.vip(family), 80));
            let request = Request { timeout: PATIENCE, ..request };
            topology.client().run_in_thread(|| request.send()).unwrap().unwrap().answer().unwrap();
        }
    }
    assert_eq!(all_sent_again(site.topology()), before, "a SYN or SYN-ACK was lost");
    site.controller().process().signal(Signal::SIGCONT).unwrap();
    assert_eq!(unresolved(&site), 0.0);
    assert!(handed(&site) >= 80.0);
}

/// The balancer counts packets to a client that does not answer ARP, and serves the client as soon as the client
/// answers.
#[test]
fn when_a_client_does_not_answer_arp_then_it_is_counted() {
    let site = one_legged(|_| {});
    let topology = site.topology();
    for family in Family::BOTH {
        let from = SocketAddr::new(on_link(family, 200), 0);
        let before = unresolved(&site);
        // At first, the address is on the loopback interface, so that no host answers ARP requests for the address.
        let (length, own, nodad) = if family == Family::V4 { (16, 32, "") } else { (64, 128, "nodad") };
        topology.client().ip(&format!("addr add {}/{own} dev lo {nodad}", from.ip())).unwrap();
        with_echo(topology, family, || {
            let to = target(topology, family);
            let socket = topology.client().run_in_thread(|| socket(from, Type::DGRAM)).unwrap().unwrap();
            let socket = UdpSocket::from(socket);
            socket.connect(to).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while unresolved(&site) == before {
                assert!(Instant::now() < deadline, "{family:?}: nothing is counted");
                socket.send(b"silent").unwrap();
                thread::sleep(Duration::from_millis(200));
            }
            topology.client().ip(&format!("addr add {}/{length} dev eth0 {nodad}", from.ip())).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut buffer = [0; 64];
            loop {
                socket.send(b"answers").unwrap();
                if socket.recv(&mut buffer).is_ok() {
                    break;
                }
                assert!(Instant::now() < deadline, "{family:?}: it is not asked for again");
            }
        });
    }
}

fn attached(topology: &Topology) -> usize {
    let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Ingress).unwrap().1.len();
    topology.balancer().run_in_thread(query).unwrap()
}

/// With `on_exit = "keep"`, the kernel program continues without a controller, and the next controller replaces the
/// program.
#[test]
fn when_on_exit_is_keep_then_the_program_survives_a_restart() {
    let mut site = one_legged(|settings| settings.on_exit = "keep");
    let before = all_sent_again(site.topology());
    for restarted in [false, true] {
        if restarted {
            site.start_again().unwrap();
        }
        assert_eq!(attached(site.topology()), 1);
        site.controller().process().stop().unwrap();
        assert_eq!(attached(site.topology()), 1);
        forget_neighbours(site.topology());
        for family in Family::BOTH {
            connect_all(site.topology(), |client| on_link(family, client), family);
        }
    }
    assert_eq!(all_sent_again(site.topology()), before, "a SYN or SYN-ACK was lost");
    site.start_again().unwrap();
    assert_eq!(unresolved(&site), 0.0);
    site.controller().process().stop().unwrap();
    assert!(site.detach().unwrap().status.success());
    assert_eq!(attached(site.topology()), 0);
}

#[test]
fn when_the_controller_ends_then_the_program_is_gone() {
    let mut site = one_legged(|_| {});
    assert_eq!(attached(site.topology()), 1);
    site.controller().process().stop().unwrap();
    assert_eq!(attached(site.topology()), 0);
}
