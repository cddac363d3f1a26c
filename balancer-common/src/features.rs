//! The features of the kernel program that a configuration uses.
//!
//! The controller loads the program with a constant of these bits. The verifier knows the constant, and neither
//! verifies nor keeps the code of features whose bit is missing.

use core::ops::{BitOr, BitOrAssign};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

impl Features {
    /// No feature: a program that passes all frames to the host.
    pub const NONE: Self = Self(0);
    /// Services with IPv4 listeners, or with backends that have IPv4 addresses.
    pub const V4: Self = Self(1);
    /// Services with IPv6 listeners, or with backends that have IPv6 addresses.
    pub const V6: Self = Self(1 << 1);
    /// Services with [`Forwarding::Dsr`](crate::map_types::Forwarding::Dsr).
    pub const DSR: Self = Self(1 << 2);
    /// Services with [`Forwarding::Nat`](crate::map_types::Forwarding::Nat).
    pub const NAT: Self = Self(1 << 3);
    /// Services with [`Forwarding::Snat`](crate::map_types::Forwarding::Snat).
    pub const SNAT: Self = Self(1 << 4);
    /// `snat` services with a backend of the other address family.
    pub const CROSS: Self = Self(1 << 5);
    /// Services with [`Forwarding::Ipip`](crate::map_types::Forwarding::Ipip) or
    /// [`Forwarding::Gue`](crate::map_types::Forwarding::Gue).
    pub const TUNNEL: Self = Self(1 << 6);
    /// Services that remember clients.
    pub const MEMORY: Self = Self(1 << 7);
    /// Services with QUIC listeners.
    pub const QUIC: Self = Self(1 << 8);
    /// Services that reject packets for which no backend is available.
    pub const REJECT: Self = Self(1 << 9);
    /// Services with rules for client prefixes, denied prefixes included.
    pub const RULES: Self = Self(1 << 10);
    /// Services that share their clients with the host.
    pub const SHARE: Self = Self(1 << 11);
    /// Backends that are this machine.
    pub const LOCAL: Self = Self(1 << 12);
    /// Every feature, those of later versions included.
    pub const ALL: Self = Self(u64::MAX);

    pub const NAMES: [(&'static str, Self); 13] = [
        ("v4", Self::V4),
        ("v6", Self::V6),
        ("dsr", Self::DSR),
        ("nat", Self::NAT),
        ("snat", Self::SNAT),
        ("cross", Self::CROSS),
        ("tunnel", Self::TUNNEL),
        ("memory", Self::MEMORY),
        ("quic", Self::QUIC),
        ("reject", Self::REJECT),
        ("rules", Self::RULES),
        ("share", Self::SHARE),
        ("local", Self::LOCAL),
    ];

    /// The feature of this name; `all` names all features.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if name == "all" {
            return Some(Self::ALL);
        }
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, feature)| feature)
    }

    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of the set, as the program's constant has them.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The features of this set that are not in `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether the set contains all of `others`.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The features of either set.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether the set contains any of `others`.
    #[must_use]
    #[inline(always)]
    pub const fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, others: Self) {
        self.0 |= others.0;
    }
}
