//! The features that the configuration uses.
//!
//! The verifier knows the constant in this module: it follows no branch to the code of a feature that is off, and
//! removes this code. A packet that needs a feature that is off, which a correct controller never causes, passes to the
//! kernel or is dropped.

use aya_ebpf::Global;
use balancer_common::{features::Features, map_types::FAMILY_V4};

/// The bits of the features; the controller sets them when it loads the program.
#[unsafe(no_mangle)]
static FEATURES: Global<u64> = Global::new(Features::ALL.bits());

/// Whether the configuration uses all of these features.
#[inline(always)]
pub(crate) fn uses(features: Features) -> bool {
    Features::from_bits(FEATURES.load()).has(features)
}

/// Whether the configuration uses an address family.
#[inline(always)]
pub(crate) fn family(family: u8) -> bool {
    // If both families are in use, the verifier knows the result without the family.
    uses(Features::V4.and(Features::V6)) || if family == FAMILY_V4 { uses(Features::V4) } else { uses(Features::V6) }
}

/// Whether the configuration uses any of these features.
#[inline(always)]
pub(crate) fn any(features: Features) -> bool {
    Features::from_bits(FEATURES.load()).has_any(features)
}
