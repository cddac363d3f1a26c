//! Rules for client prefixes: the longest prefix of a service that contains a client's address decides.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{
        Array,
        lpm_trie::{Key, LpmTrie},
    },
};
use balancer_common::{
    client::{self, HashKey},
    features::Features,
    map_types::{
        MAX_RULES, NO_BACKEND, RULE_COUNTERS, RULE_DENY, RULE_KEY_BITS, RULE_PIN, RULE_SPREAD, RuleKey, RuleRow,
        RuleStats, SERVICE_LOCAL, SERVICE_RULES, SERVICE_SHARED, ServiceRow,
    },
    rule_filter,
};

use crate::{
    backends, cpu_rows, features,
    scratch::{self, Row},
};

/// Spare rows for replacing the row of a rule: older kernels need a spare row even if the number of rules stays the
/// same.
const SPARE: u32 = 1;

#[map]
static RULES: LpmTrie<RuleKey, RuleRow> = LpmTrie::with_max_entries(MAX_RULES + SPARE, 0);

/// [`RULE_COUNTERS`] rows for each CPU; the controller chooses the number when it loads the program.
#[map]
static RULE_STATS: Array<RuleStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// A shared row for each rule, for the CPUs and rules that have no row in the map above.
#[map]
static SHARED_RULES: Array<RuleStats> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The result of the rules for a packet: `RULE_*` or 0 in bits 0–15, a backend in bits 16–31.
#[derive(Clone, Copy)]
pub(crate) struct Ruled(u64);

impl Ruled {
    pub(crate) const NONE: Self = Self(0);
    /// The rule that matches pins clients to a backend that takes no clients. Such a rule has no effect, except that
    /// its clients may be recorded at any backend.
    const FALLS: Self = Self(u16::MAX as u64);

    /// The backend to which the rule pins clients, if this backend takes clients.
    #[inline(always)]
    pub(crate) const fn pin(self) -> Option<u16> {
        if self.0 as u16 == RULE_PIN { Some((self.0 >> 16) as u16) } else { None }
    }

    /// Whether a rule may have pinned the client until now, so that the program must read the client's entry.
    #[inline(always)]
    pub(crate) const fn falls(self) -> bool {
        self.0 == Self::FALLS.0
    }

    /// Whether a rule spreads the client's connections.
    #[inline(always)]
    pub(crate) const fn spreads(self) -> bool {
        self.0 as u16 == RULE_SPREAD
    }

    /// Whether no rule matches.
    #[inline(always)]
    pub(crate) const fn is_none(self) -> bool {
        self.0 == Self::NONE.0
    }

    /// Whether a rule denies the packet.
    #[inline(always)]
    pub(crate) const fn denies(self) -> bool {
        self.0 as u16 == RULE_DENY
    }
}

/// The filter that saves the rule lookup for most clients of services with rules: see [`balancer_common::rule_filter`].
#[map]
static RULE_FILTER: Array<u64> = Array::with_max_entries(rule_filter::WORDS, BPF_F_MMAPABLE);

/// Whether a rule of `service` may match `client`; `false` means that certainly no rule matches. The result is always
/// `true` if the service shares its clients with the host or if this machine is a backend of the service.
#[inline(always)]
pub(crate) fn may_concern(service: &ServiceRow, family: u8, client: &[u32; 4]) -> bool {
    let concerned = Features::RULES.and(Features::SHARE).and(Features::LOCAL);
    if !features::any(concerned) || service.flags & (SERVICE_RULES | SERVICE_SHARED | SERVICE_LOCAL) == 0 {
        return false;
    }
    if service.flags & (SERVICE_SHARED | SERVICE_LOCAL) != 0 {
        return true;
    }
    let is_set = |(word, bit): (u32, u64)| {
        // SAFETY: the pointer points to a map value, which the controller replaces in one store.
        RULE_FILTER.get_ptr(word).is_none_or(|word| unsafe { word.read_volatile() } & bit != 0)
    };
    is_set(rule_filter::bit(rule_filter::place(service.id, family, client))) || is_set(rule_filter::every(service.id))
}

