//! Tests of next hops that the kernel of a real network namespace resolves. The tests need root.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use balancer_common::map_types::{FAMILY_V4, Mac, NeighbourWanted};
use balancer_control::io::{Event, NextHop};
use balancer_netlink::neighbours::{Neighbours, Tunnels};
use balancer_runtime::supervisor::Supervisor;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(15);
const OTHER_MAC: &str = "02:00:00:00:00:77";

/// A namespace `near`, which has the two links `east` and `west` to a namespace `far`. The near ends have the first
/// address of 10.77.0.0/24 and 10.78.0.0/24 (and of 2001:db8:77::/64 on `east`), and the far ends have the ninth
/// address.
struct Links {
    near: String,
    far: String,
}

impl Drop for Links {
    fn drop(&mut self) {
        for name in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {} (is this root?)", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Links {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("nb-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let links = Self { near: format!("{id}-near"), far: format!("{id}-far") };
        ip(&format!("netns add {}", links.near));
        ip(&format!("netns add {}", links.far));
        for (link, net) in [("east", "10.77.0"), ("west", "10.78.0")] {
            ip(&format!("-n {} link add {link} type veth peer name {link} netns {}", links.near, links.far));
            links.near(&format!("address add {net}.1/24 dev {link}"));
            links.far(&format!("address add {net}.9/24 dev {link}"));
        }
        links.near("address add 2001:db8:77::1/64 dev east nodad");
        links.far("address add 2001:db8:77::9/64 dev east nodad");
        for link in ["lo", "east", "west"] {
            links.near(&format!("link set {link} up"));
            links.far(&format!("link set {link} up"));
        }
        links
    }

    fn near(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.near))
    }

    fn far(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.far))
    }

    fn near_hop(&self, link: &str, destination_mac: Mac) -> NextHop {
        let (ifindex, source_mac) = show(&self.near, link);
        NextHop { ifindex, source_mac, destination_mac, mtu: 1500, source: None, gateway: None, local: false }
    }

    /// Returns the next hop to the far end of `link`.
    fn hop(&self, link: &str) -> NextHop {
        self.near_hop(link, show(&self.far, link).1)
    }

    /// Runs `test` in the namespace `near`.
    fn run<F: Future<Output = ()>>(&self, test: impl FnOnce(Watcher) -> F + Send) {
        thread::scope(|scope| {
            let in_namespace = scope.spawn(|| {
                setns(File::open(format!("/run/netns/{}", self.near)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (sender, events) = mpsc::channel(4);
                    test(Watcher { neighbours: Neighbours::spawn(sender, &Supervisor::default()).unwrap(), events })
                        .await;
                });
            });
            if let Err(panic) = in_namespace.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn show(namespace: &str, link: &str) -> (u32, Mac) {
    let shown: serde_json::Value = serde_json::from_str(&ip(&format!("-n {namespace} -j link show {link}"))).unwrap();
    let ifindex = shown[0]["ifindex"].as_u64().unwrap();
    (u32::try_from(ifindex).unwrap(), mac(shown[0]["address"].as_str().unwrap()))
}

struct Watcher {
    neighbours: Neighbours,
    events: mpsc::Receiver<Event>,
}

impl Watcher {
    fn watch(&self, address: &str) {
        self.neighbours.watch(address.parse().unwrap());
    }

    async fn next(&mut self) -> (IpAddr, Result<NextHop, String>) {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event").unwrap();
        let Event::NextHop { address, next_hop } = event else { panic!("{event:?}") };
        // The test ignores the source address and the gateway of a next hop, which another test checks.
        (address, next_hop.map(|next_hop| NextHop { source: None, gateway: None, ..next_hop }))
    }

    /// Waits until the watcher reports `address` with the next hop or error `wanted`.
    async fn until(&mut self, address: &str, wanted: Result<NextHop, &str>) {
        let address: IpAddr = address.parse().unwrap();
        let wanted = wanted.map_err(str::to_owned);
        let mut seen = Vec::new();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let news = self.next().await;
                if news == (address, wanted.clone()) {
                    return;
                }
                seen.push(news);
            }
        });
        found.await.unwrap_or_else(|_| panic!("{address}: waiting for {wanted:?}, saw {seen:?}"));
    }
}

