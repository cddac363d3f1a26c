//! The mixture of frames that a scene receives.

use fastrand::Rng;

use super::{dress::bytes, frames::Source, icmp, once_in, one_of};

impl Source<'_> {
    /// Returns the next frame.
    pub(super) fn frame(&mut self, rng: &mut Rng) -> Vec<u8> {
        if !self.pending.is_empty() && rng.bool() {
            // The source returns fragments mostly in order.
            let at = if once_in(rng, 4) { rng.usize(..self.pending.len()) } else { 0 };
            if let Some(frame) = self.pending.remove(at) {
                return padded(rng, frame.bytes());
            }
        }
        let frame = match rng.u32(..100) {
            0..8 => {
                self.fragmented(rng);
                return self.frame(rng);
            }
            8..50 => self.to_service(rng),
            50..62 => self.reply(rng),
            62..70 => icmp::error_to_vip(rng, self),
            70..75 => icmp::error_to_client(rng, self),
            75..81 => icmp::echo(rng, self),
            81..83 => icmp::other(rng, self),
            83..97 => self.past(rng),
            _ => return noise(rng),
        };
        padded(rng, frame.bytes())
    }
}

/// Sometimes makes the destination a group MAC address, or appends bytes after the packet.
fn padded(rng: &mut Rng, mut frame: Vec<u8>) -> Vec<u8> {
    if once_in(rng, 100) {
        frame[0] |= 1;
    }
    if once_in(rng, 8) {
        let padding = rng.usize(..50);
        frame.extend(bytes(rng, padding));
    }
    frame
}

/// Returns a frame that contains no IP packet.
fn noise(rng: &mut Rng) -> Vec<u8> {
    let length = rng.usize(14..80);
    let mut frame = bytes(rng, length);
    let kinds = [[0x08, 0x06], [0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8], [0x88, 0xcc]];
    frame[12..14].copy_from_slice(&one_of(rng, &kinds));
    frame
}
