//! Telling the neighbours where an address is now: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour
//! advertisements (RFC 4861 section 7.2.6).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use balancer_common::map_types::Mac;
use tokio::time::sleep;
use tracing::debug;

/// An announcement may be lost, the more so where a link has just come up: it comes again after each of these.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_millis(700), Duration::from_secs(2), Duration::from_secs(5)];

const BROADCAST: Mac = [0xff; 6];
/// Of ff02::1, all nodes.
const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// Sends announcements. One socket does for all, because closing one takes the kernel a grace period.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcer(Arc<Mutex<Option<OwnedFd>>>);

impl Announcer {
    /// Announces an address once.
    pub(super) fn announce(&self, ifindex: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        let frame = match address {
            IpAddr::V4(address) => arp(mac, address),
            IpAddr::V6(address) => advertisement(mac, address),
        };
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match &mut *socket {
            Some(socket) => socket,
            none => none.insert(open()?),
        };
        send(socket, ifindex, &frame)
    }

    /// Announces it the other times.
    pub(super) async fn again(self, interface: String, ifindex: u32, mac: Mac, address: IpAddr) {
        for pause in PAUSES {
            sleep(pause).await;
            if let Err(error) = self.announce(ifindex, mac, address) {
                debug!("{address} on {interface} is not announced again: {error}");
            }
        }
    }
}

/// An ARP request of the address for itself.
fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETH_P_ARP);
    // Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const ICMPV6: u8 = 58;
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    body.extend(address.octets());
    // Target link-layer address, one unit of eight bytes.
    body.extend([2, 1]);
    body.extend(mac);
    let length = body.len() as u16;
    let mut sum = u32::from(length) + u32::from(ICMPV6);
    for word in address.segments().into_iter().chain(ALL_NODES_ADDRESS.segments()) {
        sum += u32::from(word);
    }
    for pair in body.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    body[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut frame = ethernet(ALL_NODES, mac, ETH_P_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES_ADDRESS.octets());
    frame.extend(body);
    frame
}

fn ethernet(destination: Mac, source: Mac, protocol: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(destination);
    frame.extend(source);
    frame.extend(protocol.to_be_bytes());
    frame
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; protocol 0 receives nothing.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    // SAFETY: frame and address live through the call, and their lengths are theirs.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    #[test]
    fn arp_asks_for_the_address_in_its_own_name() {
        let frame = arp(MAC, Ipv4Addr::new(198, 51, 100, 10));
        assert_eq!(
            frame,
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 51, 100, 10, 0, 0, 0, 0, 0, 0, 198, 51, 100, 10
            ]
        );
    }

    #[test]
    fn an_advertisement_has_a_right_checksum() {
        let frame = advertisement(MAC, "2001:db8::10".parse().unwrap());
        assert_eq!(frame.len(), 86);
        // The pseudo-header's addresses, length and protocol, and the message, sum up to all ones.
        let words = |bytes: &[u8]| -> u32 {
            bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
        };
        let mut sum = words(&frame[22..]) + 32 + 58;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
        assert_eq!(frame[54..58], [136, 0, frame[56], frame[57]]);
    }
}