#[test]
fn when_addresses_of_both_families_are_watched_then_they_are_resolved_or_have_a_reason() {
    let links = Links::new();
    links.near("route add blackhole 192.0.2.0/24");
    links.near("route add 10.99.0.0/24 via inet6 2001:db8:77::9 dev east");
    links.near("route add 10.98.0.0/24 via 10.78.0.9");
    let (east, west) = (links.hop("east"), links.hop("west"));
    let here = NextHop {
        ifindex: 1,
        source_mac: [0; 6],
        destination_mac: [0; 6],
        mtu: 65_536,
        source: None,
        gateway: None,
        local: true,
    };
    links.run(async |mut watcher| {
        for (address, wanted) in [
            ("10.77.0.9", Ok(east)),
            ("2001:db8:77::9", Ok(east)),
            ("10.98.0.5", Ok(west)),
            ("10.99.0.5", Ok(east)),
            ("10.77.0.50", Err("no neighbour: 10.77.0.50 does not answer on east")),
            ("2001:db8:77::50", Err("no neighbour: 2001:db8:77::50 does not answer on east")),
            ("198.51.100.1", Err("no route to 198.51.100.1")),
            ("2001:db8:1::1", Err("no route to 2001:db8:1::1")),
            ("192.0.2.1", Err("no route to 192.0.2.1 (blackhole route)")),
            ("10.77.0.1", Ok(here)),
            ("2001:db8:77::1", Ok(here)),
            ("10.77.0.255", Err("10.77.0.255 is a broadcast address")),
        ] {
            watcher.watch(address);
            let (about, next_hop) = watcher.next().await;
            assert_eq!((about, next_hop), (address.parse().unwrap(), wanted.map_err(str::to_owned)));
            watcher.neighbours.unwatch(about);
        }
    });
}

#[test]
fn when_neighbour_interface_or_route_changes_then_the_watcher_follows() {
    let links = Links::new();
    links.near("route add 10.98.0.0/24 via 10.77.0.9");
    let (east, west) = (links.hop("east"), links.hop("west"));
    links.run(async |mut watcher| {
        watcher.watch("10.98.0.5");
        watcher.until("10.98.0.5", Ok(east)).await;

        links.near(&format!("neigh replace 10.77.0.9 lladdr {OTHER_MAC} dev east nud reachable"));
        watcher.until("10.98.0.5", Ok(links.near_hop("east", mac(OTHER_MAC)))).await;

        links.near("route replace 10.98.0.0/24 via 10.78.0.9");
        watcher.until("10.98.0.5", Ok(west)).await;

        links.near("link set west mtu 1400");
        watcher.until("10.98.0.5", Ok(NextHop { mtu: 1400, ..west })).await;

        links.far("link set west down");
        watcher.until("10.98.0.5", Err("interface west has no carrier")).await;
        links.far("link set west up");
        watcher.until("10.98.0.5", Ok(NextHop { mtu: 1400, ..west })).await;

        links.near("link set west down");
        watcher.until("10.98.0.5", Err("interface west is down")).await;
        // The kernel removed the route when the interface went down.
        links.near("link set west up");
        links.near("route add 10.98.0.0/24 via 10.78.0.9");
        watcher.until("10.98.0.5", Ok(NextHop { mtu: 1400, ..west })).await;

        links.near("link delete west");
        watcher.until("10.98.0.5", Err("no route to 10.98.0.5")).await;
    });
}

