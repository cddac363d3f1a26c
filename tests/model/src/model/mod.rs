//! A model of packet handling, derived from the description of the behaviour and written as plainly as possible. The
//! model works on byte vectors, computes checksums from scratch, and uses no code of the kernel program. Tests compare
//! the kernel program with the model, packet by packet.
//!
//! By design, the model and the kernel program share one crate for layouts, the position of a client's bucket, the
//! filter of seen clients, the sides of a share, and the entropy of tunnels. If the description leaves a choice to the
//! program, the model follows the program, and a comment contains the word *choice*.

mod checksum;
mod counters;
mod forward;
mod fragments;
mod icmp;
mod memory;
pub(crate) mod parse;
pub(crate) mod quic;
mod reject;
mod routes;
mod rules;
mod share;
mod state;
mod steer;
mod too_big;
mod tunnel;

pub use counters::Counters;
pub use routes::{Hop, Route, Routes};
pub use state::{BUCKETS, Newcomers, SEEN_WORDS, Seen, Service, State};
pub use steer::client_hash;

use balancer_common::{
    handover::Handed,
    verdict::{DropReason, Verdict},
};

use share::Treated;
use steer::{Choice, Nowhere};

use parse::{DESTINATION_OPTIONS, ICMP, ICMP_V6, Packet, Parsed, TCP, UDP};

/// The fate of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The frame passes to the kernel unchanged.
    Pass,
    /// The frame leaves by the interface on which it arrived, with the given bytes.
    Tx(Vec<u8>),
    /// The frame leaves by an interface other than its ingress interface, with the given bytes.
    Redirect(Vec<u8>),
    /// The frame passes to the kernel with a mark and the given bytes. The mark includes the frame's source MAC
    /// address, which the model sets to zeros.
    Handed(Vec<u8>),
    /// The frame is dropped, and the test ignores its bytes.
    Drop(DropReason),
}

impl Fate {
    /// Returns the verdict's counter.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Pass => Verdict::Pass,
            Self::Tx(_) => Verdict::Tx,
            Self::Redirect(_) => Verdict::Redirect,
            Self::Handed(_) => Verdict::Handed,
            Self::Drop(_) => Verdict::Drop,
        }
    }

    /// Marks the frame and passes it to the kernel, which sends it.
    fn handed(mut frame: Vec<u8>, handed: Handed) -> Self {
        forward::write_macs(&mut frame, handed.destination(), [0; 6]);
        Self::Handed(frame)
    }

    /// Sends the frame, which arrived on `ingress`, by `egress`.
    fn sent(frame: Vec<u8>, ingress: u32, egress: u32) -> Self {
        if ingress == egress { Self::Tx(frame) } else { Self::Redirect(frame) }
    }
}

/// A frame, and the interface on which it arrived.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    frame: &'a [u8],
    ingress: u32,
}

impl State {
    /// Decides the fate of one frame that arrived on `ingress`, counts the frame, and updates the model's state.
    pub fn packet(&mut self, frame: &[u8], ingress: u32) -> Fate {
        let fate = match self.decide(Arrival { frame, ingress }) {
            Ok(fate) => fate,
            Err(reason) => Fate::Drop(reason),
        };
        self.counters.verdict(ingress, fate.verdict());
        if let Fate::Drop(reason) = fate {
            self.counters.drops[reason.index()] += 1;
        }
        fate
    }

    fn decide(&mut self, arrival: Arrival<'_>) -> Result<Fate, DropReason> {
        let local_mac = self.local_macs.get(&arrival.ingress).map(|mac| mac.as_slice());
        if !too_big::is_group(arrival.frame) && local_mac.is_some_and(|mac| mac != &arrival.frame[..6]) {
            return Ok(Fate::Pass);
        }
        let packet = match parse::frame(arrival.frame) {
            Parsed::Packet(packet) => packet,
            Parsed::NotIp | Parsed::Waypoint => return Ok(Fate::Pass),
            // The program drops a malformed packet only if the packet is for a VIP. The kernel decides about other
            // malformed packets.
            Parsed::Broken { destination } => return self.broken(destination),
        };
        match packet.protocol {
            TCP | UDP if packet.is_later_fragment() => self.later_fragment(arrival, &packet),
            // In a later fragment, the protocol field names the first header of the fragmented data: TCP or UDP may
            // follow this header.
            DESTINATION_OPTIONS if packet.v6 && packet.is_later_fragment() => self.later_fragment(arrival, &packet),
            TCP | UDP => self.with_ports(arrival, &packet),
            // The program's choice: fragments of ICMP messages pass.
            ICMP if !packet.v6 && !packet.is_fragment() => self.icmp(arrival, &packet),
            ICMP_V6 if packet.v6 && !packet.is_fragment() => self.icmp(arrival, &packet),
            _ => Ok(Fate::Pass),
        }
    }

