//! The code that measurements of failures share: hosts, a steady load of clients' packets, and an observer of packets
//! at the backends.

pub mod hosts;
pub mod load;
pub mod wire;

use std::time::Duration;

use anyhow::Result;

use balancer_testkit::{metrics::Metrics, namespace::Namespace};

/// The time limit of a scrape of the metrics.
const SCRAPE: Duration = Duration::from_secs(2);

/// Scrapes the metrics of the balancer in a namespace.
///
/// # Errors
/// Fails if the balancer does not answer, or the answer has no metrics.
pub fn scrape(namespace: &Namespace) -> Result<Metrics> {
    Metrics::scrape(namespace, SCRAPE)
}
