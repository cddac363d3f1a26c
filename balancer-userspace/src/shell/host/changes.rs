//! What the balancer changed on its machine beyond its own maps and programs, for whoever has to put it back.

use std::{collections::BTreeSet, thread};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    plan,
    switches::{self, Switches},
    vips,
};
use crate::shell::dataplane::offload;

/// Changes to be put back when the balancer is taken off its interfaces. It is bounded by the number of interfaces,
/// because it must fit into the notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChanges {
    /// Switches of the kernel's forwarding, in the order made.
    pub forwarding: Vec<switches::Change>,
    /// Interfaces on which addresses with the balancer's mark may be.
    #[serde(default)]
    pub vips_on: BTreeSet<u32>,
    /// Interfaces whose generic receive offload was switched off.
    pub receive_offload: Vec<String>,
}

impl HostChanges {
    /// Puts everything back. What somebody else has changed since stays.
    pub fn put_back(self) {
        if !self.vips_on.is_empty() {
            remove_vips(self.vips_on);
        }
        let mut switches = Switches::new(self.forwarding);
        switches.settle();
        drop(switches);
        self.receive_offload.into_iter().for_each(offload::switch_on);
    }
}

/// In a thread that waits for the kernel.
fn remove_vips(on: BTreeSet<u32>) {
    let work = move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
            let connection = tokio::spawn(connection);
            for place in plan::addresses(&BTreeSet::new(), &vips::found(&handle).await?, &on).remove {
                match vips::remove(&handle, place).await {
                    Ok(()) => info!("{} removed", place.address),
                    Err(error) => warn!("{error:#}"),
                }
            }
            connection.abort();
            Ok(())
        })
    };
    match thread::spawn(work).join() {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("VIPs stay assigned: {error:#}"),
        Err(_) => warn!("VIPs stay assigned"),
    }
}