    fn broken(&self, destination: std::net::IpAddr) -> Result<Fate, DropReason> {
        if self.is_vip(destination) { self.refused(destination, DropReason::Malformed) } else { Ok(Fate::Pass) }
    }

    /// Returns the fate of a packet to a VIP if the program cannot steer the packet. The packet passes if the host also
    /// serves clients of the VIP.
    fn refused(&self, vip: std::net::IpAddr, reason: DropReason) -> Result<Fate, DropReason> {
        if self.is_shared(vip) { Ok(Fate::Pass) } else { Err(reason) }
    }

    fn with_ports(&mut self, arrival: Arrival<'_>, packet: &Packet) -> Result<Fate, DropReason> {
        let Some(ports) = parse::ports(arrival.frame, packet) else { return self.broken(packet.destination) };
        let found = self.listener(packet.destination, ports.destination, packet.protocol);
        let Some((service, listener)) = found else { return self.not_for_a_service(arrival, packet, ports.source) };
        let listener = self.services[service].spec.listeners[listener];
        if listener.counted {
            let (packets, connections) = self.counters.listeners.entry(listener.id.0).or_default();
            *packets += 1;
            *connections += u64::from(ports.opens);
        }
        let treated = self.treated(service, packet.source);
        let begins = ports.opens || packet.protocol == UDP;
        if treated == Treated::Host || treated == Treated::Left && begins {
            if !self.is_martian(packet, false) {
                self.remember(service, packet.source, ports.opens, packet.protocol == UDP);
            }
            return Ok(self.unsteered(service, packet));
        }
        if self.is_martian(packet, begins) {
            return if matches!(treated, Treated::Steered { .. }) { Err(DropReason::Martian) } else { Ok(Fate::Pass) };
        }
        let known_alone = treated == Treated::Steered { came: true } && !begins;
        let opening =
            steer::Opening { port: ports.source, opens: ports.opens, datagram: packet.protocol == UDP, known_alone };
        if treated == Treated::Left {
            // The program's choice: the program counts the packet's rule before the packet passes.
            self.rule(service, packet.source, false);
            return Ok(self.left(service));
        }
        if let Some(choice) = self.by_connection_id(arrival, packet, service, &listener) {
            return self.on_its_way(arrival, packet, choice, treated);
        }
        let choice = match self.steer(service, packet.source, opening) {
            Ok(choice) => choice,
            Err(Nowhere::Host) => return Ok(Fate::Pass),
            Err(Nowhere::Dropped(_)) if treated == Treated::Watched => return Ok(Fate::Pass),
            Err(Nowhere::Dropped(reason)) => return self.nobody(service, arrival, packet, reason),
        };
        self.on_its_way(arrival, packet, choice, treated)
    }

    fn on_its_way(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        choice: Choice,
        treated: Treated,
    ) -> Result<Fate, DropReason> {
        if treated == Treated::Watched {
            return Ok(self.watched(arrival, packet, choice));
        }
        self.follow_to_backend(packet, choice.backend);
        self.forward(arrival, packet, choice)
    }

    /// Returns whether the source of a packet cannot be a client's address. The program's choice: the program refuses a
    /// source that is the VIP of another service only if the packet opens a connection or may open one.
    fn is_martian(&self, packet: &Packet, may_open: bool) -> bool {
        let source = packet.source;
        let broadcast = source == std::net::IpAddr::from(std::net::Ipv4Addr::BROADCAST);
        source.is_loopback()
            || source.is_multicast()
            || source.is_unspecified()
            || broadcast
            || source == packet.destination
            || may_open && self.is_vip(source)
    }

    /// A packet that is for no service may be the reply of a `nat` backend.
    fn not_for_a_service(&mut self, arrival: Arrival<'_>, packet: &Packet, port: u16) -> Result<Fate, DropReason> {
        match self.way_back(packet.source, port, packet.protocol) {
            Some(way) => {
                self.follow_to_client(packet, way);
                self.reply(arrival, packet, way)
            }
            None => {
                self.follow_to_kernel(packet);
                Ok(Fate::Pass)
            }
        }
    }
}
