//! Tests of a service with several listeners at two VIPs. The program sends packets, fragments and ICMP errors for all
//! listeners to the same backends, with `nat` to the port that each listener has for its backends. Replies return to
//! the client from the listener of their connection.

use std::net::{IpAddr, SocketAddr};

use balancer_common::{map_types::Forwarding, verdict::DropReason};
use balancer_config::config::Protocol;
use balancer_testkit::{
    frame::{ACK, Frame, SYN, Transport},
    rig::{IN_MAC, ROUTER_MAC, Rig, Service, Setup, Target},
};

use crate::{
    cases::{Case, Then, to_backend_mac},
    echo, icmp_errors,
    rows::{self, rows},
    too_big, tunnel,
};

/// A service with listeners of one address family.
struct Scene {
    forwarding: Forwarding,
    client: &'static str,
    router: &'static str,
    /// The two VIPs of the service.
    vips: [&'static str; 2],
    backend: &'static str,
    /// The service of the rig, named by the service's first listener.
    service: &'static str,
    target: Target,
}

const fn v4(forwarding: Forwarding, vips: [&'static str; 2], service: &'static str, backend: &'static str) -> Scene {
    let [client, router] = ["203.0.113.7:40000", "192.0.2.77:0"];
    Scene { forwarding, client, router, vips, backend, service, target: Target::NoBackend }
}

const fn v6(forwarding: Forwarding, vips: [&'static str; 2], service: &'static str, backend: &'static str) -> Scene {
    let [client, router] = ["[2001:db8:c::7]:40000", "[2001:db8:ff::77]:0"];
    Scene { forwarding, client, router, vips, backend, service, target: Target::NoBackend }
}

const fn to(target: &'static str, scene: Scene) -> Scene {
    Scene { target: Target::SameInterface(target), ..scene }
}

const SCENES: [Scene; 8] = {
    use Forwarding::{Dsr, Gue, Ipip, Nat};
    [
        to("10.0.0.10:0", v4(Dsr, ["198.51.100.10", "198.51.100.11"], "198.51.100.10:80", "10.0.0.10")),
        to("10.0.0.20:0", v4(Nat, ["198.51.100.20", "198.51.100.21"], "198.51.100.20:80", "10.0.0.20")),
        to("10.0.0.30:0", v4(Ipip, ["198.51.100.30", "198.51.100.31"], "198.51.100.30:80", "10.0.0.30")),
        to("10.0.0.40:0", v4(Gue, ["198.51.100.40", "198.51.100.41"], "198.51.100.40:80", "10.0.0.40")),
        to("[fd00::10]:0", v6(Dsr, ["2001:db8::10", "2001:db8::11"], "[2001:db8::10]:80", "fd00::10")),
        to("[fd00::20]:0", v6(Nat, ["2001:db8::20", "2001:db8::21"], "[2001:db8::20]:80", "fd00::20")),
        to("[fd00::30]:0", v6(Ipip, ["2001:db8::30", "2001:db8::31"], "[2001:db8::30]:80", "fd00::30")),
        to("[fd00::40]:0", v6(Gue, ["2001:db8::40", "2001:db8::41"], "[2001:db8::40]:80", "fd00::40")),
    ]
};

/// For each listener: the index of the VIP, the ports, the protocol, and the port of `nat` backends (0: the packet's
/// own port). One port has listeners for TCP and UDP at one VIP, and another port has listeners at both VIPs.
const LISTENERS: [(usize, &str, Protocol, u16); 5] = [
    (0, "80", Protocol::Tcp, 8080),
    (0, "443", Protocol::Tcp, 8443),
    (0, "443", Protocol::Udp, 8443),
    (1, "443", Protocol::Tcp, 9443),
    (1, "10000-10100", Protocol::Udp, 0),
];

/// One packet for each listener, and two packets for the listener with a range of ports: the VIP, the port, the
/// protocol, and the backend's port.
const DOORS: [(usize, u16, Protocol, u16); 6] = [
    (0, 80, Protocol::Tcp, 8080),
    (0, 443, Protocol::Tcp, 8443),
    (0, 443, Protocol::Udp, 8443),
    (1, 443, Protocol::Tcp, 9443),
    (1, 10_000, Protocol::Udp, 10_000),
    (1, 10_100, Protocol::Udp, 10_100),
];

/// Destinations that have no listener.
const ELSEWHERE: [(usize, u16, Protocol); 6] = [
    (0, 80, Protocol::Udp),
    (0, 10_000, Protocol::Udp),
    (1, 80, Protocol::Tcp),
    (1, 443, Protocol::Udp),
    (1, 9_999, Protocol::Udp),
    (1, 10_101, Protocol::Udp),
];

impl Scene {
    fn vip(&self, vip: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.vips[vip].parse().expect("an address"), port)
    }

    fn backend(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.backend.parse::<IpAddr>().expect("an address"), port)
    }

    fn is_nat(&self) -> bool {
        self.forwarding == Forwarding::Nat
    }

    fn name(&self, vip: usize, port: u16, protocol: Protocol) -> String {
        format!("{:?} {}/{protocol}", self.forwarding, self.vip(vip, port))
    }

    fn frame(&self, vip: usize, port: u16, protocol: Protocol, flags: u8) -> Frame {
        frame(self.client, &self.vip(vip, port).to_string(), protocol, flags)
    }

    /// Returns a packet in the form that the backend's port receives.
    fn forwarded(&self, rig: &Rig, frame: &Frame, port: u16) -> Frame {
        let out = to_backend_mac(rig, frame, self.service);
        match self.forwarding {
            Forwarding::Dsr => out,
            // No scene has `snat`, because the source ports of `snat` are random; other tests cover `snat`.
            Forwarding::Nat | Forwarding::Snat => Frame { destination: self.backend(port), ttl: frame.ttl - 1, ..out },
            Forwarding::Ipip => tunnel::wrapped(rig, "ipip", frame, self.service, self.backend),
            Forwarding::Gue => tunnel::wrapped(rig, "gue", frame, self.service, self.backend),
        }
    }
}

fn frame(source: &str, destination: &str, protocol: Protocol, flags: u8) -> Frame {
    let transport = match protocol {
        Protocol::Tcp => Transport::Tcp(flags),
        Protocol::Udp | Protocol::Quic => Transport::Udp,
    };
    Frame { payload: (0..100).collect(), ..Frame::new(source, destination, transport) }
}

fn services() -> Vec<Service> {
    let service = |scene: &Scene| Service {
        address: scene.service,
        protocol: Protocol::Tcp,
        forwarding: scene.forwarding,
        target: scene.target,
    };
    SCENES.iter().map(service).collect()
}

fn listen(rig: &mut Rig) -> anyhow::Result<()> {
    for scene in &SCENES {
        let mut listeners = Vec::new();
        for (vip, ports, protocol, backend_port) in LISTENERS {
            let address = scene.vip(vip, 0).to_string();
            let address = address.strip_suffix('0').expect("a port");
            let listener = format!("{address}{ports}/{protocol}").parse().map_err(anyhow::Error::msg)?;
            listeners.push((listener, if scene.is_nat() { backend_port } else { 0 }));
        }
        rig.listen(scene.service, &listeners)?;
    }
    Ok(())
}

/// Gives the services their listeners, and returns the cases that `cases` returns for each scene.
fn of_scenes(rig: &mut Rig, cases: impl Fn(&Rig, &Scene) -> Vec<Case>) -> Vec<Case> {
    listen(rig).expect("listeners");
    SCENES.iter().flat_map(|scene| cases(rig, scene)).collect()
}

fn when_a_packet_comes_to_any_listener_then_it_goes_to_the_backend(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |rig, scene| {
        let taken = DOORS.iter().flat_map(|&(vip, port, protocol, backend_port)| {
            [SYN, ACK].map(|flags| {
                let frame = scene.frame(vip, port, protocol, flags);
                let out = scene.forwarded(rig, &frame, backend_port);
                Case::new(format!("{} {flags}", scene.name(vip, port, protocol)), &frame, Then::Tx(out.bytes()))
            })
        });
        let passed = ELSEWHERE.iter().map(|&(vip, port, protocol)| {
            Case::new(scene.name(vip, port, protocol), &scene.frame(vip, port, protocol, SYN), Then::Pass)
        });
        taken.chain(passed).collect()
    })
}

