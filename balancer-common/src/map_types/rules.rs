//! Rules that decide about clients by their address prefix.

use bytemuck::{Pod, Zeroable};

/// The maximum number of rules of all services together.
pub const MAX_RULES: u32 = 65_536;
/// The number of rules that have counters on each CPU; these rules have the lowest indexes of counters. All CPUs share
/// the counters of the other rules.
pub const RULE_COUNTERS: u32 = 4096;

/// The lookup key of a rule, which consists of service and client prefix: the data of a key in a longest-prefix-match
/// trie. The prefix length of the key includes the [`RULE_PREFIX_BASE`] bits before the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// Index of the service; the service's VIP determines the address family.
    pub service: u16,
    /// This field is always zero.
    pub reserved: u16,
    /// The client's address or the prefix of a rule, network order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// The number of bits of a [`RuleKey`] before the address.
pub const RULE_PREFIX_BASE: u32 = 32;
/// The number of bits of a whole [`RuleKey`].
pub const RULE_KEY_BITS: u32 = RULE_PREFIX_BASE + 128;

/// The action of a rule, and the data that the action needs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleRow {
    /// One of the constants `RULE_*`.
    pub action: u16,
    /// [`RULE_PIN`]: the backend's id, or [`NO_BACKEND`](super::NO_BACKEND) while no backend has the name that the rule
    /// gives.
    pub backend: u16,
    /// Index of the rule's counters, below [`MAX_RULES`].
    pub counters: u32,
}

/// `RuleRow::action`: steer clients to one backend as long as this backend takes clients.
pub const RULE_PIN: u16 = 1;
/// `RuleRow::action`: steer each connection separately, by source address and port.
pub const RULE_SPREAD: u16 = 2;
/// `RuleRow::action`: drop the packets.
pub const RULE_DENY: u16 = 3;

/// Counters of one rule on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleStats {
    /// The number of packets that the rule decided about, except fragments without ports and ICMP errors.
    pub packets: u64,
    /// The number of packets steered as if the rule did not exist, because the rule's backend took no clients.
    pub fallbacks: u64,
}

const _: () = {
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<RuleRow>() == 8);
    assert!(MAX_RULES.is_power_of_two() && RULE_COUNTERS.is_power_of_two());
};
