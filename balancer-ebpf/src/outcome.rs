//! What becomes of a packet, and what is to be done next with it.

use balancer_common::verdict::{DecisionIndex, DropIndex, DropReason};

use crate::steer::Choice;

/// The decision about one packet; `main.rs` turns it into an XDP action and its counters. What it needs besides is in the
/// [`Step`], so that the branches here and there become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To the kernel, unchanged.
    Pass,
    /// Out of the interface it came in by: forwarded, or turned into an answer to its sender.
    Tx,
    /// Forwarded, out of another interface: see [`Step::egress`].
    Redirect,
    /// To the kernel, rewritten and marked, which sends it: see [`crate::handover`].
    Handed,
    /// Dropped: see [`Step::reason`].
    Drop,
    /// The program failed.
    Abort,
}

/// What follows the IP header of a packet on its way to a backend or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// A TCP or UDP header.
    Header,
    /// A later fragment's bytes.
    Nothing,
}

/// Whether a packet's sender may be told about it: not if it is an ICMP error itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answerable {
    Yes,
    No,
}

/// What is to be done next with a packet: nothing more, or another step. Everything that few packets need is a step of its
/// own, a global function: the verifier looks at it once, and its stack does not add to the others'.
///
/// A number, as that is all a global function can return: kind in bits 0–7, a flag in bit 8, a [`DecisionIndex`] in bits
/// 16–23, a value in bits 32–63, of which a backend takes the lower half and its port the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(pub(crate) u64);

/// What a [`Step`] does; up to [`Kind::Drop`], nothing comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Pass = 1,
    Tx,
    Redirect,
    Handed,
    Drop,
    Rare,
    Icmp,
    Consult,
    ToBackend,
    ErrorToBackend,
    ToClient,
    ErrorToClient,
    Encapsulate,
    Reject,
    TooBig,
    Unreachable,
}

const FLAG: u64 = 1 << 8;

impl Step {
    /// To the kernel, unchanged.
    pub(crate) const PASS: Self = Self(Kind::Pass as u64);
    /// Out of the interface it came in by.
    pub(crate) const TX: Self = Self(Kind::Tx as u64);
    /// To the kernel, which sends it.
    pub(crate) const HANDED: Self = Self(Kind::Handed as u64);
    /// See [`crate::rare`].
    pub(crate) const RARE: Self = Self(Kind::Rare as u64);
    /// See [`crate::icmp`].
    pub(crate) const ICMP: Self = Self(Kind::Icmp as u64);

    /// To the backend that the memory says: see [`crate::memory`].
    pub(crate) const CONSULT: Self = Self(Kind::Consult as u64);

    #[inline(always)]
    const fn with_value(kind: Kind, value: u32) -> Self {
        Self(kind as u64 | (value as u64) << 32)
    }

