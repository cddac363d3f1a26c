//! Damages frames at random positions.

use fastrand::Rng;

use super::{once_in, one_of};

/// The shortest frame that the kernel accepts.
const SHORTEST: usize = 14;

/// Returns the frame, damaged with a probability of one in four.
pub(super) fn perhaps(rng: &mut Rng, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if !once_in(rng, 4) {
        return frame;
    }
    // The length of the link-layer header depends on the VLAN tags. Most mutations leave the link-layer header intact.
    let start = (12..frame.len().saturating_sub(1))
        .step_by(4)
        .find(|&at| !matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]))
        .map_or(SHORTEST, |at| at + 2);
    let v4 = frame.get(start - 2) == Some(&8);
    match rng.u32(..8) {
        0 | 1 => {
            for _ in 0..rng.u32(1..=4) {
                let at = if once_in(rng, 4) { 0 } else { start.min(frame.len() - 1) };
                let at = rng.usize(at..frame.len().min(at + 100));
                frame[at] ^= 1 << rng.u32(..8);
            }
        }
        2 => frame.truncate(rng.usize(SHORTEST..=frame.len())),
        3 => {
            // Cuts the frame near the end of a header.
            let length = one_of(rng, &[0, 19, 20, 27, 28, 39, 40, 47, 48, 53, 59, 60]);
            frame.truncate((start + length).max(SHORTEST));
        }
        4 => {
            let at = start + if v4 { 2 } else { 4 };
            if let Some(bytes) = frame.get_mut(at..at + 2) {
                let length = u16::from_be_bytes([bytes[0], bytes[1]]);
                let by = one_of(rng, &[1, 2, 4, 8, 20, 100]);
                let length = if rng.bool() { length.wrapping_sub(by) } else { length.wrapping_add(by) };
                bytes.copy_from_slice(&length.to_be_bytes());
            }
        }
        5 => {
            if let Some(first) = frame.get_mut(start) {
                *first = *first & 0xf0 | rng.u8(..16);
            }
        }
        6 => {
            // Changes a length in layer 4: the datagram's length, or the TCP header's length.
            let at = start + if v4 { 20 } else { 40 } + one_of(rng, &[4, 5, 12]);
            if let Some(byte) = frame.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        _ => {
            // Checksums have special cases for 16-bit words that consist of zeros or of ones.
            let at = rng.usize(start.min(frame.len() - 2)..frame.len() - 1);
            frame[at..at + 2].fill(one_of(rng, &[0, 0xff]));
        }
    }
    frame
}
