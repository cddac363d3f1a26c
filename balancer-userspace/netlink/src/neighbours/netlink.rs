//! Queries to the kernel's routing and neighbour tables.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use balancer_common::map_types::Mac;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use rtnetlink::{Error, Handle};
use tokio::task::AbortHandle;

use super::resolve::{Neighbour, NeighbourKey, NoRoute, Route};
use crate::interfaces::{self, Link};

/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum time for listing all routes: some machines have a million routes.
const LISTING: Duration = Duration::from_secs(10);
/// The maximum number of gateways; most machines have only a few gateways.
const MAX_GATEWAYS: usize = 256;

/// A netlink connection for requests; the kernel answers requests in the order of their arrival.
pub(super) struct Netlink {
    handle: Handle,
    connection: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    pub(super) fn connect() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        Ok(Self { handle, connection: tokio::spawn(connection).abort_handle() })
    }

    pub(super) async fn links(&self) -> anyhow::Result<Vec<Link>> {
        interfaces::links(&self.handle).await
    }

    pub(super) async fn neighbours(&self) -> anyhow::Result<Vec<(NeighbourKey, Neighbour)>> {
        let dump = self
            .handle
            .neighbours()
            .get()
            .execute()
            .try_filter_map(async |message| Ok(neighbour(&message)))
            .try_collect();
        tokio::time::timeout(TIMEOUT, dump)
            .await
            .context("listing the neighbours: no answer from the kernel")?
            .context("listing the neighbours")
    }

    /// The route that the kernel would choose for `address`.
    pub(super) async fn route(&self, address: IpAddr) -> anyhow::Result<Result<Route, NoRoute>> {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let mut answers = pin!(self.handle.route().get(message).execute());
        let answer = tokio::time::timeout(TIMEOUT, answers.next())
            .await
            .with_context(|| format!("looking up the route to {address}: no answer from the kernel"))?;
        match answer {
            Some(Ok(message)) => Ok(route(&message).ok_or_else(|| NoRoute::Other("no egress interface".to_owned()))),
            Some(Err(Error::NetlinkError(error))) => Ok(Err(no_route(&error.to_io()))),
            Some(Err(error)) => Err(error).with_context(|| format!("looking up the route to {address}")),
            None => bail!("looking up the route to {address}: the netlink socket was closed"),
        }
    }

    /// The gateways of this machine's routes.
    pub(super) async fn gateways(&self) -> anyhow::Result<BTreeSet<NeighbourKey>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let mut routes = pin!(self.handle.route().get(message).execute());
            let listing = async {
                while let Some(route) = routes.try_next().await? {
                    if found.len() < MAX_GATEWAYS {
                        found.extend(gateways(&route));
                    }
                }
                Ok::<_, Error>(())
            };
            tokio::time::timeout(LISTING, listing)
                .await
                .context("listing the routes: the kernel took too long")?
                .context("listing the routes")?;
        }
        Ok(found)
    }

    /// Makes the kernel resolve a neighbour as if a packet for the neighbour were waiting (`ip neigh … use`). Callers
    /// must not call this function for a permanent entry, because the kernel would replace it by an ordinary entry.
    pub(super) async fn ask(&self, key: NeighbourKey) -> anyhow::Result<()> {
        let request = self
            .handle
            .neighbours()
            .add(key.ifindex, key.address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute();
        tokio::time::timeout(TIMEOUT, request)
            .await
            .with_context(|| format!("asking for neighbour {}: no answer from the kernel", key.address))?
            .with_context(|| format!("asking for neighbour {}", key.address))
    }
}

fn no_route(error: &io::Error) -> NoRoute {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH) => NoRoute::Missing,
        Some(libc::EHOSTUNREACH) => NoRoute::Unreachable,
        Some(libc::EACCES) => NoRoute::Prohibited,
        Some(libc::EINVAL) => NoRoute::Blackhole,
        _ => NoRoute::Other(error.to_string()),
    }
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let Way { ifindex, gateway, source, mtu } = way(&message.attributes);
    Some(Route { kind: message.header.kind, ifindex: ifindex?, gateway, source, mtu })
}

#[derive(Default)]
struct Way {
    ifindex: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

fn way(attributes: &[RouteAttribute]) -> Way {
    let mut way = Way::default();
    for attribute in attributes {
        if let RouteAttribute::Oif(index) = attribute {
            way.ifindex = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            way.gateway = route_address(address);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            way.source = route_address(address);
        } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
            way.gateway = Some(IpAddr::V6(*address));
        } else if let RouteAttribute::Via(RouteVia::Inet(address)) = attribute {
            way.gateway = Some(IpAddr::V4(*address));
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            way.mtu = metrics.iter().find_map(mtu);
        }
    }
    way
}

/// The interface and the gateway of a route with a single next hop.
pub(super) fn gateway(attributes: &[RouteAttribute]) -> Option<(u32, IpAddr)> {
    let Way { ifindex, gateway, .. } = way(attributes);
    ifindex.zip(gateway)
}

/// The MTU of a route. While the kernel remembers a router's refusal of larger packets, the result is the path's MTU.
fn mtu(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu).filter(|&mtu| mtu > 0) } else { None }
}

/// The next hops that packets on this route may use.
pub(super) fn gateways(message: &RouteMessage) -> Vec<NeighbourKey> {
    if message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let one = |attributes: &[RouteAttribute], ifindex: Option<u32>| {
        let found = way(attributes);
        Some(NeighbourKey { ifindex: found.ifindex.or(ifindex)?, address: found.gateway? })
    };
    let several = message
        .attributes
        .iter()
        .flat_map(|attribute| if let RouteAttribute::MultiPath(hops) = attribute { hops.as_slice() } else { &[] });
    let several = several.filter_map(|hop| one(&hop.attributes, Some(hop.interface_index)));
    one(&message.attributes, None).into_iter().chain(several).collect()
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

/// The destination prefix of the route in a message.
pub(super) fn prefix(message: &RouteMessage) -> Option<ipnet::IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(address) = attribute { route_address(address) } else { None }
    });
    let family = message.header.address_family;
    let address = match destination {
        Some(address) => address,
        // The message about a default route contains no destination.
        None if family == AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        None if family == AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        None => return None,
    };
    ipnet::IpNet::new(address, message.header.destination_prefix_length).ok()
}

/// The neighbour entry in a message; `None` if the message is about a bridge's forwarding database and not about IP.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) = attribute {
            address = Some(IpAddr::V4(*destination));
        } else if let NeighbourAttribute::Destination(NeighbourAddress::Inet6(destination)) = attribute {
            address = Some(IpAddr::V6(*destination));
        } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
            mac = Mac::try_from(bytes.as_slice()).ok();
        }
    }
    let key = NeighbourKey { ifindex: message.header.ifindex, address: address? };
    Some((key, Neighbour { state: message.header.state, mac }))
}
