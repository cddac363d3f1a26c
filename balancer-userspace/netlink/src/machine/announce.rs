//! Announces addresses to the machines on a link: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour
//! advertisements (RFC 4861 section 7.2.6).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::interfaces::Link;
use balancer_common::map_types::Mac;
use balancer_runtime::packet_socket::{self, link_address};
use etherparse::{ArpEthIpv4Packet, ArpOperation, Icmpv6Type, PacketBuilder, icmpv6::NeighborAdvertisementHeader};
use socket2::{Socket, Type};
use tokio::{task::AbortHandle, time::sleep};
use tracing::{debug, warn};

use super::{
    plan::{self, Sign},
    vips::InterfaceAddress,
};

/// The pauses between repetitions of an announcement. A single announcement may be lost, especially when a link has
/// just come up.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_millis(700), Duration::from_secs(2), Duration::from_secs(5)];

const BROADCAST: Mac = [0xff; 6];
/// The Ethernet address of ff02::1, all nodes.
const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The hop limit by which receivers know that no router has forwarded the packet.
const HOP_LIMIT: u8 = 255;

/// Pending repetitions of announcements. Dropping this value cancels the repetitions.
#[derive(Debug)]
struct Repeats(AbortHandle);

impl Drop for Repeats {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The announcements that the balancer has already sent to neighbours.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    announcer: Announcer,
    told: BTreeMap<InterfaceAddress, Sign>,
    repeats: BTreeMap<InterfaceAddress, Repeats>,
}

impl Announcements {
    /// Forgets the announcement of an address that was absent for a while, because another machine may have had the
    /// address in the meantime.
    pub(super) fn forget(&mut self, place: InterfaceAddress) {
        self.told.remove(&place);
    }

    /// Announces the addresses for which [`plan::announcements`] requires an announcement.
    pub(super) fn tell(
        &mut self,
        ours: &BTreeSet<InterfaceAddress>,
        others: &BTreeSet<InterfaceAddress>,
        links: &[Link],
        native: impl Fn(u32) -> Option<bool>,
    ) {
        let up = links.iter().filter(|link| link.up && link.running);
        let signs: BTreeMap<u32, Sign> = up
            .filter_map(|link| {
                let Link { ifindex, mac, carrier_ups, .. } = *link;
                Some((ifindex, Sign { mac: mac?, carrier_ups, native: native(ifindex) }))
            })
            .collect();
        let due = plan::announcements(&self.told, ours, others, &signs);
        // If a link is down, the balancer announces the link's addresses after the link has come up again.
        self.told
            .retain(|place, _| others.contains(place) || ours.contains(place) && signs.contains_key(&place.ifindex));
        self.repeats.retain(|place, _| self.told.contains_key(place));
        for place in ours | others {
            let Some(&sign) = signs.get(&place.ifindex) else { continue };
            self.told.insert(place, sign);
            if due.contains(&place) {
                self.tell_one(place, sign.mac, links);
            }
        }
    }

    fn tell_one(&mut self, place: InterfaceAddress, mac: Mac, links: &[Link]) {
        let InterfaceAddress { ifindex, address } = place;
        let link = links.iter().find(|link| link.ifindex == ifindex);
        let interface = link.map_or_else(String::new, |link| link.name.clone());
        self.repeats.remove(&place);
        if let Err(error) = self.announcer.announce(ifindex, mac, address) {
            warn!(
                "cannot announce {address} on {interface} ({error}; CAP_NET_RAW is needed): neighbours use their old \
                 entry until it expires"
            );
            return;
        }
        let again = self.announcer.clone().again(interface, ifindex, mac, address);
        self.repeats.insert(place, Repeats(tokio::spawn(again).abort_handle()));
    }
}

/// Sends announcements of addresses to the neighbours. All announcements use one socket, because closing a socket costs
/// a grace period in the kernel.
#[derive(Clone, Debug, Default)]
struct Announcer(Arc<Mutex<Option<Socket>>>);

impl Announcer {
    /// Announces an address once.
    fn announce(&self, ifindex: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        let frame = match address {
            IpAddr::V4(address) => arp(mac, address)?,
            IpAddr::V6(address) => advertisement(mac, address)?,
        };
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match &mut *socket {
            Some(socket) => socket,
            none => none.insert(packet_socket::open(Type::RAW)?),
        };
        socket.send_to(&frame, &link_address(0, ifindex, None)).map(drop)
    }

    /// Repeats an announcement after each of the pauses.
    async fn again(self, interface: String, ifindex: u32, mac: Mac, address: IpAddr) {
        for pause in PAUSES {
            sleep(pause).await;
            if let Err(error) = self.announce(ifindex, mac, address) {
                debug!("cannot announce {address} on {interface} again: {error}");
            }
        }
    }
}

/// Makes an ARP request in which the requested address is also the sender's address.
fn arp(mac: Mac, address: Ipv4Addr) -> io::Result<Vec<u8>> {
    let own = address.octets();
    let request = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: own,
        target_mac: [0; 6],
        target_ipv4: own,
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, BROADCAST).arp(request.into()).write(&mut frame).map_err(io::Error::other)?;
    Ok(frame)
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> io::Result<Vec<u8>> {
    let flags = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let mut body = address.octets().to_vec();
    // The option with the target link-layer address has a length of one unit, which is eight bytes.
    body.extend([2, 1]);
    body.extend(mac);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, ALL_NODES)
        .ipv6(address.octets(), ALL_NODES_ADDRESS.octets(), HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(flags))
        .write(&mut frame, &body)
        .map_err(io::Error::other)?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn when_an_ipv4_address_is_announced_then_it_asks_for_itself_by_arp() {
        let frame = arp(MAC, Ipv4Addr::new(198, 51, 100, 10)).unwrap();
        assert_eq!(
            frame,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 51, 100, 10, 0, 0, 0, 0, 0, 0, 198, 51, 100, 10
            ]
        );
    }

    #[test]
    fn when_an_ipv6_address_is_announced_then_the_checksum_is_right() {
        let frame = advertisement(MAC, "2001:db8::10".parse().unwrap()).unwrap();
        assert_eq!(frame.len(), 86);
        // The pseudo-header (addresses, length and protocol) and the message together have a ones' complement sum of
        // all ones.
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
        };
        let mut sum = words(&frame[22..]) + 32 + 58;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
        assert_eq!(frame[54..58], [136, 0, frame[56], frame[57]]);
        assert_eq!(frame[..22], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[58..], [&[0x20, 0, 0, 0][..], &frame[22..38], &[2, 1, 2, 0, 0, 0, 0, 9]].concat());
    }
}
