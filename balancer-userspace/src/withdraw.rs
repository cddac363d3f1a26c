//! The commands `balancer withdraw` and `balancer announce`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use balancer_api::client::Client;
use tokio::time::sleep;

use super::{Failure, absence, output};

/// The interval at which the command queries the VIPs.
const POLL: Duration = Duration::from_millis(100);
/// The number of polls after which the command reports the VIPs for which it waits.
const LONG: u32 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Return only after the machine has lost the VIPs
    #[arg(long)]
    wait: bool,
}

pub(super) async fn withdraw(client: &Client, args: &Args) -> Result<(), Failure> {
    let changed = client.set_withdrawn(true).await?;
    output::print(&format!("{}\n", changed.message))?;
    if args.wait { gone(client).await } else { Ok(()) }
}

/// Waits until no VIP is left on the machine; the controller may restart during the wait.
async fn gone(client: &Client) -> Result<(), Failure> {
    let mut looks = 0;
    loop {
        let status = absence::answered(Some(absence::RESTART), async || client.status().await).await?;
        if !status.withdrawn {
            return Err(anyhow!("the VIPs were announced again while their end was waited for").into());
        }
        if status.vips.is_empty() {
            return Ok(output::print("no VIP is left\n")?);
        }
        looks += 1;
        if looks == LONG {
            let left: Vec<String> =
                status.vips.iter().map(|vip| format!("{} on {}", vip.address, vip.interface)).collect();
            writeln!(io::stderr(), "balancer: waiting for {} to go", left.join(", "))?;
        }
        sleep(POLL).await;
    }
}

pub(super) async fn announce(client: &Client) -> Result<(), Failure> {
    let changed = client.set_withdrawn(false).await?;
    Ok(output::print(&format!("{}\n", changed.message))?)
}
