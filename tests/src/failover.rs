//! What measurements of failures have in common: hosts, a steady load of clients' packets, and what crosses the backends'
//! wire.

pub mod hosts;
pub mod load;
pub mod wire;

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::{http_client::Request, metrics::Metrics, namespace::Namespace};

/// What the balancer in a namespace counts.
///
/// # Errors
/// When it does not answer, or says something else than metrics.
pub fn scrape(namespace: &Namespace) -> Result<Metrics> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))).path("/metrics");
    let reply = namespace.run_in_thread(|| request.send())??;
    ensure!(reply.status == 200, "/metrics answered {}", reply.status);
    Metrics::parse(&String::from_utf8(reply.body)?)
}
