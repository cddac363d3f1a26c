//! The XDP features of drivers, from the kernel's generic netlink family `netdev` (Linux 6.3).

use std::{collections::HashMap, io, time::Duration};

use bytes::BytesMut;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_GENERIC};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};

/// `NETDEV_XDP_ACT_BASIC`: the driver itself runs XDP programs.
pub const RUNS_PROGRAMS: u64 = 1;
/// `NETDEV_XDP_ACT_NDO_XMIT`: the driver accepts frames that XDP sends from another interface.
pub const TAKES_FRAMES: u64 = 1 << 2;
/// `NETDEV_XDP_ACT_NDO_XMIT_SG`: the driver also accepts frames in several buffers that XDP sends from another
/// interface.
pub const TAKES_PARTS: u64 = 1 << 6;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// The multicast group in which the netlink family reports changes.
const CHANGES: &[u8] = b"mgmt\0";
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;

const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// The maximum time to wait for an answer; the kernel answers during the call that sends the query.
const PATIENCE: Duration = Duration::from_secs(1);
/// The size of the receive buffer in bytes, which is enough for one notification.
const DATAGRAM: usize = 4096;

/// The XDP features of each interface by index, as the kernel's bits.
///
/// # Errors
/// Fails if this kernel does not report XDP features.
pub fn of_interfaces() -> io::Result<HashMap<u32, u64>> {
    let mut socket = connect()?;
    let family = Family::of(&mut socket)?.id;
    socket.send(&message(family, REQUEST | DUMP, DEV_GET, &[]), 0)?;
    let mut found = HashMap::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        found.extend(told(&answer)?);
        if kinds(&answer).any(|kind| kind == DONE) {
            return Ok(found);
        }
    }
}

fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(PATIENCE.as_millis() as i64))?;
    Ok(socket)
}

/// The numbers of the netlink family `netdev` in the running kernel.
#[derive(Debug, PartialEq, Eq)]
struct Family {
    id: u16,
    /// The multicast group in which the netlink family reports changes.
    changes: Option<u32>,
}

impl Family {
    fn of(socket: &mut Socket) -> io::Result<Self> {
        let mut name = Vec::new();
        attribute(&mut name, FAMILY_NAME, b"netdev\0");
        socket.send(&message(CONTROLLER, REQUEST, GET_FAMILY, &name), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let family = messages(&answer)?.find_map(Self::read);
        family.ok_or_else(|| io::Error::other("this kernel does not say, as before Linux 6.3"))
    }

    fn read(body: &[u8]) -> Option<Self> {
        let groups = value(body, FAMILY_GROUPS).unwrap_or_default();
        let changes = attributes(groups).find(|(_, group)| value(group, GROUP_NAME) == Some(CHANGES));
        let changes = changes.and_then(|(_, group)| Some(u32::from_ne_bytes(value(group, GROUP_ID)?.try_into().ok()?)));
        Some(Self { id: u16::from_ne_bytes(value(body, FAMILY_ID)?.try_into().ok()?), changes })
    }
}

/// Notifications of changed XDP features; no link notification accompanies such a change, although many drivers accept
/// frames only while a program is attached to their own interface.
pub(crate) struct Changes {
    socket: TokioSocket,
    buffer: BytesMut,
}

impl Changes {
    /// Opens the socket for notifications; `None` if this kernel sends no notifications.
    pub(crate) fn open() -> Option<Self> {
        let open = || {
            let family = Family::of(&mut connect()?)?;
            let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            let group = family.changes.ok_or_else(|| io::Error::other("no group of changes"))?;
            socket.socket_mut().add_membership(group)?;
            Ok::<_, io::Error>(Self { socket, buffer: BytesMut::new() })
        };
        open().map_err(|error| tracing::debug!("changes of XDP features: {error}")).ok()
    }

    /// Waits for a change, and treats all pending changes as one change. If the caller cancels the wait, no change is
    /// lost.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.reserve(DATAGRAM);
        match self.socket.recv(&mut self.buffer).await {
            // The kernel dropped notifications, so any feature may have changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            heard => heard?,
        }
        while self.socket.socket_ref().recv(&mut self.buffer, libc::MSG_DONTWAIT).is_ok() {
            self.buffer.clear();
        }
        Ok(())
    }
}