fn when_the_first_fragment_comes_to_any_listener_then_the_others_follow(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |rig, scene| {
        let mut cases = Vec::new();
        if matches!(scene.forwarding, Forwarding::Ipip | Forwarding::Gue) {
            // Outer packets that routers may fragment have varying identifications, which end-to-end tests check.
            return cases;
        }
        for (id, &(vip, port, protocol, backend_port)) in (1..).zip(&DOORS) {
            let whole = Frame { dont_fragment: false, ..scene.frame(vip, port, protocol, ACK) };
            let translated = Frame { destination: scene.backend(backend_port), ..whole.clone() };
            let sent = if scene.is_nat() { translated } else { whole.clone() };
            for (part, sent) in whole.fragments(40, id).iter().zip(sent.fragments(40, id)) {
                // The checksum in the first fragment covers the whole datagram, and the program changes ports and
                // addresses.
                let part_out = Frame { destination: part.destination, ..sent };
                let out = scene.forwarded(rig, &part_out, backend_port);
                let name = format!("{} part {:?}", scene.name(vip, port, protocol), part.payload.len());
                cases.push(Case::new(name, part, Then::Tx(out.bytes())));
            }
        }
        cases
    })
}

fn when_a_backend_replies_then_the_reply_goes_to_the_listener_of_its_connection(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |_, scene| {
        let mut cases = Vec::new();
        for &(vip, port, protocol, backend_port) in &DOORS {
            let reply = frame(&scene.backend(backend_port).to_string(), scene.client, protocol, SYN | ACK);
            let restored = Frame {
                destination_mac: ROUTER_MAC,
                source_mac: IN_MAC,
                source: scene.vip(vip, port),
                ttl: reply.ttl - 1,
                ..reply.clone()
            };
            let then = if scene.is_nat() { Then::Tx(restored.bytes()) } else { Then::Pass };
            cases.push(Case::new(format!("from {backend_port}: {}", scene.name(vip, port, protocol)), &reply, then));
        }
        // If the program maps the port of a listener to another port, backends do not reply from the listener's port.
        for (port, protocol) in [(80, Protocol::Tcp), (443, Protocol::Tcp), (443, Protocol::Udp), (9443, Protocol::Udp)]
        {
            let reply = frame(&scene.backend(port).to_string(), scene.client, protocol, SYN | ACK);
            cases.push(Case::new(format!("from {port}/{protocol}"), &reply, Then::Pass));
        }
        cases
    })
}

