//! The state that this machine is to have, and the one that it has.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use balancer_common::map_types::Forwarding;
use balancer_core::controller::Controller;
use balancer_dataplane::Attachment;
use balancer_model::{
    config::{OnExit, Remote, XdpMode},
    listeners::{Family, PortRange},
};

/// The state that this machine is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where the program is to be.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub mode: XdpMode,
    /// Whether IPv4 packets are translated.
    pub v4: bool,
    /// Whether IPv6 packets are.
    pub v6: bool,
    /// Ranges of ports that the kernel is not to give to its own sockets.
    pub reserved: BTreeSet<(u16, u16)>,
    /// The VIPs that this machine is to have, with the names of their interfaces; `None`: the first, where they are
    /// announced.
    pub vips: BTreeSet<(Option<String>, IpAddr)>,
    /// Addresses of which services take every port.
    pub whole: BTreeSet<IpAddr>,
    /// The names of interfaces that VIPs may come to, beside the first.
    pub vip_interfaces: BTreeSet<String>,
    /// Whether all its VIPs are to go, however the process ends, unless the data path outlives it. Those on
    /// interfaces that are named are in any case.
    pub guarded: bool,
    /// Whether the data path is to outlive the process.
    pub keep: bool,
    /// Where metrics are.
    pub metrics: Listen,
    /// The group that may use the control socket besides root.
    pub group: Option<String>,
    /// The group that may use the socket that only reads; `None`: there is none.
    pub readers: Option<String>,
    /// The control listener for other machines; `None`: there is none.
    pub remote: Option<Remote>,
    /// The audit file; `None`: there is none.
    pub audit: Option<PathBuf>,
}

impl Wanted {
    /// Returns the state that a controller needs, which is `ready` for clients or not.
    #[must_use]
    pub fn by(controller: &Controller, ready: bool) -> Self {
        let settings = controller.settings();
        let translates = |family: Family| {
            let mut services = controller.services().iter();
            services.any(|service| {
                matches!(service.forwarding(), Forwarding::Nat | Forwarding::Snat) && service.family() == family
            })
        };
        Self {
            interfaces: controller.interfaces().to_vec(),
            mode: settings.xdp_mode,
            v4: translates(Family::V4),
            v6: translates(Family::V6),
            reserved: controller.snat_ports(),
            vips: controller.assigned_vips(ready),
            whole: whole(controller),
            vip_interfaces: controller.vip_interfaces(),
            guarded: settings.fleet.is_some(),
            keep: settings.on_exit == OnExit::Keep,
            metrics: Listen { at: settings.metrics_listen, page: settings.metrics_page },
            group: settings.control.group.clone(),
            readers: settings.control.readers.clone(),
            remote: settings.control.remote.clone(),
            audit: settings.control.audit.clone(),
        }
    }
}

fn whole(controller: &Controller) -> BTreeSet<IpAddr> {
    let listeners = controller.services().iter().flat_map(|service| service.listeners());
    listeners.filter(|(at, _)| at.ports == PortRange::EVERY).map(|(at, _)| at.address).collect()
}

/// Where metrics are served, and whether with a page for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `None`: nowhere.
    pub at: Option<SocketAddr>,
    /// The page at `/`.
    pub page: bool,
}

/// The state that this machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Where the program is.
    pub attached: Vec<Attachment>,
    /// VIPs that a balancer has added, with the names of their interfaces.
    pub vips: BTreeSet<(IpAddr, String)>,
    /// The obstacles to the state that is wanted, a sentence each.
    pub troubles: Vec<String>,
}