fn message(kind: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + GENERIC_HEADER + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The type and the body of each message in a datagram.
fn parts(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((word(message, 4)?, &message[HEADER..]))
    })
}

fn kinds(datagram: &[u8]) -> impl Iterator<Item = u16> {
    parts(datagram).map(|(kind, _)| kind)
}

/// The attributes of each answer in a datagram, as bytes.
fn messages(datagram: &[u8]) -> io::Result<impl Iterator<Item = &[u8]>> {
    for (kind, body) in parts(datagram) {
        let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if kind == ERROR && code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    let answers = parts(datagram).filter(|&(kind, _)| kind != ERROR && kind != DONE);
    Ok(answers.filter_map(|(_, body)| body.get(GENERIC_HEADER..)))
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(word(rest, 0)?);
        let kind = word(rest, 2)? & KIND;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn value(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body).find(|&(kind, _)| kind == wanted).map(|(_, value)| value)
}

/// Returns the interfaces in a datagram by index, with their XDP features.
pub(crate) fn told(datagram: &[u8]) -> io::Result<impl Iterator<Item = (u32, u64)>> {
    Ok(messages(datagram)?.filter_map(device))
}

fn device(body: &[u8]) -> Option<(u32, u64)> {
    let ifindex = u32::from_ne_bytes(value(body, DEV_IFINDEX)?.try_into().ok()?);
    Some((ifindex, u64::from_ne_bytes(value(body, DEV_XDP_FEATURES)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device_message(ifindex: u32, features: u64) -> Vec<u8> {
        let mut body = Vec::new();
        attribute(&mut body, DEV_IFINDEX, &ifindex.to_ne_bytes());
        attribute(&mut body, DEV_XDP_FEATURES, &features.to_ne_bytes());
        message(0x1c, 2, DEV_GET, &body)
    }

    #[test]
    fn when_a_datagram_has_several_devices_then_each_is_read() {
        let devices = [device_message(2, 0x7), device_message(3, 0x3), device_message(4, 0x67)];
        let datagram = [devices.concat(), message(DONE, 2, 0, &[])].concat();
        let found: Vec<_> = messages(&datagram).unwrap().filter_map(device).collect();
        assert_eq!(found, [(2, 0x7), (3, 0x3), (4, 0x67)]);
        assert!(kinds(&datagram).any(|kind| kind == DONE));
    }

    #[test]
    fn when_the_group_of_changes_is_among_others_then_it_is_found() {
        let group = |name: &[u8], id: u32| {
            let mut group = Vec::new();
            attribute(&mut group, GROUP_NAME, name);
            attribute(&mut group, GROUP_ID, &id.to_ne_bytes());
            group
        };
        let mut groups = Vec::new();
        attribute(&mut groups, 1, &group(b"page-pool\0", 7));
        attribute(&mut groups, 2, &group(b"mgmt\0", 9));
        let mut body = Vec::new();
        attribute(&mut body, FAMILY_ID, &0x1cu16.to_ne_bytes());
        assert_eq!(Family::read(&body), Some(Family { id: 0x1c, changes: None }));
        attribute(&mut body, FAMILY_GROUPS | 0x8000, &groups);
        assert_eq!(Family::read(&body), Some(Family { id: 0x1c, changes: Some(9) }));
        for cut in 0..body.len() {
            assert_ne!(Family::read(&body[..cut]), Some(Family { id: 0x1c, changes: Some(9) }), "{cut}");
        }
    }

    #[test]
    fn when_the_kernel_refuses_then_it_is_an_error_and_nonsense_is_ignored() {
        let mut refusal = message(ERROR, 0, 0, &[]);
        refusal[HEADER..].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(messages(&refusal).err().and_then(|error| error.raw_os_error()), Some(libc::ENOENT));
        for cut in 0..40 {
            let mut datagram = device_message(2, 4);
            datagram.truncate(cut);
            assert_eq!(messages(&datagram).unwrap().filter_map(device).count(), 0, "{cut}");
        }
    }
}
