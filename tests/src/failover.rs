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
    Metrics::parse(&scrape_text(namespace)?)
}

/// What `/metrics` of the balancer in `namespace` answers.
///
/// # Errors
/// When it does not answer, or not with text.
pub fn scrape_text(namespace: &Namespace) -> Result<String> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let request = Request::new(any, SocketAddr::from(([127, 0, 0, 1], 9660))).path("/metrics");
    let reply = namespace.run_in_thread(|| request.send())??;
    ensure!(reply.status == 200, "/metrics answered {}", reply.status);
    Ok(String::from_utf8(reply.body)?)
}
