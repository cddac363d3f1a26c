//! Rules for client prefixes.

use bytemuck::{Pod, Zeroable};

/// Rules of all services together, at most.
pub const MAX_RULES: u32 = 65_536;
/// Rules that each CPU counts for itself: those with the first rows of counters. CPUs share the counters of the others.
pub const RULE_COUNTERS: u32 = 4096;

/// What a rule is found by: service and client prefix. The data of a key of a longest-prefix-match trie, whose length
/// counts from [`RULE_PREFIX_BASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// Index of the service, whose VIP says which family the address is of.
    pub service: u16,
    /// Zero.
    pub reserved: u16,
    /// The client's address or the prefix, network order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// Bits of a [`RuleKey`] before its address.
pub const RULE_PREFIX_BASE: u32 = 32;
/// Bits of a whole [`RuleKey`].
pub const RULE_KEY_BITS: u32 = RULE_PREFIX_BASE + 128;

/// What a rule says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleRow {
    /// `RULE_*`.
    pub action: u16,
    /// [`RULE_PIN`]: the backend's id, or [`NO_BACKEND`](super::NO_BACKEND) while there is none of that name.
    pub backend: u16,
    /// Its counters, below [`MAX_RULES`].
    pub counters: u32,
}

/// `RuleRow::action`: to one backend, while that takes clients.
pub const RULE_PIN: u16 = 1;
/// `RuleRow::action`: each connection for itself, by its source port as well.
pub const RULE_SPREAD: u16 = 2;
/// `RuleRow::action`: dropped.
pub const RULE_DENY: u16 = 3;

/// Per-CPU counters of one rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleStats {
    /// Packets that the rule decided about, but for fragments without ports and ICMP errors.
    pub packets: u64,
    /// Packets steered as without the rule, as the backend that it names took no clients.
    pub fallbacks: u64,
}

const _: () = {
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<RuleRow>() == 8);
    assert!(MAX_RULES.is_power_of_two() && RULE_COUNTERS.is_power_of_two());
};
