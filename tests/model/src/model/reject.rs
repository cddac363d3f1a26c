//! Answers the packets of clients that no backend takes, in services with the setting `reject`.

use std::net::IpAddr;

use balancer_common::verdict::DropReason;

use super::{
    Arrival, Fate, State, checksum,
    parse::{self, Packet, TCP},
    too_big::{TTL, error, is_group, is_one_host},
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

impl State {
    /// Returns the fate of a packet whose client no backend takes.
    pub(super) fn nobody(
        &mut self,
        service: usize,
        arrival: Arrival<'_>,
        packet: &Packet,
        reason: DropReason,
    ) -> Result<Fate, DropReason> {
        if !self.services[service].spec.reject || is_group(arrival.frame) || !is_one_host(packet.source) {
            return Err(reason);
        }
        let answer = if packet.protocol == TCP {
            reset(arrival.frame, packet).ok_or(reason)?
        } else {
            let denied = reason == DropReason::Denied;
            let code = match (packet.v6, denied) {
                (false, false) => [3, 3],
                (false, true) => [3, 13],
                (true, false) => [1, 4],
                (true, true) => [1, 1],
            };
            error(arrival.frame, packet, [&code[..], &[0; 6]].concat())
        };
        self.counters.rejected += 1;
        Ok(Fate::Tx(answer))
    }
}

/// Returns the answer that a closed port would send (RFC 9293 section 3.10.7.1), or `None` if a closed port would not
/// answer.
fn reset(frame: &[u8], packet: &Packet) -> Option<Vec<u8>> {
    let at = packet.l4();
    let long = |at: usize| Some(u32::from(parse::word(frame, at)?) << 16 | u32::from(parse::word(frame, at + 2)?));
    let (sequence, acknowledgement, flags) = (long(at + 4)?, long(at + 8)?, frame[at + 13]);
    // The program's choice: the program does not answer a first fragment without an acknowledgement, because the rest
    // of the segment is unknown.
    if flags & RST != 0 || flags & ACK == 0 && packet.is_first_fragment() {
        return None;
    }
    let data = packet.l4_length().checked_sub(usize::from(frame[at + 12] >> 4) * 4)?;
    let taken = data as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (sequence, acknowledgement, flags) =
        if flags & ACK != 0 { (acknowledgement, 0, RST) } else { (0, sequence.wrapping_add(taken), RST | ACK) };

    let mut segment = [&frame[at + 2..at + 4], &frame[at..at + 2]].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    segment.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let pseudo = checksum::pseudo_header(packet.destination, packet.source, TCP, segment.len());
    let check = checksum::fresh(&pseudo, &segment);
    segment[16..18].copy_from_slice(&check.to_be_bytes());

    let mut out = [&frame[6..12], &frame[..6], &frame[12..packet.start]].concat();
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, TTL, TCP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let check = checksum::fresh(&[], &header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            out.extend(header);
        }
        _ => {
            out.extend([0x60, 0, 0, 0, 0, 20, TCP, TTL]);
            out.extend(&pseudo[..32]);
        }
    }
    out.extend(segment);
    // The program's choice: the program pads the answer to the minimal frame size if the received frame had at least
    // that size.
    if frame.len() >= 60 {
        out.resize(out.len().max(60), 0);
    }
    Some(out)
}
