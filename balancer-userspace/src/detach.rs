//! The command `balancer detach`.

use std::io::{self, Write as _};

use anyhow::anyhow;
use balancer_config::words::counted;
use balancer_dataplane::{AllPins, Pins, privileges};
use balancer_netlink::machine;

use super::Failure;

/// Detaches programs that have outlived their controllers, and removes their maps, in this network namespace or, if
/// `all`, in all network namespaces.
pub(super) fn run(all: bool) -> Result<(), Failure> {
    privileges::check()?;
    let AllPins { free, held } = Pins::all(all)?;
    let (free, elsewhere): (Vec<_>, Vec<_>) = free.into_iter().partition(|pins| all || pins.here());
    let (mut interfaces, directories) = (0, free.len());
    for mut pins in free {
        match pins.notes() {
            // For other network namespaces, nothing is restored: this process cannot reach their settings and
            // addresses, or the namespace no longer exists.
            Ok(notes) if pins.here() => machine::put_back(notes.unwrap_or_default().host),
            Ok(_) => {}
            // Another version has pinned these maps, and only that version knows which settings to restore.
            Err(error) => writeln!(io::stderr(), "balancer: {error:#}")?,
        }
        interfaces += pins.detach()?;
    }
    if let Some((_, notes)) = held.iter().find(|(here, _)| all || *here) {
        return Err(anyhow!(
            "a controller (process {}) is running with pinned maps: stop it first, then detach",
            notes.process
        )
        .into());
    }
    let mut out = io::stdout().lock();
    if directories > 0 {
        writeln!(out, "detached from {}, pinned maps removed", counted(interfaces, "interface"))?;
        return Ok(());
    }
    let whereabouts = if all { "on this machine" } else { "in this network namespace" };
    write!(out, "nothing to detach: no controller left anything pinned {whereabouts}")?;
    if !elsewhere.is_empty() {
        let others = counted(elsewhere.len(), "controller");
        write!(out, " ({others} did in other network namespaces: `balancer detach --all` removes that)")?;
    }
    writeln!(out)?;
    Ok(())
}
