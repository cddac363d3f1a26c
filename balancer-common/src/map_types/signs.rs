//! Signs of failing backends in packets: see [`crate::signs`].

use bytemuck::{Pod, Zeroable};

use crate::signs::{Refusals, Waiting};

/// The signs of a backend. CPUs write them without a lock: if one CPU overwrites another's value, the next packet
/// repeats it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Signs {
    /// [`Waiting::since`].
    pub waiting_since: u64,
    /// [`Waiting::begun`].
    pub begun: u32,
    /// [`Waiting::usual`].
    pub usual: u32,
    /// [`Refusals::since`].
    pub refused_since: u64,
    /// [`Refusals::passed`].
    pub passed: u64,
    /// Time at which the controller was last told about this backend, coarse ns.
    pub told: u64,
    /// Number of resets withheld from clients.
    pub withheld: u64,
    /// Time in ns for which resets are withheld; 0: never. The controller writes this field.
    pub withhold: u64,
    /// 1: report signs to the controller. The controller writes this field.
    pub tells: u32,
    /// Zero.
    pub reserved: u32,
}

impl Signs {
    /// The handshakes that wait for an answer.
    #[inline(always)]
    #[must_use]
    pub const fn waiting(&self) -> Waiting {
        Waiting { since: self.waiting_since, begun: self.begun, usual: self.usual }
    }

    /// The state of refused connections, which determines how resets are treated.
    #[inline(always)]
    #[must_use]
    pub const fn refusals(&self) -> Refusals {
        Refusals { since: self.refused_since, passed: self.passed }
    }
}

/// A sign that is sent to the controller, which then has the backend checked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sign {
    /// The backend's id.
    pub backend: u16,
    /// A [`crate::verdict::Signal`].
    pub signal: u16,
}

/// The program reports a backend to the controller at most once in this many ns.
pub const SIGN_PERIOD: u64 = 1_000_000_000;

/// [`super::Control::unsampled`] if no handshake is watched: every client port has one of these bits set.
pub const WATCH_NO_HANDSHAKE: u32 = 0xffff;

const _: () = assert!(size_of::<Signs>() == 64);
