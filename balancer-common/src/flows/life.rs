//! The life of a connection: how each packet changes the state of its flow (decision 30).
//!
//! A sender that is not on the path can forge addresses and ports, but does not know the sequence numbers. A segment of
//! the client therefore counts only if its numbers fit. All other segments are forwarded and change nothing. Segments
//! of the backend count as they are, because the program accepts them only from the backend's side.
//!
//! Sequence numbers are compared modulo 2^32 (RFC 9293, section 3.4).

use bytemuck::{Pod, Zeroable};

use super::{
    ENDS, FLOW_ANSWERED, FLOW_BACKEND_ENDS, FLOW_CLIENT_ENDS, FLOW_DATAGRAMS, FLOW_ESTABLISHED, FLOW_RESET, FLOW_TAKEN,
};

/// The distance from an expected number within which the client's FIN and its first acknowledgement count.
const WINDOW: u32 = 1 << 16;
/// A greater distance between [`Numbers::next`] and the last acknowledgement does not occur in a connection: the
/// largest window has 2^30 bytes.
const LARGEST_WINDOW: u32 = 1 << 30;

/// The sequence numbers of a flow, which tell its segments from forged ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Numbers {
    /// The sequence number that follows the client's segments, as far as they have arrived in order.
    pub next: u32,
    /// Before the backend's answer: the time stamp of the client's SYN, or 0. Until the flow is established: the number
    /// that follows the backend's SYN. While the flow is open: the last acknowledgement number of the backend. After
    /// both ends have closed: the time stamp of the client's FIN, or 0.
    pub other: u32,
}

impl Numbers {
    /// Whether a server that keeps an old connection with the numbers `self` in TIME-WAIT accepts a SYN with the
    /// numbers `opening`, as Linux does: the SYN is newer according to the time stamps (RFC 6191), or if one of the
    /// connections has no time stamps, according to the sequence numbers.
    #[inline(always)]
    #[must_use]
    pub const fn lets_in(self, opening: Self) -> bool {
        let is_ahead = after(opening.next.wrapping_sub(1), self.next);
        if self.other == 0 || opening.other == 0 {
            return is_ahead;
        }
        after(opening.other, self.other) || opening.other == self.other && is_ahead
    }
}

/// The properties of a packet that change its flow's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Whether the client sent the packet; if not, the backend sent it.
    pub by_client: bool,
    /// Whether the packet is a datagram; for a datagram, all other fields except the sender are false or 0.
    pub datagram: bool,
    /// Whether the segment has the flag SYN.
    pub syn: bool,
    /// Whether the segment has the flag FIN.
    pub fin: bool,
    /// Whether the segment has the flag RST.
    pub rst: bool,
    /// Whether the segment has the flag ACK.
    pub ack: bool,
    /// The sequence number.
    pub sequence: u32,
    /// The acknowledgement number.
    pub acknowledgement: u32,
    /// The number of bytes after the TCP header.
    pub length: u32,
    /// The value of the time stamp option of a client's SYN or FIN, or 0 (RFC 7323).
    pub stamp: u32,
}

impl Segment {
    /// The sequence number after the segment's data and its FIN.
    #[inline(always)]
    const fn end(self) -> u32 {
        self.sequence.wrapping_add(self.length).wrapping_add(self.fin as u32)
    }

    /// The numbers of a flow that this segment opens.
    #[inline(always)]
    #[must_use]
    pub const fn opening(self) -> Numbers {
        Numbers { next: self.sequence.wrapping_add(1), other: self.stamp }
    }
}

/// The state of a flow and its sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// `FLOW_*` flags.
    pub state: u8,
    pub numbers: Numbers,
}

#[inline(always)]
const fn after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

impl Life {
    /// The flow that a packet opens.
    #[inline(always)]
    #[must_use]
    pub const fn opened_by(segment: Segment) -> Self {
        let state = if segment.datagram { FLOW_TAKEN | FLOW_DATAGRAMS } else { FLOW_TAKEN };
        Self { state, numbers: segment.opening() }
    }

