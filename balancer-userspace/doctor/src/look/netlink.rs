//! Reads links, addresses, routes and neighbours of this network namespace.

use std::{collections::HashMap, io, net::IpAddr, pin::pin, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use rtnetlink::{Error, Handle};
use tokio::task::AbortHandle;

use crate::facts::{Address, Duplicates, Link, Mac, Program, Way};

/// The maximum time to wait for the kernel's answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A netlink connection for requests to the kernel.
pub(super) struct Netlink {
    handle: Handle,
    connection: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) mac: Option<Mac>,
    pub(super) permanent: bool,
    /// Whether the neighbour has not answered the kernel.
    pub(super) silent: bool,
}

impl Netlink {
    /// # Errors
    /// Fails if no netlink socket can be opened.
    pub(super) fn connect() -> anyhow::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        Ok(Self { handle, connection: tokio::spawn(connection).abort_handle() })
    }

    /// # Errors
    /// Fails if the kernel does not answer.
    pub(super) async fn links(&self) -> anyhow::Result<Vec<Link>> {
        let dump = self.handle.link().get().execute().try_collect::<Vec<LinkMessage>>();
        let messages = tokio::time::timeout(TIMEOUT, dump).await.context("listing the interfaces: no answer")??;
        let mut links: Vec<Link> = messages.iter().map(link).collect();
        let vlans = messages.iter().filter_map(vlan_upon);
        for lower in vlans {
            if let Some(link) = links.iter_mut().find(|link| link.ifindex == lower) {
                link.carries_vlans = true;
            }
        }
        Ok(links)
    }

    /// # Errors
    /// Fails if the kernel does not answer.
    pub(super) async fn addresses(&self) -> anyhow::Result<Vec<Address>> {
        let dump = self.handle.address().get().execute().try_collect::<Vec<AddressMessage>>();
        let messages = tokio::time::timeout(TIMEOUT, dump).await.context("listing the addresses: no answer")??;
        Ok(messages.iter().filter_map(address).collect())
    }

    /// # Errors
    /// Fails if the kernel does not answer.
    pub(super) async fn neighbours(&self) -> anyhow::Result<HashMap<(u32, IpAddr), Entry>> {
        let dump = self.handle.neighbours().get().execute().try_collect::<Vec<NeighbourMessage>>();
        let messages = tokio::time::timeout(TIMEOUT, dump).await.context("listing the neighbours: no answer")??;
        Ok(messages.iter().filter_map(neighbour).collect())
    }

    /// Returns the kernel's route to an address, and the source address that the kernel would use.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(super) async fn way(&self, to: IpAddr) -> anyhow::Result<Route> {
        self.way_from(to, None).await
    }

    /// Like [`way`](Self::way), for packets from this machine's own address `from`.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(super) async fn way_from(&self, to: IpAddr, from: Option<IpAddr>) -> anyhow::Result<Route> {
        let from = from.map(|from| RouteAttribute::Source(from.into()));
        let message = match self.route(to, RouteFlags::empty(), from).await? {
            Ok(message) => message,
            Err(error) => return Ok(Route { way: Way::None(why(&error)), source: None, mtu: None }),
        };
        let (mut ifindex, mut next_hop, mut source, mut mtu) = (None, to, None, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                ifindex = Some(*index);
            } else if let RouteAttribute::Gateway(address) = attribute {
                next_hop = route_address(address).unwrap_or(next_hop);
            } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
                next_hop = (*address).into();
            } else if let RouteAttribute::PrefSource(address) = attribute {
                source = route_address(address);
            } else if let RouteAttribute::Metrics(metrics) = attribute {
                mtu = metrics
                    .iter()
                    .find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
        }
        let way = match (message.header.kind, ifindex) {
            (RouteType::Local, _) => Way::Local,
            // The kernel answers with such a route only for IPv6.
            (RouteType::BlackHole, _) => Way::None("a route of type blackhole".to_owned()),
            (RouteType::Unreachable, _) => Way::None("a route of type unreachable".to_owned()),
            (RouteType::Prohibit, _) => Way::None("a route of type prohibit".to_owned()),
            (_, Some(ifindex)) => Way::Known { ifindex, next_hop },
            (_, None) => Way::None("the route names no interface".to_owned()),
        };
        Ok(Route { way, source, mtu })
    }

    /// Returns the destination prefix of the route to an address.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub(super) async fn prefix(&self, to: IpAddr) -> anyhow::Result<Option<IpNet>> {
        let Ok(message) = self.route(to, RouteFlags::FibMatch, []).await? else { return Ok(None) };
        Ok(destination(&message))
    }

    /// Returns the destination prefixes of the main table's routes through gateways, without default routes.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub(super) async fn behind_gateways(&self, family: AddressFamily) -> anyhow::Result<Vec<IpNet>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let dump = self.handle.route().get(message).execute().try_collect::<Vec<RouteMessage>>();
        let messages = tokio::time::timeout(TIMEOUT, dump).await.context("listing the routes: no answer")??;
        Ok(messages.iter().filter(|message| is_behind_gateway(message)).filter_map(destination).collect())
    }

    /// Returns why routes or rules forbid packets that arrive by the interface `arriving`; `None` if they do not, or if
    /// the kernel's answer may have another cause.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(super) async fn forbids(&self, to: IpAddr, from: IpAddr, arriving: u32) -> anyhow::Result<Option<String>> {
        let more = [RouteAttribute::Source(from.into()), RouteAttribute::Iif(arriving)];
        let Err(error) = self.route(to, RouteFlags::empty(), more).await? else { return Ok(None) };
        // The kernel also rejects sources that its reverse-path filter does not expect, with other errors.
        let forbids = matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES));
        Ok(forbids.then(|| error.to_string()))
    }

    /// Asks the kernel for the route to an address, with more attributes of the packet.
    async fn route(
        &self,
        to: IpAddr,
        flags: RouteFlags,
        more: impl IntoIterator<Item = RouteAttribute>,
    ) -> anyhow::Result<Result<RouteMessage, io::Error>> {
        let mut message = RouteMessage::default();
        (message.header.address_family, message.header.destination_prefix_length) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.flags = flags;
        message.attributes.push(RouteAttribute::Destination(to.into()));
        for attribute in more {
            if let RouteAttribute::Source(_) = attribute {
                message.header.source_prefix_length = message.header.destination_prefix_length;
            }
            message.attributes.push(attribute);
        }
        let mut answers = pin!(self.handle.route().get(message).execute());
        let answer = tokio::time::timeout(TIMEOUT, answers.next()).await;
        match answer.with_context(|| format!("looking up the route to {to}: no answer"))? {
            Some(Ok(message)) => Ok(Ok(message)),
            Some(Err(Error::NetlinkError(error))) => Ok(Err(error.to_io())),
            Some(Err(error)) => Err(error).with_context(|| format!("looking up the route to {to}")),
            None => bail!("looking up the route to {to}: the netlink socket was closed"),
        }
    }
}

