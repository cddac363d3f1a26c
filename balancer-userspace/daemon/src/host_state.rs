//! The wanted state of this machine.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use balancer_common::{features::Features, map_types::Forwarding};
use balancer_config::{
    config::{OnExit, Remote, XdpMode},
    listeners::{Family, PortRange},
};
use balancer_control::controller::Controller;
use balancer_listeners::outlets::MetricsSettings;

/// The wanted state of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedMachine {
    /// The interfaces to which the program should be attached.
    pub interfaces: Vec<String>,
    /// The XDP mode in which the program should be attached.
    pub mode: XdpMode,
    /// The features that the program needs.
    pub features: Features,
    /// Whether services translate IPv4 packets.
    pub v4: bool,
    /// Whether services translate IPv6 packets.
    pub v6: bool,
    /// The port ranges that the kernel must not assign to its own sockets.
    pub reserved: BTreeSet<(u16, u16)>,
    /// The VIPs of this machine, each with an optional interface name; the balancer adds a VIP without a name to the
    /// first interface, and announces it.
    pub vips: BTreeSet<(Option<String>, IpAddr)>,
    /// The addresses of which services take every port.
    pub whole: BTreeSet<IpAddr>,
    /// The names of the interfaces that may get VIPs, in addition to the first interface.
    pub vip_interfaces: BTreeSet<String>,
    /// Whether the helper removes all VIPs, however the process ends, unless the data path outlives the process. The
    /// helper always removes VIPs on named interfaces.
    pub guarded: bool,
    /// Whether the data path outlives the process.
    pub keep: bool,
    /// The settings of the metrics listener.
    pub metrics: MetricsSettings,
    /// The group that may use the control socket in addition to root.
    pub group: Option<String>,
    /// The group that may use the read-only socket; `None` if there should be no read-only socket.
    pub readers: Option<String>,
    /// The control listener for other machines; `None` if the listener should be off.
    pub remote: Option<Remote>,
    /// The audit file; `None` if the balancer should write no audit file.
    pub audit: Option<PathBuf>,
}

impl WantedMachine {
    /// Returns the state of the machine that a controller needs; `ready` says whether the balancer is fit for clients.
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
            features: controller.features(),
            v4: translates(Family::V4),
            v6: translates(Family::V6),
            reserved: controller.snat_ports(),
            vips: controller.assigned_vips(ready),
            whole: whole(controller),
            vip_interfaces: controller.vip_interfaces(),
            guarded: settings.fleet.is_some(),
            keep: settings.on_exit == OnExit::Keep,
            metrics: MetricsSettings { at: settings.metrics_listen, page: settings.metrics_page },
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
