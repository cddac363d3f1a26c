//! The XDP features of drivers, from the kernel's generic netlink family `netdev` (Linux 6.3).

use std::{collections::HashMap, io, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};

use crate::facts::XdpFeatures;

/// `NETDEV_XDP_ACT_BASIC`: the driver itself runs XDP programs.
const RUNS: u64 = 1;
/// `NETDEV_XDP_ACT_NDO_XMIT`: the driver accepts frames that XDP sends from another interface.
const TAKES: u64 = 1 << 2;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
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
/// The time limit for the kernel's answer, which arrives during the system call.
const PATIENCE: i64 = Duration::from_secs(1).as_millis() as i64;

/// Returns the XDP features of every interface by index.
///
/// # Errors
/// Fails if this kernel does not report XDP features.
pub(super) fn features() -> io::Result<HashMap<u32, XdpFeatures>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(PATIENCE))?;
    let mut name = Vec::new();
    attribute(&mut name, FAMILY_NAME, b"netdev\0");
    socket.send(&message(CONTROLLER, REQUEST, GET_FAMILY, &name), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let family = bodies(&answer)?.into_iter().find_map(|body| value(body, FAMILY_ID)).and_then(|id| word(id, 0));
    let family = family.ok_or_else(|| io::Error::other("this kernel does not say, as before Linux 6.3"))?;
    socket.send(&message(family, REQUEST | DUMP, DEV_GET, &[]), 0)?;
    let mut found = HashMap::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        found.extend(bodies(&answer)?.into_iter().filter_map(device));
        if parts(&answer).any(|(kind, _)| kind == DONE) {
            return Ok(found);
        }
    }
}

fn device(body: &[u8]) -> Option<(u32, XdpFeatures)> {
    let ifindex = u32::from_ne_bytes(value(body, DEV_IFINDEX)?.try_into().ok()?);
    let bits = u64::from_ne_bytes(value(body, DEV_XDP_FEATURES)?.try_into().ok()?);
    Some((ifindex, XdpFeatures { runs_programs: bits & RUNS != 0, takes_frames: bits & TAKES != 0 }))
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

/// The attributes of each answer in a datagram, as bytes.
fn bodies(datagram: &[u8]) -> io::Result<Vec<&[u8]>> {
    let mut bodies = Vec::new();
    for (kind, body) in parts(datagram) {
        let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
        match kind {
            ERROR if code != 0 => return Err(io::Error::from_raw_os_error(-code)),
            ERROR | DONE => {}
            _ => bodies.extend(body.get(GENERIC_HEADER..)),
        }
    }
    Ok(bodies)
}

fn value(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND: u16 = 0x3fff;
    loop {
        let length = usize::from(word(rest, 0)?);
        let kind = word(rest, 2)? & KIND;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
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
    fn when_devices_are_listed_then_each_one_s_features_are_read() {
        let datagram = [device_message(2, 0x7), device_message(3, 0x3), device_message(4, 0)].concat();
        let found: Vec<_> = bodies(&datagram).unwrap().into_iter().filter_map(device).collect();
        let features = |runs_programs, takes_frames| XdpFeatures { runs_programs, takes_frames };
        assert_eq!(found, [(2, features(true, true)), (3, features(true, false)), (4, features(false, false))]);
    }

    #[test]
    fn when_the_kernel_refuses_or_talks_nonsense_then_nothing_is_read() {
        let mut refusal = message(ERROR, 0, 0, &[]);
        refusal[HEADER..].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(bodies(&refusal).err().and_then(|error| error.raw_os_error()), Some(libc::ENOENT));
        for cut in 0..40 {
            let mut datagram = device_message(2, 4);
            datagram.truncate(cut);
            assert_eq!(bodies(&datagram).unwrap().into_iter().filter_map(device).count(), 0, "{cut}");
        }
    }
}