/// Looks up the rules of `service` for `client`. Counts the packet for the rule, unless the packet is an ICMP error
/// that only quotes the client.
#[inline(always)]
pub(crate) fn find(service: &ServiceRow, client: &[u32; 4], peeks: bool) -> Ruled {
    if !features::uses(Features::RULES) || service.flags & SERVICE_RULES == 0 {
        return Ruled::NONE;
    }
    let [low, high] = words(client);
    Ruled(balancer_rule(u64::from(service.id) | u64::from(peeks) << 16, low, high))
}

/// The hash of a client's connection. `masked` is the client's address, masked to the service's prefix.
#[inline(always)]
pub(crate) fn connection_hash(service: &ServiceRow, masked: [u64; 2], port: u16) -> u64 {
    let HashKey { k0, k1 } = service.hash.key();
    balancer_connection_hash(k0, k1, masked[0], masked[1], u64::from(port))
}

/// An address as two words.
#[inline(always)]
pub(crate) const fn words(address: &[u32; 4]) -> [u64; 2] {
    [address[0] as u64 | (address[1] as u64) << 32, address[2] as u64 | (address[3] as u64) << 32]
}

/// The layout of `Key<RuleKey>` with the alignment that the verifier requires for 64-bit words.
#[repr(C, align(8))]
struct Lookup {
    bits: u32,
    key: RuleKey,
}

/// This is a global function, so that only services with rules need time for it, and the verifier checks the function
/// only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_rule(service: u64, low: u64, high: u64) -> u64 {
    let address = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    let Some(lookup) = scratch::place::<Lookup>(Row::Rule) else { return Ruled::NONE.0 };
    // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path. Both
    // key types have the same layout.
    let key = unsafe {
        (*lookup).bits = RULE_KEY_BITS;
        (*lookup).key.service = service as u16;
        (*lookup).key.address = address;
        &*lookup.cast::<Key<RuleKey>>()
    };
    let Some(row) = RULES.get(key) else { return Ruled::NONE.0 };
    let said = word(row);
    let backend = (said >> 16) as u16;
    let falls = said as u16 == RULE_PIN && !(backend != NO_BACKEND && backends::takes_clients(backend));
    if service >> 16 == 0 {
        // SAFETY: a Rust reference is always valid for reads.
        count(unsafe { (&raw const row.counters).read_volatile() }, falls);
    }
    if falls { Ruled::FALLS.0 } else { word(row) }
}

/// Counts a packet that a rule decides about; `falls` says that the rule has no effect on the packet.
#[inline(always)]
fn count(row: u32, falls: bool) {
    let counter = |stats: *mut RuleStats| {
        // SAFETY: the field belongs to a map value.
        unsafe { if falls { &raw mut (*stats).fallbacks } else { &raw mut (*stats).packets } }
    };
    if let Some(stats) = cpu_rows::own(&RULE_STATS, RULE_COUNTERS, row) {
        // SAFETY: the row belongs to this CPU; programs on one CPU do not interrupt each other in the receive path.
        unsafe { *counter(stats) += 1 };
    } else if let Some(stats) = SHARED_RULES.get_ptr_mut(row) {
        // SAFETY: the pointer points to a map value.
        unsafe { cpu_rows::add_shared(counter(stats), 1) };
    }
}

/// The action of a rule and its backend, as in [`Ruled`]. The program reads action and backend from the row each time
/// because the stack is small, and the action of a row never changes in place.
#[inline(always)]
fn word(row: &RuleRow) -> u64 {
    // SAFETY: a Rust reference is always valid for reads.
    let (action, backend) =
        unsafe { ((&raw const row.action).read_volatile(), (&raw const row.backend).read_volatile()) };
    u64::from(action) | u64::from(backend) << 16
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_connection_hash(k0: u64, k1: u64, low: u64, high: u64, port: u64) -> u64 {
    client::hash_connection(HashKey { k0, k1 }, [low, high], port as u16)
}
