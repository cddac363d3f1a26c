//! The contenders: programs between clients and servers whose costs the benchmark compares. Each contender has its own
//! clients and servers, and its own host between clients and servers, so that contenders do not affect each other.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::{
    classics::{self, Proxy, Rule},
    http_server::Server,
};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    controller::Controller,
    http_client::Request,
    site::{PATIENCE, PORT, Settings, backend_port, start_controller},
    topology::{Family, Shape, Topology},
};
use tempfile::TempDir;

use crate::{nft, server};

/// The number of servers, which are all equal.
const SERVERS: u16 = 4;
/// The distance between the address numbers of two clients. With a distance of 16 between addresses, few clients share
/// a network.
const STRIDE: u16 = 16;
const CLIENTS: u16 = 4_000;
/// The time limit of a connection from the first packet to the last.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The kind of a contender, which is the program between clients and servers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A router without any load balancer: the clients choose servers themselves.
    Direct,
    /// The balancer in the given forwarding mode.
    Balancer(Forwarding),
    /// A proxy that chooses servers by the given rule.
    Classic(Rule),
    /// The kernel's address translation (nftables).
    Nft,
}

/// All kinds except [`Kind::Direct`], which is the reference, in the order of the table.
pub(crate) const OTHERS: [Kind; 5] = [
    Kind::Balancer(Forwarding::Dsr),
    Kind::Balancer(Forwarding::Nat),
    Kind::Nft,
    Kind::Classic(Rule::HaproxyStream),
    Kind::Classic(Rule::NginxStream),
];

impl Kind {
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Direct => "nobody: a router",
            Self::Balancer(Forwarding::Nat) => "balancer `nat`",
            Self::Balancer(_) => "balancer `dsr`",
            Self::Classic(rule) => rule.title(),
            Self::Nft => "nftables DNAT, `jhash ip saddr`",
        }
    }

    /// Returns whether the contender needs programs that may not be installed on the machine.
    pub(crate) const fn may_be_missing(self) -> bool {
        matches!(self, Self::Classic(_) | Self::Nft)
    }

    /// Returns an error if the contender's program is not installed.
    pub(crate) fn ensure_installed(self) -> Result<()> {
        match self {
            Self::Direct | Self::Balancer(_) => Ok(()),
            Self::Classic(rule) => rule.ensure_installed(),
            Self::Nft => nft::ensure_installed(),
        }
    }
}

/// The running program between clients and servers.
enum Middle {
    Kernel,
    Balancer(Controller),
    Proxy(Proxy),
}

/// A running contender of the benchmark. Rust drops the fields in the order of their declarations, which ends the
/// contender.
pub(crate) struct Contender {
    pub(crate) kind: Kind,
    middle: Middle,
    _servers: Vec<Server>,
    pub(crate) topology: Topology,
    _files: TempDir,
}

impl Contender {
    pub(crate) fn start(kind: Kind) -> Result<Self> {
        let forwarding = match kind {
            Kind::Balancer(forwarding) => forwarding,
            Kind::Direct | Kind::Classic(_) | Kind::Nft => Forwarding::Nat,
        };
        let topology = Topology::new(Shape::TwoLegged, forwarding, SERVERS.into())?;
        let port = backend_port(forwarding);
        let servers = topology.backends().iter().map(|host| server::start(host, port)).collect::<Result<_>>()?;
        let files = tempfile::tempdir()?;
        let middle = match kind {
            Kind::Direct => {
                topology.forward(true)?;
                Middle::Kernel
            }
            Kind::Balancer(_) => Middle::Balancer(balancer(&topology, forwarding, &files)?),
            Kind::Classic(rule) => Middle::Proxy(classics::start(&topology, rule, SERVERS, files.path())?),
            Kind::Nft => {
                topology.forward(true)?;
                nft::translate(&topology, SERVERS, port, files.path())?;
                Middle::Kernel
            }
        };
        Ok(Self { kind, middle, _servers: servers, topology, _files: files })
    }

    /// Returns the process between clients and servers, if the contender has such a process.
    pub(crate) fn process(&mut self) -> Result<Option<u32>> {
        match &mut self.middle {
            Middle::Kernel => Ok(None),
            Middle::Balancer(controller) => {
                controller.ensure_running()?;
                Ok(Some(controller.process().pid()))
            }
            Middle::Proxy(proxy) => proxy.pid().context("the proxy has ended").map(Some),
        }
    }

    /// Returns `count` requests; the clients take turns in a fixed order.
    pub(crate) fn requests(&self, count: u32) -> Vec<Request> {
        let clients = (0..CLIENTS).cycle().take(count as usize);
        let request = |number: u16| {
            let source = SocketAddr::new(self.topology.client_address(Family::V4, 1 + number * STRIDE), 0);
            Request { timeout: TIMEOUT, ..Request::new(source, self.target(number)) }
        };
        clients.map(request).collect()
    }

    fn target(&self, client: u16) -> SocketAddr {
        match self.kind {
            Kind::Direct => {
                let server = self.topology.backend_address(Family::V4, client % SERVERS);
                SocketAddr::new(server, backend_port(Forwarding::Nat))
            }
            Kind::Balancer(_) | Kind::Classic(_) | Kind::Nft => SocketAddr::new(self.topology.vip(Family::V4), PORT),
        }
    }
}

fn balancer(topology: &Topology, forwarding: Forwarding, files: &TempDir) -> Result<Controller> {
    let settings = Settings { remember: "3h", ..Settings::new(topology, forwarding, SERVERS) };
    let mut controller = start_controller(topology, &settings, files.path())?;
    let status = controller.wait_for(PATIENCE, "every server being up", |status| {
        status.services.iter().flat_map(|service| &service.backends).all(|backend| backend.state == "up")
    })?;
    ensure!(!status.services.is_empty(), "the balancer has no service");
    Ok(controller)
}
