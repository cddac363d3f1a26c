//! Tests of `balancer doctor`. On a healthy site, the doctor finds nothing. If the test creates a fault, the doctor
//! names only the cause of that fault.

mod alike;
mod attempts;
mod fault;
mod faults;
mod healthy;
mod release;
mod unattached;
mod without;

use balancer_testkit::site::Site;

/// The kinds of the doctor's findings.
pub(crate) fn found(site: &Site) -> Vec<String> {
    fault::examine(site, &[]).1.findings.into_iter().map(|finding| finding.kind).collect()
}
