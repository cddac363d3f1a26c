//! The kernel program's reports about rare and unexpected packets, logged at the level debug.

use anyhow::Context as _;
use balancer_dataplane::KernelDataplane;
use balancer_runtime::supervisor::Supervisor;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::{Level, enabled};

/// Whether the log level includes the kernel program's reports. If it does not, the balancer loads the kernel program
/// without the reports.
pub(super) fn wanted() -> bool {
    enabled!(target: "balancer_ebpf", Level::DEBUG)
}

/// Starts a task that copies the reports to the log.
pub(super) fn read(dataplane: &mut KernelDataplane, supervisor: &Supervisor) -> anyhow::Result<()> {
    let log = dataplane.take_log(log::logger())?;
    // SAFETY: the log owns its descriptor, which stays open and unchanged as long as the log exists.
    let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) };
    let mut log = log.context("watching the kernel program's log")?;
    supervisor.spawn::<(), _>("the reading of the kernel program's log", async move {
        loop {
            let mut ready = log.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
