//! Reads the kernel's tables, and finds the default next hops in them.

use std::{collections::HashMap, fs, io};

use anyhow::Context as _;
use balancer_common::map_types::{Mac, ingress_bit};
use balancer_config::listeners::Family;
use balancer_control::default_hop::{DefaultHop, DefaultRoute, Egress, Obstacle, Route, Rule, default_route};
use bytes::{Buf as _, BytesMut};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    neighbour::{NeighbourAttribute, NeighbourMessage},
    route::RouteMessage,
    rule::RuleMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{FAMILIES, basis::Basis, messages};
use crate::{
    interfaces::Link,
    neighbours::{monitor, netlink, resolve::NeighbourKey},
};

/// The most routes of a family that are read: joining their prefixes takes a few milliseconds.
const MOST_ROUTES: usize = 1024;

/// The result of a reading.
pub(super) struct FoundHops {
    pub(super) links: HashMap<u32, Link>,
    pub(super) families: [(Basis, Result<DefaultHop, Obstacle>); 2],
}

/// Reads the tables of the calling thread's network namespace.
///
/// # Errors
/// Fails if the kernel does not answer, or if a table changed while it was read.
pub(super) fn read() -> anyhow::Result<FoundHops> {
    let mut links = HashMap::new();
    list(RouteNetlinkMessage::GetLink(LinkMessage::default()), usize::MAX, |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            links.insert(link.header.index, Link::from_message(&link));
        }
    })
    .context("listing the network interfaces")?;
    let [v4, v6] = FAMILIES.map(|family| of_family(family, &links));
    Ok(FoundHops { families: [v4?, v6?], links })
}

fn of_family(family: Family, links: &HashMap<u32, Link>) -> anyhow::Result<(Basis, Result<DefaultHop, Obstacle>)> {
    let found = default(family)?;
    let route = match found {
        Ok(route) => route,
        Err(obstacle) => return Ok((Basis::nothing(family), Err(obstacle))),
    };
    let key = NeighbourKey { ifindex: route.gateway.ifindex, address: route.gateway.address };
    let mac = mac(key)?;
    let hop = hop(family, &route, mac, links);
    let excluded = hop.is_ok().then(|| route.excluded.clone());
    Ok((Basis::new(family, (key, mac), excluded), hop))
}

fn default(family: Family) -> anyhow::Result<Result<DefaultRoute, Obstacle>> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut message = RuleMessage::default();
    message.header.family = number(family);
    list(RouteNetlinkMessage::GetRule(message), usize::MAX, |message| {
        if let RouteNetlinkMessage::NewRule(rule) = message {
            rules.push(messages::rule(&rule));
        }
    })
    .context("listing the rules")?;
    let mut routes: Vec<Route> = Vec::new();
    let mut message = RouteMessage::default();
    message.header.address_family = number(family);
    let listed = list(RouteNetlinkMessage::GetRoute(message), MOST_ROUTES, |message| {
        if let RouteNetlinkMessage::NewRoute(route) = message {
            routes.extend(messages::route(&route));
        }
    });
    if !listed.context("listing the routes")? {
        return Ok(Err(Obstacle::TooManyRoutes));
    }
    Ok(default_route(&rules, &routes))
}

fn hop(
    family: Family,
    route: &DefaultRoute,
    gateway: Option<Mac>,
    links: &HashMap<u32, Link>,
) -> Result<DefaultHop, Obstacle> {
    let link = links.get(&route.gateway.ifindex).filter(|link| link.up && link.running).ok_or(Obstacle::Interface)?;
    let mac = link.mac.ok_or(Obstacle::Interface)?;
    let ingresses = ingresses(family, links);
    if ingresses == 0 {
        return Err(Obstacle::Forwarding);
    }
    let mtu = match family {
        Family::V4 => link.mtu,
        // A router's advertisement can set a smaller MTU for IPv6 than the interface has.
        Family::V6 => setting(family, link, "mtu").map_or(link.mtu, |mtu| mtu.min(link.mtu)),
    };
    Ok(DefaultHop::new(route, Egress { mac, mtu }, gateway.ok_or(Obstacle::Neighbour)?, ingresses))
}

/// The bits of the interfaces on which the kernel forwards packets. Interfaces that share a bit must all forward.
fn ingresses(family: Family, links: &HashMap<u32, Link>) -> u64 {
    let ethernet = links.values().filter(|link| link.mac.is_some());
    let (on, off): (Vec<&Link>, Vec<&Link>) =
        ethernet.partition(|link| setting(family, link, "forwarding").is_some_and(|forwarding| forwarding != 0));
    let bits = |links: Vec<&Link>| links.iter().fold(0, |bits, link| bits | ingress_bit(link.ifindex));
    bits(on) & !bits(off)
}

/// A number among the settings of an interface.
fn setting(family: Family, link: &Link, name: &str) -> Option<u32> {
    let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{}/{name}", link.name)).ok()?;
    text.trim().parse().ok()
}

/// The MAC address of a neighbour, if the kernel can send frames to it.
fn mac(key: NeighbourKey) -> anyhow::Result<Option<Mac>> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = key.ifindex;
    message.header.family = number(Family::of(key.address));
    message.attributes.push(NeighbourAttribute::Destination(key.address.into()));
    let mut found = None;
    let asked = ask(RouteNetlinkMessage::GetNeighbour(message), 0, 1, |message| {
        if let RouteNetlinkMessage::NewNeighbour(entry) = message {
            found = netlink::neighbour(&entry);
        }
    });
    match asked {
        Ok(_) => Ok(found.filter(|(of, _)| *of == key).and_then(|(_, neighbour)| neighbour.usable_mac())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("asking for neighbour {}", key.address)),
    }
}

const fn number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// Lists a table; false if the table has more than `most` entries.
fn list(request: RouteNetlinkMessage, most: usize, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
    ask(request, NLM_F_DUMP, most, each)
}

/// Sends a request on a socket of its own, and passes on at most `most` answers; false if there are more.
fn ask(
    request: RouteNetlinkMessage,
    flags: u16,
    most: usize,
    mut each: impl FnMut(RouteNetlinkMessage),
) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let is_list = flags == NLM_F_DUMP;
    let mut answers = 0;
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        buffer.reserve(monitor::DATAGRAM);
        socket.recv(&mut buffer, 0)?;
        while let Some(message) = next(&mut buffer)? {
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) => return error.code.map_or(Ok(true), |_| Err(error.to_io())),
                NetlinkPayload::InnerMessage(_) if answers == most => return Ok(false),
                NetlinkPayload::InnerMessage(answer) => {
                    each(answer);
                    answers += 1;
                    if !is_list {
                        return Ok(true);
                    }
                }
                NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
            }
        }
    }
}

/// Takes the next message out of a datagram. A message that cannot be read is an error, because it may be the one that
/// matters.
fn next(datagram: &mut BytesMut) -> io::Result<Option<NetlinkMessage<RouteNetlinkMessage>>> {
    if datagram.is_empty() {
        return Ok(None);
    }
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram).map_err(io::Error::other)?;
    if message.header.flags & NLM_F_DUMP_INTR != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINTR));
    }
    let length = message.header.length as usize;
    datagram.advance(length.next_multiple_of(4).min(datagram.len()));
    Ok(Some(message))
}
