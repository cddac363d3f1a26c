//! Handles VRRP, which keepalived continues to run after the conversion.

use crate::{notes::Conversion, tree::Directive};

const STAYS: &str = "keepalived goes on moving these addresses: take the virtual servers out of its file, and let \
                     `track_script` ask `balancer ready --announced`; or give each service `assign_vip` and the balancers a `[fleet]`";

/// Adds a note about a `vrrp_instance` and the addresses that VRRP moves.
pub(super) fn instance(conversion: &mut Conversion, directive: &Directive) {
    let blocks = directive
        .children()
        .iter()
        .filter(|one| ["virtual_ipaddress", "virtual_ipaddress_excluded"].contains(&one.name()));
    let addresses: Vec<&str> = blocks
        .flat_map(Directive::children)
        .filter_map(|one| one.words.iter().find(|word| is_address(word)))
        .map(|word| word.split('/').next().unwrap_or(word))
        .collect();
    let moved = if addresses.is_empty() { String::new() } else { format!(" ({})", addresses.join(", ")) };
    conversion.needs_you(&directive.place, format!("{}{moved}", directive.text()), STAYS);
}

/// Whether the word has the form `ADDRESS` or `ADDRESS/LENGTH`.
fn is_address(word: &str) -> bool {
    word.split('/').next().is_some_and(|address| address.parse::<std::net::IpAddr>().is_ok())
}
