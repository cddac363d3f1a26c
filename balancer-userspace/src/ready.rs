//! The command `balancer ready`.

use std::time::Duration;

use balancer_api::client::Client;
use balancer_control::readiness::{Fitness, Readiness};
use tokio::time::timeout;

use super::{Failure, output};

/// The time limit for the controller's answer. The limit is short, because the caller may have to send clients to
/// another balancer.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Treat a degraded balancer as not ready
    #[arg(long)]
    strict: bool,
    /// Treat a withdrawn balancer as not ready: for VRRP and other programs that own the VIPs
    #[arg(long)]
    announced: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let readiness = match timeout(PATIENCE, client.ready(args.announced)).await {
        Ok(Ok(readiness)) => readiness,
        Ok(Err(error)) => not_ready(error.to_string()),
        Err(_) => not_ready(format!("the controller gives no answer within {}", humantime::format_duration(PATIENCE))),
    };
    if args.json {
        output::print_json(&readiness)?;
    } else {
        output::print(&format!("{}\n", line(&readiness)))?;
    }
    match readiness.state {
        Fitness::Ready => Ok(()),
        Fitness::Degraded if !args.strict => Ok(()),
        Fitness::Degraded | Fitness::NotReady => Err(Failure::Told),
    }
}

fn not_ready(reason: String) -> Readiness {
    Readiness { state: Fitness::NotReady, reasons: vec![reason] }
}

/// Formats the readiness as `ready`, or as `degraded: etcd is out of reach: changes are refused`.
pub(super) fn line(readiness: &Readiness) -> String {
    let word = readiness.state.word().replace('_', " ");
    if readiness.reasons.is_empty() { word } else { format!("{word}: {}", readiness.reasons.join("; ")) }
}
