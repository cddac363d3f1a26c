//! Frames handed over: what the XDP program cannot send itself, the kernel sends for it. The program rewrites the packet
//! as ever, but instead of link-layer addresses it writes a mark, and passes the frame. A second program, where the kernel
//! takes frames in, knows the mark and has the kernel send the frame.

use crate::map_types::Mac;

/// Whom a frame is handed over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The client: its next hop is the kernel's to find, and to ask for.
    Client,
    /// The backend with this id: its row has interface and link-layer addresses.
    Backend(u16),
}

const CLIENT: u8 = 1;
const BACKEND: u8 = 2;
/// The first byte of an address that is nobody's: locally administered.
const LOCAL: u8 = 2;
/// Set in the key: no frame comes from a group address.
const GROUP: u64 = 1 << 40;

impl Handed {
    /// What stands for it instead of the destination.
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

    /// What a destination says.
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

/// What stands instead of the source: a number that only this pair of programs knows, so that no frame from outside is
/// taken for one of theirs.
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
    fn marks_survive_their_addresses() {
        for handed in [Handed::Client, Handed::Backend(1), Handed::Backend(0x1234), Handed::Backend(LAST_BACKEND)] {
            assert_eq!(Handed::of(handed.destination()), Some(handed));
            assert_eq!(handed.destination()[0] & 3, 2, "locally administered, of no group");
        }
        assert_eq!(Handed::of([2, 0, 0, 0, 0, 1]), None);
        assert_eq!(source(0x0011_2233_4455), [1, 0x11, 0x22, 0x33, 0x44, 0x55]);
    }
}