#[test]
fn when_a_backend_comes_up_or_dies_then_the_watcher_notices() {
    let links = Links::new();
    let east = links.hop("east");
    links.run(async |mut watcher| {
        links.far("address del 10.77.0.9/24 dev east");
        watcher.watch("10.77.0.9");
        watcher.until("10.77.0.9", Err("no neighbour: 10.77.0.9 does not answer on east")).await;

        links.far("address add 10.77.0.9/24 dev east");
        watcher.until("10.77.0.9", Ok(east)).await;

        links.far("address del 10.77.0.9/24 dev east");
        links.near("neigh replace 10.77.0.9 dev east nud failed");
        watcher.until("10.77.0.9", Err("no neighbour: 10.77.0.9 does not answer on east")).await;
    });
}

#[test]
fn when_hundreds_of_addresses_are_watched_then_all_fit_a_short_channel() {
    let links = Links::new();
    let addresses: Vec<String> = (10..210).map(|last| format!("10.77.0.{last}")).collect();
    for address in &addresses {
        links.far(&format!("address add {address}/24 dev east"));
    }
    let east = links.hop("east");
    links.run(async |mut watcher| {
        addresses.iter().for_each(|address| watcher.watch(address));
        let mut missing: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        while !missing.is_empty() {
            let (address, next_hop) = watcher.next().await;
            if next_hop == Ok(east) {
                missing.retain(|other| *other != address);
            }
        }
    });
}

#[test]
fn when_a_clients_neighbour_is_resolved_then_a_permanent_entry_stays() {
    let links = Links::new();
    links.near(&format!("neigh add 10.77.0.60 lladdr {OTHER_MAC} dev east nud permanent"));
    let (ifindex, _) = show(&links.near, "east");
    let wanted = |last: u8| {
        let address = [u32::from_ne_bytes([10, 77, 0, last]), 0, 0, 0];
        NeighbourWanted { address, ifindex, family: u32::from(FAMILY_V4) }
    };
    links.run(async |mut watcher| {
        // The watcher reports an address only after reading the kernel's tables of routes and neighbours.
        watcher.watch("10.77.0.1");
        assert_eq!(watcher.next().await.0, IpAddr::from([10, 77, 0, 1]));
        watcher.neighbours.want(&wanted(60));
        watcher.neighbours.want(&wanted(9));
        tokio::time::timeout(PATIENCE, async {
            while !links.near("neigh show 10.77.0.9 dev east").contains("lladdr") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the neighbour is resolved");
        assert!(links.near("neigh show 10.77.0.60 dev east").contains("PERMANENT"));
    });
}

#[test]
fn when_a_route_says_what_fits_then_its_next_hops_say_so_as_long_as_it_does() {
    let links = Links::new();
    let east = links.hop("east");
    for (address, prefix, gateway) in
        [("10.98.0.5", "10.98.0.0/24", "10.77.0.9"), ("2001:db8:98::5", "2001:db8:98::/64", "2001:db8:77::9")]
    {
        links.near(&format!("route add {prefix} via {gateway} mtu 1400"));
        links.run(async |mut watcher| {
            watcher.watch(address);
            watcher.until(address, Ok(NextHop { mtu: 1400, ..east })).await;
            links.near(&format!("route replace {prefix} via {gateway} mtu 1300"));
            watcher.until(address, Ok(NextHop { mtu: 1300, ..east })).await;
            links.near(&format!("route replace {prefix} via {gateway} mtu 9000"));
            watcher.until(address, Ok(east)).await;
            links.near(&format!("route replace {prefix} via {gateway} mtu 1400"));
            watcher.until(address, Ok(NextHop { mtu: 1400, ..east })).await;
            links.near(&format!("route replace {prefix} via {gateway}"));
            watcher.until(address, Ok(east)).await;
        });
    }
}

/// Sends a tunnel packet of 1,450 bytes as XDP would, without a tunnel socket on the machine.
fn send_tunnel_packet(from: IpAddr, to: IpAddr, protocol: u8) {
    const LENGTH: usize = 1450;
    let udp = [0x9c, 0x41, 0x17, 0xc0, 0x05, 0x96, 0, 0];
    let (mut packet, domain) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = (LENGTH as u16).to_be_bytes();
            let head = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            ([&head[..], &from.octets(), &to.octets()].concat(), Domain::IPV4)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = (LENGTH as u16 - 40).to_be_bytes();
            let head = [0x60, 0, 0, 0, high, low, protocol, 64];
            ([&head[..], &from.octets(), &to.octets()].concat(), Domain::IPV6)
        }
        mixed => panic!("{mixed:?}"),
    };
    packet.extend(udp);
    packet.resize(LENGTH, 0);
    // With `IPPROTO_RAW`, the sender provides all headers of the packet.
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
    if domain == Domain::IPV6 {
        socket.set_header_included_v6(true).unwrap();
    }
    socket.send_to(&packet, &SockAddr::from(SocketAddr::new(to, 0))).unwrap();
}

