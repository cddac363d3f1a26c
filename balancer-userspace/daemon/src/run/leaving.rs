//! A graceful end: the balancer first removes its VIPs, and continues to steer clients until routers send these clients
//! to other balancers.

use std::time::Duration;

use balancer_config::config::LINGER;
use balancer_control::readiness::Stage;
use balancer_dataplane::KernelDataplane;
use balancer_runtime::{service_manager::ServiceManager, shutdown::ShutdownSignal};
use tokio::time::Instant;

use crate::{host::Host, owner::Owner};

/// The maximum time for removing the VIPs.
const VIPS_GO: Duration = Duration::from_secs(3);

/// A balancer that continues to steer clients after a signal to end.
#[derive(Debug)]
pub(super) struct Leaving {
    /// The signal that has requested the end.
    pub(super) signal: ShutdownSignal,
    linger: Duration,
    /// The time at which the balancer ends.
    pub(super) until: Instant,
    vips_gone: bool,
}

impl Leaving {
    /// Starts the graceful end; returns `None` if no other balancer could take over.
    pub(super) fn begin(
        signal: ShutdownSignal,
        owner: &mut Owner<KernelDataplane>,
        host: &Host,
        manager: &ServiceManager,
    ) -> Option<Self> {
        if !owner.gives_way() {
            return None;
        }
        let linger = owner.settings().fleet.as_ref().map_or(LINGER, |fleet| fleet.linger);
        let shown = humantime::format_duration(linger);
        owner.events().note(&format!("{signal}: its VIPs are removed; steering continues for {shown}"));
        manager.lingers(linger + VIPS_GO);
        owner.set_stage(Stage::Leaving);
        let mut this = Self { signal, linger, until: Instant::now() + VIPS_GO + linger, vips_gone: false };
        if host.wanted().vips.is_empty() {
            this.look(owner);
        }
        Some(this)
    }

    /// Checks whether the VIPs have been removed, because the remaining time begins at that moment.
    pub(super) fn look(&mut self, owner: &Owner<KernelDataplane>) {
        if !self.vips_gone && owner.has_no_vips() {
            self.vips_gone = true;
            self.until = Instant::now() + self.linger;
        }
    }
}