/// The destination prefix of a route; `None` for a default route.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let named = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(address) = attribute { route_address(address) } else { None }
    });
    IpNet::new(named?, message.header.destination_prefix_length).ok()
}

fn is_behind_gateway(message: &RouteMessage) -> bool {
    let is_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    let header = &message.header;
    let is_main = header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast;
    is_main && message.attributes.iter().any(is_gateway)
}

/// The reason why the kernel has no route, in words.
fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EINVAL) => format!("{error}, as for a route or rule of type blackhole"),
        _ => error.to_string(),
    }
}

/// The kernel's route to an address.
pub(super) struct Route {
    /// The next hop.
    pub(super) way: Way,
    /// This machine's source address for packets on this route.
    pub(super) source: Option<IpAddr>,
    /// The MTU of the route; `None`: the interface's MTU applies.
    pub(super) mtu: Option<u32>,
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

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Running),
        ..Link::default()
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(address) = attribute {
            link.mac = Mac::try_from(address.as_slice()).ok();
        } else if let LinkAttribute::NumRxQueues(queues) = attribute {
            link.rx_queues = *queues;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.kind = kind(infos).map(ToString::to_string);
        } else if let LinkAttribute::Xdp(parts) = attribute {
            link.programs = programs(parts);
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> Option<&InfoKind> {
    infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None })
}

/// The index of the interface below a VLAN interface.
fn vlan_upon(message: &LinkMessage) -> Option<u32> {
    let mut lower = None;
    let mut is_vlan = false;
    for attribute in &message.attributes {
        if let LinkAttribute::Link(index) = attribute {
            lower = Some(*index);
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            is_vlan = kind(infos) == Some(&InfoKind::Vlan);
        }
    }
    lower.filter(|_| is_vlan)
}

/// Lists the XDP programs of an interface; another module of the doctor adds the names.
fn programs(parts: &[LinkXdp]) -> Vec<Program> {
    let program = |id, native| Program { id, name: None, native };
    let mut found = Vec::new();
    for part in parts {
        if let LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) = part {
            found.push(program(*id, true));
        } else if let LinkXdp::SkbProgId(id) = part {
            found.push(program(*id, false));
        }
    }
    if found.is_empty() {
        // An older kernel reports only one program, and reports the program's hook separately.
        let native = !parts
            .iter()
            .any(|part| matches!(part, LinkXdp::Attached(netlink_packet_route::link::XdpAttached::SocketBuffer)));
        found.extend(
            parts.iter().filter_map(
                |part| {
                    if let LinkXdp::ProgId(id) = part { Some(program(*id, native)) } else { None }
                },
            ),
        );
    }
    found
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    let mut duplicates = Duplicates::None;
    for attribute in &message.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            duplicates = if flags.contains(AddressFlags::Dadfailed) {
                Duplicates::Found
            } else if flags.contains(AddressFlags::Tentative) {
                Duplicates::Searching
            } else {
                Duplicates::None
            };
        }
        // On a point-to-point link, the other attribute contains the address of the peer.
        if let AddressAttribute::Local(address) = attribute {
            found = Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            found = found.or(Some(*address));
        }
    }
    Some(Address { ifindex: message.header.index, address: found?, length: message.header.prefix_len, duplicates })
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Entry)> {
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
    let state = message.header.state;
    let silent = matches!(state, NeighbourState::Failed | NeighbourState::Incomplete);
    let usable = !silent && state != NeighbourState::None;
    let entry = Entry { mac: mac.filter(|_| usable), permanent: state == NeighbourState::Permanent, silent };
    Some(((message.header.ifindex, address?), entry))
}
