//! Writes captures in the format pcapng (IETF draft-ietf-opsawg-pcapng), with only those blocks and options that a
//! capture needs.

use std::{
    collections::HashMap,
    io::{self, Write},
};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const NANOSECONDS: u8 = 9;

const END: u16 = 0;
const COMMENT: u16 = 1;
const APPLICATION: u16 = 4;
const OPERATING_SYSTEM: u16 = 3;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
const PACKET_ID: u16 = 5;
const QUEUE: u16 = 6;
const VERDICT: u16 = 7;
/// The type byte that precedes an XDP action in the option `VERDICT`.
const VERDICT_XDP: u8 = 2;

/// The direction of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Came,
    Left,
}

/// A frame that is written to the capture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) interface: &'a str,
    pub(super) way: Way,
    /// The time of the frame, in nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) bytes: &'a [u8],
    /// The length of the whole frame in bytes.
    pub(super) length: u32,
    pub(super) comment: &'a str,
    /// The id of the packet, which the arriving and the departing frame share.
    pub(super) id: u64,
    pub(super) queue: u32,
    /// The XDP action of the program.
    pub(super) action: u32,
}

pub(super) struct Writer<W> {
    to: W,
    snaplen: u32,
    interfaces: HashMap<(String, Way), u32>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the beginning of a capture file.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) fn new(to: W, snaplen: u32) -> io::Result<Self> {
        let mut this = Self { to, snaplen, interfaces: HashMap::new(), written: 0 };
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_ne_bytes());
        body.extend([1u16, 0].map(u16::to_ne_bytes).as_flattened());
        // The length of the section is not known in advance.
        body.extend(u64::MAX.to_ne_bytes());
        option(&mut body, OPERATING_SYSTEM, b"Linux");
        option(&mut body, APPLICATION, concat!("balancer ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(&mut body, END, &[]);
        this.block(SECTION, body)?;
        Ok(this)
    }

    /// The number of bytes written so far.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let interface = self.interface(packet.interface, packet.way)?;
        let mut body = Vec::with_capacity(packet.bytes.len() + packet.comment.len() + 128);
        let (high, low) = ((packet.time >> 32) as u32, packet.time as u32);
        let words = [interface, high, low, packet.bytes.len() as u32, packet.length];
        body.extend(words.map(u32::to_ne_bytes).as_flattened());
        body.extend(packet.bytes);
        pad(&mut body);
        option(&mut body, COMMENT, packet.comment.as_bytes());
        let direction: u32 = if packet.way == Way::Came { 1 } else { 2 };
        option(&mut body, FLAGS, &direction.to_ne_bytes());
        option(&mut body, PACKET_ID, &packet.id.to_ne_bytes());
        option(&mut body, QUEUE, &packet.queue.to_ne_bytes());
        let mut verdict = vec![VERDICT_XDP];
        verdict.extend(u64::from(packet.action).to_ne_bytes());
        option(&mut body, VERDICT, &verdict);
        option(&mut body, END, &[]);
        self.block(PACKET, body)
    }

    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Returns the number of an interface in the file; at the first use of the interface, writes its description.
    fn interface(&mut self, name: &str, way: Way) -> io::Result<u32> {
        if let Some(&number) = self.interfaces.get(&(name.to_owned(), way)) {
            return Ok(number);
        }
        let mut body = Vec::new();
        body.extend([ETHERNET, 0].map(u16::to_ne_bytes).as_flattened());
        body.extend(self.snaplen.to_ne_bytes());
        let told = format!("{name}@{}", if way == Way::Came { "came" } else { "left" });
        option(&mut body, NAME, told.as_bytes());
        option(&mut body, RESOLUTION, &[NANOSECONDS]);
        option(&mut body, END, &[]);
        self.block(INTERFACE, body)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert((name.to_owned(), way), number);
        Ok(number)
    }

    fn block(&mut self, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
        pad(&mut body);
        let length = body.len() as u32 + 12;
        self.to.write_all([kind, length].map(u32::to_ne_bytes).as_flattened())?;
        self.to.write_all(&body)?;
        self.to.write_all(&length.to_ne_bytes())?;
        self.written += u64::from(length);
        Ok(())
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend([code, value.len() as u16].map(u16::to_ne_bytes).as_flattened());
    body.extend(value);
    pad(body);
}

/// Pads a block, because every field begins at a multiple of 4 bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_pair_is_written_then_each_block_says_its_length_twice_and_both_frames_have_one_id() {
        let mut writer = Writer::new(Vec::new(), 9216).unwrap();
        for (way, bytes) in [(Way::Came, &[1u8; 61][..]), (Way::Left, &[2; 60]), (Way::Came, &[3; 60])] {
            let packet = Packet {
                interface: "eth0",
                way,
                time: 1 << 33 | 7,
                bytes,
                length: 1500,
                comment: "service web",
                id: 3,
                queue: 1,
                action: 3,
            };
            writer.packet(&packet).unwrap();
        }
        assert_eq!(writer.written(), writer.to.len() as u64);
        let mut rest = writer.to.as_slice();
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let length = word(4) as usize;
            assert_eq!((length % 4, word(length - 4) as usize), (0, length));
            kinds.push(word(0));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, INTERFACE, PACKET, PACKET]);
    }
}
