//! Reports the largest possible packet size to the sender of a packet that exceeds this size.

use std::net::IpAddr;

use balancer_common::verdict::DropReason;

use super::{
    Arrival, Fate, State, checksum,
    parse::{ICMP, ICMP_V6, Packet},
};

pub(super) const TTL: u8 = 64;
/// The precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

impl State {
    /// Answers `packet` with frag-needed or packet-too-big, regardless of the packet's DF bit, because the program
    /// never fragments. Drops the packet if the program cannot inform the sender, or has already informed the sender
    /// about the first fragment of the datagram.
    pub(super) fn tell_too_big(
        &mut self,
        arrival: Arrival<'_>,
        packet: &Packet,
        fits: usize,
    ) -> Result<Fate, DropReason> {
        let told = !packet.is_later_fragment() && !is_group(arrival.frame) && is_one_host(packet.source);
        if !told {
            return Err(DropReason::TooBig);
        }
        self.counters.too_big += 1;
        let message = if packet.v6 {
            [&[2, 0, 0, 0], &(fits as u32).to_be_bytes()[..]].concat()
        } else {
            [&[3, 4, 0, 0, 0, 0], &(fits.min(65_535) as u16).to_be_bytes()[..]].concat()
        };
        Ok(Fate::Tx(error(arrival.frame, packet, message)))
    }
}

/// Returns whether the frame's destination is a group address.
pub(super) fn is_group(frame: &[u8]) -> bool {
    frame[0] & 1 != 0
}

/// Returns whether an address can belong to a single host (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
pub(super) fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified() && !address.is_loopback(),
    }
}

/// Builds an ICMP error to the sender of `packet`: the first eight bytes are `message`, and a quote of the packet
/// follows.
///
/// The program's choice: the length of the longest quotes from packets is a multiple of eight bytes. An IPv4 error
/// therefore has at most 572 of the allowed 576 bytes (RFC 1812 section 4.3.2.3), and an IPv6 error 1280 bytes (RFC
/// 4443 section 2.4).
pub(super) fn error(frame: &[u8], packet: &Packet, mut message: Vec<u8>) -> Vec<u8> {
    let most = if packet.v6 { 1232 } else { 544 };
    let quote = packet.length.min(most);
    message.extend(&frame[packet.start..packet.start + quote]);

    let mut out = [&frame[6..12], &frame[..6], &frame[12..packet.start]].concat();
    // The error goes from the VIP to the packet's sender.
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let check = checksum::fresh(&[], &message);
            message[2..4].copy_from_slice(&check.to_be_bytes());
            let mut header = vec![0x45, PRECEDENCE];
            header.extend((20 + message.len() as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, TTL, ICMP, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let check = checksum::fresh(&[], &header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            out.extend(header);
        }
        (from, to) => {
            let pseudo = checksum::pseudo_header(from, to, ICMP_V6, message.len());
            let check = checksum::fresh(&pseudo, &message);
            message[2..4].copy_from_slice(&check.to_be_bytes());
            out.extend([0x60, 0, 0, 0]);
            out.extend((message.len() as u16).to_be_bytes());
            out.extend([ICMP_V6, TTL]);
            out.extend(&pseudo[..32]);
        }
    }
    out.extend(message);
    out
}
