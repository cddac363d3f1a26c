//! Undoes the balancer's changes to this machine.

use std::{collections::BTreeSet, thread};

use anyhow::Context as _;
use balancer_dataplane::{
    HostChanges,
    offload::{self, Offload},
};
use tracing::{info, warn};

use super::{plan, switches::Switches, vips};

/// Undoes every change that the balancer has made to this machine. If another program has changed a setting later, the
/// function leaves that setting unchanged.
pub fn put_back(changes: HostChanges) {
    if !changes.vips_on.is_empty() {
        remove_vips(changes.vips_on);
    }
    let mut switches = Switches::new(changes.forwarding);
    switches.settle();
    drop(switches);
    changes.receive_offload.into_iter().for_each(|name| offload::switch_on(Offload::Merging, name));
    changes.tag_stripping.into_iter().for_each(|name| offload::switch_on(Offload::TagStripping, name));
}

/// Removes the VIPs on the interfaces `on` in a separate thread, which waits for the kernel.
pub(super) fn remove_vips(on: BTreeSet<u32>) {
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
        Ok(Err(error)) => warn!("cannot remove the VIPs: {error:#}"),
        Err(_) => warn!("cannot remove the VIPs"),
    }
}
