//! Tests of `balancer doctor`: a healthy site has no finding, and for a seeded fault it names only the cause.

mod fault;
mod faults;
mod healthy;
mod without;

use balancer_testkit::site::Site;

/// The kinds of the doctor's findings.
pub(crate) fn found(site: &Site) -> Vec<String> {
    fault::examine(site, &[]).1.findings.into_iter().map(|finding| finding.kind).collect()
}