    /// The flow after a packet.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, segment: Segment) -> Self {
        if segment.datagram {
            self.datagram(segment.by_client)
        } else if segment.by_client {
            self.client(segment)
        } else {
            self.backend(segment)
        }
    }

    #[inline(always)]
    const fn has(self, flags: u8) -> bool {
        self.state & flags == flags
    }

    #[inline(always)]
    const fn with(self, flags: u8) -> Self {
        Self { state: self.state | flags, ..self }
    }

    #[inline(always)]
    const fn without(self, flags: u8) -> Self {
        Self { state: self.state & !flags, ..self }
    }

    #[inline(always)]
    const fn numbered(self, next: u32, other: u32) -> Self {
        Self { numbers: Numbers { next, other }, ..self }
    }

    #[inline(always)]
    const fn datagram(self, by_client: bool) -> Self {
        if !by_client {
            self.with(FLOW_ANSWERED)
        } else if self.has(FLOW_ANSWERED) {
            self.with(FLOW_ESTABLISHED)
        } else {
            self
        }
    }

    #[inline(always)]
    const fn client(self, segment: Segment) -> Self {
        if segment.syn {
            return self.attempt(segment);
        }
        if segment.rst {
            return if self.expects_reset(segment.sequence) { self.with(FLOW_RESET) } else { self };
        }
        if !segment.ack || self.has(ENDS) {
            return self;
        }
        if self.has(FLOW_ESTABLISHED) {
            // After a reset, only the backend can show that the connection goes on.
            return if self.has(FLOW_RESET) { self } else { self.data(segment) };
        }
        // A host that has not received the backend's SYN does not know its number.
        if self.has(FLOW_ANSWERED) && segment.acknowledgement.wrapping_sub(self.numbers.other) < WINDOW {
            let next = self.numbers.next;
            return self.with(FLOW_ESTABLISHED).without(FLOW_RESET).numbered(next, next).data(segment);
        }
        self
    }

    /// The flow after a client's SYN. In a flow that is not open, a SYN is another attempt to open it. In an open one,
    /// the backend decides, and its answer shows the decision.
    #[inline(always)]
    const fn attempt(self, segment: Segment) -> Self {
        let is_open = self.has(FLOW_ESTABLISHED) || self.has(ENDS);
        if is_open || self.has(FLOW_ANSWERED) && !self.has(FLOW_RESET) {
            return self;
        }
        Self { numbers: segment.opening(), ..self.without(FLOW_RESET | FLOW_ANSWERED) }
    }

    /// Whether a client's reset has the sequence number that the backend expects (RFC 5961, section 3.2). A segment
    /// that the backend has not received may follow its last acknowledgement.
    #[inline(always)]
    const fn expects_reset(self, sequence: u32) -> bool {
        let acknowledged = self.has(FLOW_ESTABLISHED) && !self.has(ENDS) && sequence == self.numbers.other;
        acknowledged || sequence == self.numbers.next
    }

    /// The open flow after a client's segment that is neither SYN nor RST.
    #[inline(always)]
    const fn data(self, segment: Segment) -> Self {
        let Numbers { next, other } = self.numbers;
        if self.has(FLOW_CLIENT_ENDS) {
            return self;
        }
        let in_order = segment.sequence == next;
        let ends = segment.fin && (in_order || segment.sequence.wrapping_sub(other) < WINDOW);
        let next = if in_order || ends { segment.end() } else { next };
        if !ends {
            return self.numbered(next, other);
        }
        // The number of the acknowledgement is no longer needed if both ends have closed.
        let other = if self.has(FLOW_BACKEND_ENDS) { segment.stamp } else { other };
        self.with(FLOW_CLIENT_ENDS).numbered(next, other)
    }

    #[inline(always)]
    const fn backend(self, segment: Segment) -> Self {
        if segment.rst {
            return self.with(FLOW_RESET);
        }
        if segment.syn {
            return self.answer(segment);
        }
        if self.has(ENDS) {
            return self;
        }
        if self.has(FLOW_ESTABLISHED) {
            return self.without(FLOW_RESET).acknowledged(segment);
        }
        // A backend sends data only after it has accepted the client's acknowledgement.
        if self.has(FLOW_ANSWERED) && segment.length > 0 {
            return self.with(FLOW_ESTABLISHED).without(FLOW_RESET).acknowledged(segment);
        }
        self
    }

    /// The flow after the backend's SYN, unless the backend repeats the SYN of an open flow.
    #[inline(always)]
    const fn answer(self, segment: Segment) -> Self {
        let repeats = self.has(FLOW_ESTABLISHED) && segment.acknowledgement == self.numbers.other;
        if !segment.ack || repeats && !self.has(FLOW_RESET) {
            return self;
        }
        let begun = self.without(FLOW_ESTABLISHED | ENDS | FLOW_RESET).with(FLOW_ANSWERED);
        begun.numbered(segment.acknowledgement, segment.sequence.wrapping_add(1))
    }

    /// The open flow after a backend's segment that is neither SYN nor RST.
    #[inline(always)]
    const fn acknowledged(self, segment: Segment) -> Self {
        if !segment.ack {
            return self;
        }
        let acknowledged = segment.acknowledgement;
        let ahead = self.numbers.next.wrapping_sub(acknowledged);
        let next = if ahead > LARGEST_WINDOW { acknowledged } else { self.numbers.next };
        let heard = self.numbered(next, acknowledged);
        if !segment.fin {
            return heard;
        }
        if !self.has(FLOW_CLIENT_ENDS) {
            return heard.with(FLOW_BACKEND_ENDS);
        }
        // If the backend has received the client's FIN before it sends its own, it does not wait (RFC 9293, section
        // 3.6). Otherwise both have closed at the same time, and the time stamp of the client's FIN is no longer known.
        let closed = heard.with(FLOW_BACKEND_ENDS).numbered(next, 0);
        if acknowledged == next { closed.without(FLOW_ESTABLISHED) } else { closed }
    }
}

#[cfg(test)]
mod tests;