#[test]
fn when_a_router_refuses_a_tunnels_packet_then_the_next_hop_is_as_narrow_until_the_kernel_forgets() {
    let links = Links::new();
    let east = links.hop("east");
    let ways = [
        ("192.0.2", "192.0.2.0/24", "10.77.0.9", "10.78.0.1", "10.77.0.1"),
        ("2001:db8:98:", "2001:db8:98::/64", "2001:db8:77::9", "2001:db8:78::1", "2001:db8:77::1"),
    ];
    links.near("address add 2001:db8:78::1/64 dev west nodad");
    links.far("address add 2001:db8:78::9/64 dev west nodad");
    for (_, prefix, gateway, beyond, _) in ways {
        links.near(&format!("route add {prefix} via {gateway}"));
        links.far(&format!("route add {prefix} via {beyond} dev west mtu lock 1400"));
    }
    let sysctl = |namespace: &str, setting: &str| ip(&format!("netns exec {namespace} sysctl -qw {setting}"));
    sysctl(&links.far, "net.ipv4.ip_forward=1");
    sysctl(&links.far, "net.ipv6.conf.all.forwarding=1");
    let forget_after = |seconds: u32| {
        sysctl(&links.near, &format!("net.ipv4.route.mtu_expires={seconds}"));
        sysctl(&links.near, &format!("net.ipv6.route.mtu_expires={seconds}"));
    };
    links.run(async |mut watcher| {
        let (ipip, gue) = (Tunnels { ipip: true, gue: false }, Tunnels { ipip: false, gue: true });
        for (protocol, tunnels) in [(4, ipip), (41, ipip), (17, gue)] {
            for (net, .., source) in ways {
                let (address, source) = (format!("{net}.{protocol}").replace(":.", "::"), source.parse().unwrap());
                let to: IpAddr = address.parse().unwrap();
                watcher.watch(&address);
                watcher.until(&address, Ok(east)).await;
                // While no tunnel socket is open, the kernel ignores a router's error about a tunnel packet.
                watcher.neighbours.set_tunnels(Tunnels::default());
                tokio::time::sleep(Duration::from_millis(50)).await;
                send_tunnel_packet(source, to, protocol);
                assert!(!links.near(&format!("route get {to}")).contains("mtu"), "{to}");

                watcher.neighbours.set_tunnels(tunnels);
                tokio::time::sleep(Duration::from_millis(50)).await;
                send_tunnel_packet(source, to, protocol);
                watcher.until(&address, Ok(NextHop { mtu: 1400, ..east })).await;
                watcher.neighbours.unwatch(to);
            }
        }
        // The shorter lifetime applies only to new entries of the kernel.
        forget_after(1);
        let (to, source): (IpAddr, IpAddr) = ("192.0.2.77".parse().unwrap(), "10.77.0.1".parse().unwrap());
        watcher.watch("192.0.2.77");
        watcher.until("192.0.2.77", Ok(east)).await;
        send_tunnel_packet(source, to, 17);
        watcher.until("192.0.2.77", Ok(NextHop { mtu: 1400, ..east })).await;
        watcher.until("192.0.2.77", Ok(east)).await;
    });
}
