//! Receives the kernel's notifications about links, neighbours, routes, rules and addresses.

use std::io;

use bytes::{Buf as _, BytesMut};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::MulticastGroup;

use super::{
    netlink::{neighbour, prefix},
    tracker::Update,
};
use crate::interfaces::Link;

pub(super) const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    // This multicast group reports changes of next hops that routes name by id (`ip nexthop`). With
    // `net.ipv4.nexthop_compat_mode=0`, the kernel sends no notification about routes when such a next hop is replaced.
    MulticastGroup::Nexthop,
];

/// The size in bytes of the receive buffer for bursts; if the buffer overflows, notifications are lost, and the kernel
/// reports the loss.
pub(super) const RECEIVE_BUFFER: usize = 1 << 20;
/// The size of the buffer for one datagram, which exceeds the kernel's longest datagram (32 KiB).
pub(super) const DATAGRAM: usize = 1 << 16;
const HEADER: usize = 16;

/// The reason why notifications are missing.
#[derive(Debug, thiserror::Error)]
pub(super) enum LostNotifications {
    /// Notifications were lost, so the task must reread all tables.
    #[error("the kernel told of more changes than fitted the receive buffer")]
    Overrun,
    /// The socket no longer works.
    #[error("reading the netlink socket: {0}")]
    Broken(io::Error),
}

/// A socket for the kernel's notifications. The task holds at most one datagram in memory, so the socket's receive
/// buffer limits the size of a burst.
pub(super) struct Monitor {
    socket: TokioSocket,
    buffer: BytesMut,
}

impl Monitor {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.iter().fold(0u32, |groups, &group| groups | 1 << (group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        Ok(Self { socket, buffer: BytesMut::new() })
    }

    /// Waits for notifications, and returns the changes in them. If the caller cancels the wait, no change is lost.
    pub(super) async fn next(&mut self) -> Result<Vec<Update>, LostNotifications> {
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(updates(&mut self.buffer)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(LostNotifications::Overrun),
            Err(error) => Err(LostNotifications::Broken(error)),
        }
    }
}

/// The changes in a datagram, which contains one or more messages. A message that cannot be parsed may be of any kind,
/// and may concern next hops.
pub(super) fn updates(datagram: &mut BytesMut) -> Vec<Update> {
    let mut updates = Vec::new();
    while datagram.len() >= HEADER {
        let length = datagram.clone().get_u32_ne() as usize;
        if length < HEADER || length > datagram.len() {
            updates.push(Update::Routes(None));
            break;
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram[..length]) {
            Ok(message) => updates.extend(update(message)),
            Err(_) => updates.push(Update::Routes(None)),
        }
        datagram.advance(length.next_multiple_of(4).min(datagram.len()));
    }
    updates
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rtnetlink has dozens of messages that say nothing about routes")]
fn update(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Update> {
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    // A bridge's messages about its ports differ from messages about links only in their family.
    let of_link = |family: AddressFamily| family == AddressFamily::Unspec;
    match message {
        RouteNetlinkMessage::NewLink(link) if of_link(link.header.interface_family) => {
            Some(Update::Link(Link::from_message(&link)))
        }
        RouteNetlinkMessage::DelLink(link) if of_link(link.header.interface_family) => {
            Some(Update::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewNeighbour(entry) => {
            neighbour(&entry).map(|(key, neighbour)| Update::Neighbour(key, neighbour))
        }
        RouteNetlinkMessage::DelNeighbour(entry) => neighbour(&entry).map(|(key, _)| Update::NeighbourGone(key)),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Some(Update::Routes(prefix(&route)))
        }
        RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Update::Routes(None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAttribute, RouteMessage},
    };

    use super::*;
    use crate::neighbours::resolve::{Neighbour, NeighbourKey};

    fn bytes(messages: Vec<RouteNetlinkMessage>) -> BytesMut {
        let mut datagram = BytesMut::new();
        for message in messages {
            let mut message = NetlinkMessage::from(message);
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        datagram
    }

    fn neighbour_message(family: AddressFamily) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.header.ifindex = 2;
        message.header.state = NeighbourState::Reachable;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]));
        message
    }

    #[test]
    fn when_a_datagram_has_several_messages_then_each_is_read() {
        let mut neighbour = neighbour_message(AddressFamily::Inet);
        let address: std::net::IpAddr = "10.0.0.9".parse().unwrap();
        neighbour.attributes.push(NeighbourAttribute::Destination(address.into()));
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.destination_prefix_length = 64;
        let prefix: std::net::IpAddr = "2001:db8::".parse().unwrap();
        route.attributes.push(RouteAttribute::Destination(prefix.into()));
        let mut default = RouteMessage::default();
        default.header.address_family = AddressFamily::Inet;

        let mut datagram = bytes(vec![
            RouteNetlinkMessage::NewNeighbour(neighbour),
            RouteNetlinkMessage::NewNeighbour(neighbour_message(AddressFamily::Bridge)),
            RouteNetlinkMessage::DelRoute(route),
            RouteNetlinkMessage::NewRoute(default),
        ]);
        let key = NeighbourKey { ifindex: 2, address };
        let entry = Neighbour { state: NeighbourState::Reachable, mac: Some([2, 0, 0, 0, 0, 9]) };
        assert_eq!(
            updates(&mut datagram),
            [
                Update::Neighbour(key, entry),
                Update::Routes(Some("2001:db8::/64".parse().unwrap())),
                Update::Routes(Some("0.0.0.0/0".parse().unwrap())),
            ]
        );
    }

    #[test]
    fn when_a_message_cannot_be_read_then_any_route_may_have_changed() {
        let mut truncated = bytes(vec![RouteNetlinkMessage::NewRoute(RouteMessage::default())]);
        truncated.truncate(20);
        assert_eq!(updates(&mut truncated), [Update::Routes(None)]);
        let mut endless = BytesMut::zeroed(64);
        assert_eq!(updates(&mut endless), [Update::Routes(None)]);
    }

    #[test]
    fn when_a_next_hop_object_changes_then_any_route_may_have_changed() {
        // The message number from linux/rtnetlink.h.
        const RTM_NEWNEXTHOP: u16 = 104;
        let mut message = bytes(vec![RouteNetlinkMessage::NewRoute(RouteMessage::default())]);
        message[4..6].copy_from_slice(&RTM_NEWNEXTHOP.to_ne_bytes());
        assert_eq!(updates(&mut message), [Update::Routes(None)]);
    }
}