    /// Dropped.
    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self::with_value(Kind::Drop, reason as u32)
    }

    /// Out of `egress`, for a packet that came in by `ingress`.
    #[inline(always)]
    pub(crate) const fn send(ingress: u32, egress: u32) -> Self {
        if ingress == egress { Self::TX } else { Self::with_value(Kind::Redirect, egress) }
    }

    /// To a backend that is still to be chosen: see [`Step::with_choice`]. `port` is the backend's for the packet's listener
    /// (network order); 0: the packet's own.
    #[inline(always)]
    pub(crate) const fn to_backend(carries: Carries, port: u16) -> Self {
        let flag = match carries {
            Carries::Header => 0,
            Carries::Nothing => FLAG,
        };
        Self(Kind::ToBackend as u64 | flag | (port as u64) << 48)
    }

    /// An ICMP error, to a backend that is still to be chosen; `port` is that of the packet that the error is about.
    #[inline(always)]
    pub(crate) const fn error_to_backend(port: u16) -> Self {
        Self(Kind::ErrorToBackend as u64 | (port as u64) << 48)
    }

    /// The port of [`Step::to_backend`] and [`Step::error_to_backend`].
    #[inline(always)]
    pub(crate) const fn port(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The step with the backend that was chosen.
    #[inline(always)]
    pub(crate) const fn with_choice(self, choice: Choice) -> Self {
        Self(self.0 | (choice.decision.0 as u64) << 16 | (choice.backend as u64) << 32)
    }

    /// An ICMP error about a packet to a `nat` backend, to the client; `port` is the one that the return table has that
    /// under.
    #[inline(always)]
    pub(crate) const fn error_to_client(port: u16) -> Self {
        Self::with_value(Kind::ErrorToClient, port as u32)
    }

    /// To the client of the `nat` backend that it comes from; `port` and `protocol` are those that the return table has
    /// that under.
    #[inline(always)]
    pub(crate) const fn to_client(port: u16, protocol: u8, carries: Carries) -> Self {
        let step = Self::with_value(Kind::ToClient, port as u32 | (protocol as u32) << 16);
        match carries {
            Carries::Header => step,
            Carries::Nothing => Self(step.0 | FLAG),
        }
    }

    /// To a backend in an outer packet.
    #[inline(always)]
    pub(crate) const fn encapsulate(choice: Choice, answerable: Answerable) -> Self {
        let flag = match answerable {
            Answerable::Yes => 0,
            Answerable::No => FLAG,
        };
        Self(Kind::Encapsulate as u64 | flag).with_choice(choice)
    }

    /// Back to its sender, who is told that nothing longer than `mtu` fits.
    #[inline(always)]
    pub(crate) const fn too_big(mtu: u32) -> Self {
        Self::with_value(Kind::TooBig, mtu)
    }

    /// Back to its sender, who is told that nobody takes it; dropped for this reason where that cannot be said.
    #[inline(always)]
    pub(crate) const fn reject(reason: DropReason) -> Self {
        Self::with_value(Kind::Reject, reason as u32)
    }

    /// The same by an ICMP error.
    #[inline(always)]
    pub(crate) const fn unreachable(reason: DropIndex) -> Self {
        Self::with_value(Kind::Unreachable, reason.0 as u32)
    }

    /// Dropped for the reason of [`Step::reject`] or [`Step::unreachable`].
    #[inline(always)]
    pub(crate) const fn given_up(self) -> Self {
        Self::with_value(Kind::Drop, self.reason().0 as u32)
    }

    #[inline(always)]
    pub(crate) const fn is(self, kind: Kind) -> bool {
        self.0 & 0xff == kind as u64
    }

    /// Whether no step is left.
    #[inline(always)]
    pub(crate) const fn is_last(self) -> bool {
        self.0 & 0xff <= Kind::Drop as u64
    }

    /// Port and protocol of [`Step::to_client`], the MTU of [`Step::too_big`].
    #[inline(always)]
    pub(crate) const fn value(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What a packet of [`Step::to_backend`] or [`Step::to_client`] carries.
    #[inline(always)]
    pub(crate) const fn carries(self) -> Carries {
        if self.0 & FLAG == 0 { Carries::Header } else { Carries::Nothing }
    }

    /// Whose sender the packet of [`Step::encapsulate`] has.
    #[inline(always)]
    pub(crate) const fn answerable(self) -> Answerable {
        if self.0 & FLAG == 0 { Answerable::Yes } else { Answerable::No }
    }

    /// The backend of a step that has one.
    #[inline(always)]
    pub(crate) const fn choice(self) -> Choice {
        Choice { backend: self.value() as u16, decision: DecisionIndex((self.0 >> 16) as u8) }
    }

    /// What has become of the packet, when no step is left.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(self) -> Outcome {
        if self.is(Kind::Tx) {
            Outcome::Tx
        } else if self.is(Kind::Pass) {
            Outcome::Pass
        } else if self.is(Kind::Redirect) {
            Outcome::Redirect
        } else if self.is(Kind::Handed) {
            Outcome::Handed
        } else if self.is(Kind::Drop) {
            Outcome::Drop
        } else {
            Outcome::Abort
        }
    }

    /// What would have to come next, for whoever looks into why it did not.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> u32 {
        self.0 as u8 as u32
    }

    /// The interface of [`Outcome::Redirect`].
    #[inline(always)]
    #[must_use]
    pub const fn egress(self) -> u32 {
        self.value()
    }

    /// The reason of [`Outcome::Drop`], `Step::reject` and `Step::unreachable`.
    #[inline(always)]
    #[must_use]
    pub const fn reason(self) -> DropIndex {
        DropIndex(self.value() as u8)
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::map_types::LAST_BACKEND;

    use super::*;

    #[test]
    fn outcomes_survive_their_word() {
        assert_eq!(Step::PASS.outcome(), Outcome::Pass);
        assert_eq!(Step::send(3, 3).outcome(), Outcome::Tx);
        assert!(Step::HANDED.is_last() && Step::HANDED.outcome() == Outcome::Handed);
        let redirected = Step::send(3, u32::MAX);
        assert_eq!((redirected.outcome(), redirected.egress()), (Outcome::Redirect, u32::MAX));
        assert!(Step::TX.is_last() && Step::drop(DropReason::Malformed).is_last() && !Step::RARE.is_last());
        assert_eq!(Step::RARE.outcome(), Outcome::Abort);
        for &reason in DropReason::ALL {
            let dropped = Step::drop(reason);
            assert_eq!((dropped.outcome(), dropped.reason()), (Outcome::Drop, DropIndex::from(reason)));
        }
    }

    #[test]
    fn steps_survive_their_word() {
        for carries in [Carries::Header, Carries::Nothing] {
            let step = Step::to_client(u16::MAX, 17, carries);
            assert!(step.is(Kind::ToClient));
            assert_eq!((step.value(), step.carries()), (17 << 16 | u32::from(u16::MAX), carries));
        }
        for carries in [Carries::Header, Carries::Nothing] {
            let choice = Choice { backend: LAST_BACKEND, decision: DecisionIndex(5) };
            let step = Step::to_backend(carries, u16::MAX).with_choice(choice);
            assert!(step.is(Kind::ToBackend));
            assert_eq!((step.choice(), step.carries(), step.port()), (choice, carries, u16::MAX));
        }
        for answerable in [Answerable::Yes, Answerable::No] {
            let choice = Choice { backend: LAST_BACKEND, decision: DecisionIndex(5) };
            let step = Step::encapsulate(choice, answerable);
            assert!(step.is(Kind::Encapsulate));
            assert_eq!((step.choice(), step.answerable()), (choice, answerable));
        }
        assert_eq!(Step::too_big(u32::MAX).value(), u32::MAX);
        let rejected = Step::reject(DropReason::Denied);
        assert!(rejected.is(Kind::Reject) && !rejected.is_last());
        assert_eq!(rejected.given_up(), Step::drop(DropReason::Denied));
        let unreachable = Step::unreachable(rejected.reason());
        assert!(unreachable.is(Kind::Unreachable) && !unreachable.is_last());
        assert_eq!(unreachable.given_up(), Step::drop(DropReason::Denied));
    }
}
