//! The tunnels `ipip` and `gue`, which add an outer IP header to the packet.

use std::net::IpAddr;

use balancer_common::{client::entropy, map_types::Forwarding, verdict::DropReason};
use balancer_control::io::BackendSpec;
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};

use super::{
    Arrival, State,
    forward::{one_hop_is_left, renew_header, take_a_hop},
    parse::Packet,
};

const GUE_PORT: u16 = 6080;
const OUTER_TTL: u8 = 64;

impl State {
    /// Encapsulates the frame's packet; the caller fills in the link-layer addresses. The inner `Err` means that the
    /// packet is too big, and contains the largest size that fits.
    pub(super) fn wrap(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        backend: &BackendSpec,
    ) -> Result<Result<Vec<u8>, usize>, DropReason> {
        one_hop_is_left(packet)?;
        let (Some(hop), Some(source)) = (backend.next_hop, backend.tunnel_source) else {
            return Err(DropReason::NoNextHop);
        };
        let gue = backend.forwarding == Forwarding::Gue;
        let overhead = if backend.address.is_ipv6() { 40 } else { 20 } + if gue { 8 } else { 0 };
        // An IP packet has at most 65,535 bytes, even if the MTU of the interface is larger.
        let mtu = (hop.mtu as usize).min(65_535);
        if packet.length + overhead > mtu {
            return Ok(Err(mtu.saturating_sub(overhead)));
        }
        let mut inner = arrival.frame.to_vec();
        take_a_hop(&mut inner, packet);
        renew_header(arrival.frame, &mut inner, packet);

        let mut out = inner[..packet.start].to_vec();
        let ether_type: u16 = if source.is_ipv4() { 0x0800 } else { 0x86dd };
        out[packet.start - 2..].copy_from_slice(&ether_type.to_be_bytes());
        let entropy = entropy(&words(packet.source));
        let udp = UdpHeader {
            source_port: entropy,
            destination_port: GUE_PORT,
            length: (8 + packet.length) as u16,
            checksum: 0,
        };
        let protocol = match (gue, packet.v6) {
            (true, _) => IpNumber::UDP,
            (false, false) => IpNumber::IPV4,
            (false, true) => IpNumber::IPV6,
        };
        let payload = packet.length + if gue { 8 } else { 0 };
        match (source, backend.address.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header {
                    total_len: (20 + payload) as u16,
                    identification: if packet.dont_fragment { 0 } else { self.next_id() },
                    dont_fragment: packet.dont_fragment,
                    time_to_live: OUTER_TTL,
                    protocol,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv4Header::default()
                }
                .to_bytes();
                header[1] = packet.traffic_class;
                header[10..12].fill(0);
                let check = super::checksum::fresh(&[], &header);
                header[10..12].copy_from_slice(&check.to_be_bytes());
                out.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => out.extend(
                Ipv6Header {
                    traffic_class: packet.traffic_class,
                    flow_label: Ipv6FlowLabel::try_new(u32::from(entropy)).unwrap_or_default(),
                    payload_length: payload as u16,
                    next_header: protocol,
                    hop_limit: OUTER_TTL,
                    source: source.octets(),
                    destination: destination.octets(),
                }
                .to_bytes(),
            ),
            _ => return Err(DropReason::NoNextHop),
        }
        if gue {
            out.extend(udp.to_bytes());
        }
        // The program's choice: the program keeps the padding that the link has added after the packet.
        out.extend(&inner[packet.start..]);
        Ok(Ok(out))
    }

    /// Returns the identification of an outer packet that routers may fragment. The program's choice: the
    /// identifications of the first CPU start at 1, in little-endian order.
    fn next_id(&mut self) -> u16 {
        self.outer_packets = self.outer_packets.wrapping_add(1);
        self.outer_packets.swap_bytes()
    }
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [u32::from_ne_bytes(address.octets()), 0, 0, 0],
        IpAddr::V6(address) => bytemuck::cast(address.octets()),
    }
}
