//! Signs in packets that a backend may have failed: see [`crate::signs`].

use bytemuck::{Pod, Zeroable};

use crate::signs::{Refusals, Waiting};

/// The signs that a backend may have failed. CPUs write the signs without a lock: if one CPU overwrites another CPU's
/// value, the next packet repeats that value.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Signs {
    /// The value of [`Waiting::since`].
    pub waiting_since: u64,
    /// The value of [`Waiting::begun`].
    pub begun: u32,
    /// The value of [`Waiting::usual`].
    pub usual: u32,
    /// The value of [`Refusals::since`].
    pub refused_since: u64,
    /// The value of [`Refusals::passed`].
    pub passed: u64,
    /// The time of the last report about this backend to the controller, in nanoseconds of the coarse clock.
    pub told: u64,
    /// The number of resets withheld from clients.
    pub withheld: u64,
    /// The time in ns for which the program withholds resets; 0: never. The controller writes this field.
    pub withhold: u64,
    /// 1: the program reports signs to the controller. The controller writes this field.
    pub tells: u32,
    /// The number of watched handshakes that clients have continued; it wraps around.
    pub completed: u32,
}

impl Signs {
    /// The state of handshakes that wait for the backend's answer.
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

/// A sign that the program sends to the controller, so that the controller checks the backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sign {
    /// The id of the backend.
    pub backend: u16,
    /// A [`crate::verdict::Signal`].
    pub signal: u16,
}

/// The program reports a sign about a backend at most once in this many ns.
pub const SIGN_PERIOD: u64 = 1_000_000_000;

/// The value of [`super::Control::unsampled`] if the program watches no handshake: every client port has one of these
/// bits set.
pub const WATCH_NO_HANDSHAKE: u32 = 0xffff;

const _: () = assert!(size_of::<Signs>() == 64);
