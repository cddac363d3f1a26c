//! `balancer detach`.

use std::io::{self, Write as _};

use anyhow::anyhow;
use balancer_daemon::host;
use balancer_dataplane::{Pins, privileges};
use balancer_model::words::counted;

use super::Failure;

/// Takes programs that outlived their controllers off the interfaces of this network namespace, and removes their maps.
pub(super) fn run() -> Result<(), Failure> {
    privileges::check()?;
    let (free, held) = Pins::all()?;
    let mut interfaces = 0;
    let directories = free.len();
    for mut pins in free {
        match pins.notes() {
            Ok(notes) => host::put_back(notes.unwrap_or_default().host),
            // Of another version: whoever wrote them is the only one to know what to put back.
            Err(error) => writeln!(io::stderr(), "balancer: {error:#}")?,
        }
        interfaces += pins.detach()?;
    }
    if let Some(notes) = held.first() {
        return Err(anyhow!(
            "a controller (process {}) is running with pinned maps: stop it first, then detach",
            notes.process
        )
        .into());
    }
    let mut out = io::stdout().lock();
    if directories == 0 {
        writeln!(out, "nothing to detach: no controller left anything pinned in this network namespace")?;
    } else {
        writeln!(out, "detached from {}, pinned maps removed", counted(interfaces, "interface"))?;
    }
    Ok(())
}
