//! Findings about interfaces by which replies of `nat` and `snat` backends arrive without reaching the program.

use std::collections::{BTreeMap, BTreeSet};

use super::{general, name_interface, some};
use crate::{
    facts::{Controller, Facts},
    finding::{Finding, Kind},
};

/// The interfaces by which replies for the examined services arrive without reaching the program, each with the
/// backends that send them.
pub(super) fn interfaces(facts: &Facts, controller: &Controller) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in controller.after.services.iter().filter(|of| facts.vips.iter().any(|vip| vip.service == of.name)) {
        for backend in &service.backends {
            if let Some(interface) = &backend.unattached {
                found.entry(interface.clone()).or_default().insert(format!("{}/{}", service.name, backend.name));
            }
        }
    }
    found
}

pub(super) fn finding(interface: &str, backends: &BTreeSet<String>, controller: &Controller) -> Finding {
    let attached: Vec<&str> = controller.after.interfaces.iter().map(|view| view.name.as_str()).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    general(
        Kind::NotAttached,
        format!(
            "replies of {} come in by {interface}, which lacks the program: clients get none of them",
            some(&names)
        ),
        format!(
            "the routes to these backends lead out by {interface}, and `balancer status` shows the program on {}",
            attached.join(", ")
        ),
        name_interface(interface, controller),
    )
}
