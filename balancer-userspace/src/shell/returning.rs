//! Attached interfaces that go away (a driver loaded anew, a VLAN or bond made anew) and come back under another index.

use std::{collections::HashMap, time::Duration};

use nix::net::if_::{if_indextoname, if_nametoindex};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    dataplane::{Dataplane as _, KernelDataplane},
    events::Events,
    forwarding::IpForwarding,
    interfaces::{self, Interface},
};
use crate::config::model::XdpMode;

/// How often the kernel is asked.
const PERIOD: Duration = Duration::from_secs(1);

/// The interfaces to stay attached to.
pub(super) struct Returning {
    names: Vec<String>,
    mode: XdpMode,
    /// Families of the addresses that are translated: IPv4, IPv6.
    translates: (bool, bool),
    ticks: Interval,
    /// What stood in the way of attaching, told once.
    told: HashMap<String, String>,
}

impl Returning {
    /// `names`: what is attached to, in `mode`.
    #[must_use]
    pub(super) fn new(names: Vec<String>, mode: XdpMode, translates: (bool, bool)) -> Self {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { names, mode, translates, ticks, told: HashMap::new() }
    }

    /// Waits until it is time to [look](Self::look).
    pub(super) async fn due(&mut self) {
        self.ticks.tick().await;
    }

    /// Lets go of interfaces that are gone, and attaches to those that are back: gives these.
    pub(super) async fn look(
        &mut self,
        dataplane: &mut KernelDataplane,
        forwarding: &mut IpForwarding,
        events: &Events,
    ) -> Vec<Interface> {
        // nix gives an empty name for an index that nobody has.
        for gone in dataplane.let_go(|ifindex| if_indextoname(ifindex).is_ok_and(|name| name.is_empty())) {
            events.warn(&format!("interface {gone} is gone: what comes in by it is not steered until it is back"));
        }
        let mut back = Vec::new();
        for name in &self.names {
            let attached = dataplane.attached().iter().any(|attached| attached.name == *name);
            if attached || if_nametoindex(name.as_str()).is_err() {
                continue;
            }
            match attach(name, self.mode, self.translates, dataplane, forwarding).await {
                Ok((interface, mode)) => {
                    self.told.remove(name);
                    events.note(&format!("interface {name} is back: attached to it in {mode} mode"));
                    back.push(interface);
                }
                Err(error) => {
                    let error = format!("interface {name} is back, but not steered: {error:#}");
                    if self.told.get(name) != Some(&error) {
                        events.warn(&error);
                        self.told.insert(name.clone(), error);
                    }
                }
            }
        }
        back
    }
}

async fn attach(
    name: &str,
    mode: XdpMode,
    (v4, v6): (bool, bool),
    dataplane: &mut KernelDataplane,
    forwarding: &mut IpForwarding,
) -> anyhow::Result<(Interface, &'static str)> {
    let mut interfaces = interfaces::resolve(&[name.to_owned()]).await?;
    let interface = interfaces.remove(0);
    forwarding.ensure_anew(&interface, v4, v6)?;
    let mode = dataplane.attach(name, interface.ifindex, mode)?.mode();
    Ok((interface, mode))
}
