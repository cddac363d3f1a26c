//! Tries the servers of a service before the balancer steers the first clients to them.

use anyhow::anyhow;
use balancer_api::client::Client;
use balancer_doctor::{judge::judge_attempts, look::try_service};

use super::Failure;

/// Whether a service's first clients would be served, as far as requests to connect like theirs tell. Without the rights
/// for these requests, or at another machine, the function has nothing to say.
///
/// # Errors
/// Refuses a first step if servers answer this machine and their answers to clients do not come back.
pub(super) async fn check(client: &Client, service: &str, steer: u8, force: bool) -> Result<(), Failure> {
    let Some(socket) = client.socket().filter(|_| !force && steer > 0) else { return Ok(()) };
    let view = client.service(service).await?;
    if view.steer > 0 || !matches!(view.forwarding.as_str(), "nat" | "snat") {
        return Ok(());
    }
    let facts = try_service(client, socket, service).await?;
    let findings = judge_attempts(&facts);
    let Some(finding) = findings.first() else { return Ok(()) };
    Err(Failure::Other(anyhow!(
        "nothing was changed: {} ({}): `balancer doctor {service} --try` names the cure; to steer clients all the \
         same, use --force",
        finding.what,
        finding.seen
    )))
}
