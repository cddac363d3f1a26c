//! The connection ID in a QUIC datagram.

use balancer_common::quic::{IdWords, LONG_ID_AT, MAX_ID, place};
use network_types::udp::UdpHdr;

use crate::{packet::Packet, parse::Ip};

/// The connection ID that the receiver of a datagram has issued to the sender, and the number of ID bytes read, at most
/// [`MAX_ID`]. `None`: the datagram has no connection ID, or the sender may have invented the ID.
#[inline(always)]
#[must_use]
pub fn read(ip: &Ip<'_>) -> Option<(IdWords, usize)> {
    let payload = ip.l4.skip(UdpHdr::LEN);
    let first: u8 = payload.load(0)?;
    let (version, said) = if first & 0x80 == 0 {
        (0, 0)
    } else {
        let version: [u8; 4] = payload.load(1)?;
        let said: u8 = payload.load(LONG_ID_AT - 1)?;
        (u32::from_be_bytes(version), said)
    };
    let place = place(first, version, said)?;
    let id = if place.at == 1 { payload.skip(1) } else { payload.skip(LONG_ID_AT) };
    let length = place.length.map_or(MAX_ID, usize::from);
    // Bytes after the end of the datagram are link-layer padding.
    let (end, at) = (ip.l4_length(), UdpHdr::LEN + place.at);
    let room = end.saturating_sub(at);
    first_bytes(id, if length < room { length } else { room })
}

/// The first bytes of a connection ID, and the number of bytes read.
#[inline(always)]
fn first_bytes(id: Packet<'_>, length: usize) -> Option<(IdWords, usize)> {
    let length = if length > MAX_ID { MAX_ID } else { length };
    if let Some(words) = id.load::<[u8; MAX_ID]>(0) {
        let word = |at: usize| {
            let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|index| words[at + index]);
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        };
        let [.., e, f, g, h] = words;
        return Some(([word(0), word(8), u64::from(u32::from_be_bytes([e, f, g, h])) << 32], length));
    }
    // The datagram is shorter than the longest possible ID.
    let (mut words, mut there) = ([0; 3], 0);
    for at in 0..MAX_ID {
        let Some(byte) = id.load::<u8>(at) else { break };
        words[at / 8] |= u64::from(byte) << (56 - 8 * (at % 8));
        there += 1;
    }
    Some((words, if length < there { length } else { there }))
}
