//! Rules for client prefixes.

use bytemuck::{Pod, Zeroable};

/// The maximum number of rules of all services together.
pub const MAX_RULES: u32 = 65_536;
/// Number of rules with counters on each CPU: those with the lowest counter rows. CPUs share the counters of the
/// others.
pub const RULE_COUNTERS: u32 = 4096;

/// The lookup key of a rule, service and client prefix: the data of a key in a longest-prefix-match trie, whose length
/// counts from [`RULE_PREFIX_BASE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// Index of the service; its VIP determines the address family.
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

/// The action of a rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleRow {
    /// `RULE_*`.
    pub action: u16,
    /// [`RULE_PIN`]: the backend's id, or [`NO_BACKEND`](super::NO_BACKEND) while no backend has the rule's name.
    pub backend: u16,
    /// Index of the rule's counters, below [`MAX_RULES`].
    pub counters: u32,
}

/// `RuleRow::action`: steer clients to one backend as long as it takes clients.
pub const RULE_PIN: u16 = 1;
/// `RuleRow::action`: steer each connection separately, by source address and port.
pub const RULE_SPREAD: u16 = 2;
/// `RuleRow::action`: drop the packets.
pub const RULE_DENY: u16 = 3;

/// Per-CPU counters of one rule.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleStats {
    /// Packets that the rule decided about, except fragments without ports and ICMP errors.
    pub packets: u64,
    /// Packets steered as if the rule did not exist, because its backend took no clients.
    pub fallbacks: u64,
}

const _: () = {
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<RuleRow>() == 8);
    assert!(MAX_RULES.is_power_of_two() && RULE_COUNTERS.is_power_of_two());
};
