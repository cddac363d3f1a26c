//! What packets say of backends: see [`crate::signs`].

use bytemuck::{Pod, Zeroable};

use crate::signs::{Refusals, Waiting};

/// A backend's signs. CPUs write it without a lock: what one of them overwrites, the next packet says again.
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
    /// When the controller was last told of this backend, coarse ns.
    pub told: u64,
    /// Resets that were withheld.
    pub withheld: u64,
    /// ns for which resets are withheld, 0: they are not. Written by the controller.
    pub withhold: u64,
    /// 1: the controller is told. Written by the controller.
    pub tells: u32,
    /// Zero.
    pub reserved: u32,
}

impl Signs {
    /// The handshakes that wait.
    #[inline(always)]
    #[must_use]
    pub const fn waiting(&self) -> Waiting {
        Waiting { since: self.waiting_since, begun: self.begun, usual: self.usual }
    }

    /// What becomes of resets.
    #[inline(always)]
    #[must_use]
    pub const fn refusals(&self) -> Refusals {
        Refusals { since: self.refused_since, passed: self.passed }
    }
}

/// A sign on its way to the controller, which has that backend checked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sign {
    /// The backend's id.
    pub backend: u16,
    /// A [`crate::verdict::Signal`].
    pub signal: u16,
}

/// ns in which the controller is told of a backend once.
pub const SIGN_PERIOD: u64 = 1_000_000_000;

/// [`super::Control::unsampled`] where no handshake is watched: no client's port has all of these bits clear.
pub const WATCH_NO_HANDSHAKE: u32 = 0xffff;

const _: () = assert!(size_of::<Signs>() == 64);
