//! Shared parts of the measurements of failures: hosts, a steady load of clients' packets, and a watch on the backends'
//! wire.

pub mod hosts;
pub mod load;
pub mod wire;

use std::time::Duration;

use anyhow::Result;

use balancer_testkit::{metrics::Metrics, namespace::Namespace};

/// How long a scrape may take.
const SCRAPE: Duration = Duration::from_secs(2);

/// Scrapes the metrics of the balancer in a namespace.
///
/// # Errors
/// If the balancer does not answer, or the answer has no metrics.
pub fn scrape(namespace: &Namespace) -> Result<Metrics> {
    Metrics::scrape(namespace, SCRAPE)
}