fn when_an_error_comes_to_any_listener_then_it_reaches_backend_or_client(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |rig, scene| {
        let mut cases = Vec::new();
        let kind = if scene.client.starts_with('[') {
            ("packet too big", 2, 0, [0, 0, 5, 0])
        } else {
            ("fragmentation needed", 3, 4, [0, 0, 5, 0])
        };
        for &(vip, port, protocol, backend_port) in &DOORS {
            let name = scene.name(vip, port, protocol);
            let (at_vip, at_backend) = (scene.vip(vip, port).to_string(), scene.backend(backend_port).to_string());
            let quoted = frame(&at_vip, scene.client, protocol, ACK);
            let about_vip = icmp_errors::error(scene.router, &quoted, 68, kind);
            let out = if scene.is_nat() {
                let sent = frame(&at_backend, scene.client, protocol, ACK);
                let sent = to_backend_mac(rig, &icmp_errors::error(scene.router, &sent, 68, kind), scene.service);
                Frame { ttl: about_vip.ttl - 1, ..sent }
            } else {
                scene.forwarded(rig, &about_vip, backend_port)
            };
            cases.push(Case::new(format!("{name} to the backend"), &about_vip, Then::Tx(out.bytes())));
            if scene.is_nat() {
                let quoted = frame(scene.client, &at_backend, protocol, ACK);
                let received = icmp_errors::error(&at_backend, &quoted, 68, kind);
                let known = frame(scene.client, &at_vip, protocol, ACK);
                let out = Frame {
                    destination_mac: ROUTER_MAC,
                    source_mac: IN_MAC,
                    ttl: received.ttl - 1,
                    ..icmp_errors::error(&at_vip, &known, 68, kind)
                };
                cases.push(Case::new(format!("{name} to the client"), &received, Then::Tx(out.bytes())));
            }
        }
        for &(vip, port, protocol) in &ELSEWHERE {
            let quoted = frame(&scene.vip(vip, port).to_string(), scene.client, protocol, ACK);
            let about = icmp_errors::error(scene.router, &quoted, 68, kind);
            cases.push(Case::new(format!("{} is nobody's", scene.name(vip, port, protocol)), &about, Then::Pass));
        }
        cases
    })
}

