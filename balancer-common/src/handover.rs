//! Frames that the kernel sends because the XDP program cannot send them. For such a frame, the XDP program rewrites
//! the packet as usual, writes a mark in place of the MAC addresses, and passes the frame to the kernel. A second
//! program, at the kernel's ingress, recognizes this mark and has the kernel send the frame.

use crate::map_types::Mac;

/// The recipient of a frame that the kernel sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The recipient is the client: the kernel finds and resolves the next hop.
    Client,
    /// The recipient is the backend with this id; the backend's row contains the interface and the link-layer
    /// addresses.
    Backend(u16),
}

const CLIENT: u8 = 1;
const BACKEND: u8 = 2;
/// The first byte of the mark, which makes the destination MAC a locally administered address that no device has.
const LOCAL: u8 = 2;
/// A bit that is always set in the key of the mark. This bit makes the source MAC a group address, which no frame has
/// as its source.
const GROUP: u64 = 1 << 40;

impl Handed {
    /// The part of the mark that replaces the destination MAC.
    #[inline(always)]
    #[must_use]
    pub const fn destination(self) -> Mac {
        match self {
            Self::Client => [LOCAL, CLIENT, 0, 0, 0, 0],
            Self::Backend(id) => {
                let [high, low] = id.to_be_bytes();
                [LOCAL, BACKEND, high, low, 0, 0]
            }
        }
    }

    /// Reads the recipient from a destination MAC that may be a mark.
    #[inline(always)]
    #[must_use]
    pub const fn of(destination: Mac) -> Option<Self> {
        let [_, kind, high, low, _, _] = destination;
        match kind {
            CLIENT => Some(Self::Client),
            BACKEND => Some(Self::Backend(u16::from_be_bytes([high, low]))),
            _ => None,
        }
    }
}

/// The part of the mark that replaces the source MAC. This address contains a key that only the two kernel programs
/// know, so no frame from outside can carry the address.
#[inline(always)]
#[must_use]
pub const fn source(key: u64) -> Mac {
    let [_, _, a, b, c, d, e, f] = (key | GROUP).to_be_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_types::LAST_BACKEND;

    #[test]
    fn when_a_frame_is_marked_then_the_mark_can_be_read_back() {
        for handed in [Handed::Client, Handed::Backend(1), Handed::Backend(0x1234), Handed::Backend(LAST_BACKEND)] {
            assert_eq!(Handed::of(handed.destination()), Some(handed));
            assert_eq!(handed.destination()[0] & 3, 2, "locally administered, of no group");
        }
        assert_eq!(Handed::of([2, 0, 0, 0, 0, 1]), None);
        assert_eq!(source(0x0011_2233_4455), [1, 0x11, 0x22, 0x33, 0x44, 0x55]);
    }
}
