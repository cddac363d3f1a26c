//! A packet socket of the doctor, which sends probes and receives all packets that this machine's kernel sends or
//! receives.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::packets::{Heard, RST, SYN, arp, heard};
use crate::facts::Mac;

/// The protocol number that selects packets of all protocols.
const ETH_P_ALL: u16 = 0x0003;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const PACKET_OTHERHOST: u8 = 3;
const PACKET_OUTGOING: u8 = 4;
const BROADCAST: Mac = [0xff; 6];
/// The maximum size in bytes of a received packet, including packets that the kernel has merged.
const PACKET: usize = 65_600;
/// The maximum number of packets that the doctor records.
pub(super) const MOST: usize = 200_000;
/// The maximum number of packets that are read at a time, so that a flood of packets does not delay the examination.
const AT_ONCE: usize = 4096;

/// The packet sockets that the doctor uses.
pub(super) struct Wire {
    socket: AsyncFd<OwnedFd>,
    out: Socket,
    buffer: Vec<u8>,
}

/// A received packet, with the interface and the direction.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) ifindex: u32,
    pub(super) outgoing: bool,
    /// Whether the frame was sent to another hardware address.
    pub(super) for_another: bool,
    pub(super) heard: Heard,
}

impl Wire {
    /// Opens the sockets, which receive packets from now on.
    ///
    /// # Errors
    /// Fails if this process lacks the capability `CAP_NET_RAW`.
    pub(super) fn open() -> io::Result<Self> {
        let out = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        out.set_nonblocking(true)?;
        let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all))?;
        socket.set_nonblocking(true)?;
        // The kernel drops packets that do not fit into this buffer, but the doctor repeats unanswered probes.
        socket.set_recv_buffer_size(4 << 20)?;
        // SAFETY: the registered value owns the descriptor, which stays open and unchanged as long as the value exists.
        let socket = unsafe { AsyncFd::register(OwnedFd::from(socket)) }?;
        Ok(Self { socket, out, buffer: vec![0; PACKET] })
    }

    /// Sends an IP packet to a neighbour on an interface.
    ///
    /// # Errors
    /// Fails if the interface refuses the packet.
    pub(super) fn send(&self, ifindex: u32, to: Mac, packet: &[u8]) -> io::Result<()> {
        let protocol = if packet.first().is_none_or(|byte| byte >> 4 == 4) { ETH_P_IP } else { ETH_P_IPV6 };
        self.out.send_to(packet, &link_address(protocol, ifindex, to)).map(drop)
    }

    /// Sends an ARP request to all hosts on the link of an interface.
    ///
    /// # Errors
    /// Fails if the interface refuses the packet.
    pub(super) fn ask(&self, ifindex: u32, question: &[u8]) -> io::Result<()> {
        self.out.send_to(question, &link_address(ETH_P_ARP, ifindex, BROADCAST)).map(drop)
    }

    /// Records packets until a time.
    pub(super) async fn listen_until(&mut self, until: Instant, notes: &mut Vec<Note>) {
        repeat(until, async || self.listen(notes).await).await;
    }

    /// Waits for packets and records them.
    async fn listen(&mut self, notes: &mut Vec<Note>) {
        let Ok(mut ready) = self.socket.readable().await else { return std::future::pending().await };
        let buffer = &mut self.buffer;
        for _ in 0..AT_ONCE {
            let read = ready.try_io(|socket| {
                let (length, from) = recvfrom::<LinkAddr>(socket.get_ref().as_raw_fd(), buffer)?;
                Ok((length, from))
            });
            match read {
                Ok(Ok(_)) if notes.len() >= MOST => {}
                Ok(Ok((length, from))) => notes.extend(note(buffer.get(..length).unwrap_or_default(), from.as_ref())),
                // The error concerns a removed interface, and does not affect later packets.
                Ok(Err(_)) => {}
                Err(_would_block) => return,
            }
        }
    }
}

/// Repeats `listen` until a time. The timer and other tasks run after each repetition, even if packets are always
/// waiting, so that `listen` never waits.
async fn repeat(until: Instant, mut listen: impl AsyncFnMut()) {
    while Instant::now() < until {
        tokio::select! {
            biased;
            () = sleep_until(until) => return,
            () = listen() => yield_now().await,
        }
    }
}

fn note(packet: &[u8], from: Option<&LinkAddr>) -> Option<Note> {
    let from = from?;
    let heard = match u16::from_be(from.protocol()) {
        ETH_P_ARP => arp(packet),
        ETH_P_IP | ETH_P_IPV6 => heard(packet),
        _ => None,
    };
    // Only the beginning and the refusal of connections matter to probes, and not the data of all connections of this
    // machine.
    if matches!(heard, Some(Heard::Tcp { flags, .. }) if flags & (SYN | RST) == 0) {
        return None;
    }
    let ifindex = u32::try_from(from.ifindex()).ok()?;
    Some(Note {
        ifindex,
        outgoing: from.pkttype() == PACKET_OUTGOING,
        for_another: from.pkttype() == PACKET_OTHERHOST,
        heard: heard?,
    })
}

/// The packet socket address of a neighbour on an interface.
fn link_address(protocol: u16, ifindex: u32, to: Mac) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is one of the platform's socket address types, for which all bit patterns are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&to);
    // SAFETY: the code above has written an address of this length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn when_packets_are_always_waiting_then_listening_ends_in_time_and_other_tasks_run() {
        let begun = tokio::spawn(async {});
        repeat(Instant::now() + Duration::from_millis(50), async || ()).await;
        assert!(begun.is_finished());
    }
}