fn when_a_packet_at_any_listener_does_not_fit_then_its_sender_is_told(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |_, scene| {
        let outer = match scene.forwarding {
            Forwarding::Dsr | Forwarding::Nat | Forwarding::Snat => return what_is_used_up(scene),
            Forwarding::Ipip => 0,
            Forwarding::Gue => 8,
        };
        let mtu = 1500 - outer - if scene.client.starts_with('[') { 40 } else { 20 };
        let tcp = DOORS.iter().filter(|(_, _, protocol, _)| *protocol == Protocol::Tcp);
        tcp.map(|&(vip, port, protocol, _)| {
            let segment = too_big::segment(scene.client, &scene.vip(vip, port).to_string(), 1500);
            Case::new(scene.name(vip, port, protocol), &segment, Then::Tx(too_big::told(&segment, mtu).bytes()))
        })
        .collect()
    })
}

/// The program reduces the TTL or hop limit only with `nat`.
fn what_is_used_up(scene: &Scene) -> Vec<Case> {
    if !scene.is_nat() {
        return Vec::new();
    }
    DOORS
        .iter()
        .map(|&(vip, port, protocol, _)| {
            let last = Frame { ttl: 1, ..scene.frame(vip, port, protocol, ACK) };
            Case::new(scene.name(vip, port, protocol), &last, Then::Drop(DropReason::TtlExceeded))
        })
        .collect()
}

fn when_an_echo_request_comes_to_either_vip_then_it_is_answered(rig: &mut Rig) -> Vec<Case> {
    of_scenes(rig, |_, scene| {
        let v6 = scene.client.starts_with('[');
        let (request, answer) = if v6 { (128, 129) } else { (8, 0) };
        let at = |vip: &str| if v6 { format!("[{vip}]:0") } else { format!("{vip}:0") };
        let client = if v6 { "[2001:db8:c::7]:0" } else { "203.0.113.7:0" };
        let pings = scene.vips.iter().map(|vip| (vip, Frame::icmp(client, &at(vip), request, 0, [0x12, 0x34, 0, 1])));
        pings.map(|(vip, ping)| Case::new(*vip, &ping, Then::Tx(echo::reply_bytes(&ping, answer)))).collect()
    })
}

#[test]
fn when_a_service_has_several_listeners_then_all_of_them_lead_to_the_backends_and_back() {
    rows::run(
        services(),
        Setup::default(),
        rows![
            when_a_packet_comes_to_any_listener_then_it_goes_to_the_backend,
            when_the_first_fragment_comes_to_any_listener_then_the_others_follow,
            when_a_backend_replies_then_the_reply_goes_to_the_listener_of_its_connection,
            when_an_error_comes_to_any_listener_then_it_reaches_backend_or_client,
            when_a_packet_at_any_listener_does_not_fit_then_its_sender_is_told,
            when_an_echo_request_comes_to_either_vip_then_it_is_answered
        ],
    );
}
