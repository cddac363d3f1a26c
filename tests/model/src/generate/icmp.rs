//! Makes ICMP messages that quote packets, and echo requests.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;

use super::{
    clients,
    dress::{bytes, dressed},
    frames::Source,
    once_in, one_of,
};
use balancer_testkit::frame::{Frame, Transport, fragment};

/// An ICMP error to a VIP about a packet that a backend sent with the VIP as the source address.
pub(super) fn error_to_vip(rng: &mut Rng, source: &Source<'_>) -> Frame {
    let request = source.to_service(rng);
    let reply = Frame { source: request.destination, destination: request.source, ..request };
    error(rng, reply)
}

/// An ICMP error to a client about a translated packet.
pub(super) fn error_to_client(rng: &mut Rng, source: &Source<'_>) -> Frame {
    let reply = source.reply(rng);
    let request = Frame { source: reply.destination, destination: reply.source, ..reply };
    error(rng, request)
}

/// An ICMP error to the sender of `about`.
fn error(rng: &mut Rng, mut about: Frame) -> Frame {
    let v4 = about.source.is_ipv4();
    if once_in(rng, 8) {
        let (offset, more) = (one_of(rng, &[0, 1, 185]), rng.bool());
        if v4 {
            (about.fragment_offset, about.more_fragments) = (offset, more);
        } else {
            about.extensions.push(fragment(offset, more, rng.u32(..500)));
        }
    }
    let mut quote = about.packet();
    match rng.u32(..4) {
        0 => {}
        1 => quote.truncate(rng.usize(..=quote.len())),
        // Old routers quote only the headers and eight bytes.
        2 => quote.truncate(about.options.len() + if v4 { 28 } else { 48 }),
        _ => quote.truncate(rng.usize(..60)),
    }
    quote.truncate(1200);
    let kinds: &[u8] = if v4 { &[3, 3, 3, 11, 12] } else { &[1, 2, 3, 4] };
    let transport = Transport::Icmp(one_of(rng, kinds), rng.u8(..6), [0, 0, rng.u8(..), rng.u8(..)]);
    let router = if once_in(rng, 4) { about.destination.ip() } else { clients::address(rng, v4) };
    // In rare cases, the error goes to a host other than the sender of the quoted packet.
    let to = if once_in(rng, 30) { clients::address(rng, v4) } else { about.source.ip() };
    message(rng, router, to, transport, quote)
}

/// An echo request to a VIP or to an address of another host.
pub(super) fn echo(rng: &mut Rng, source: &Source<'_>) -> Frame {
    let vip = source.listener(rng).1.address;
    let to = if once_in(rng, 6) { clients::address(rng, vip.is_ipv4()) } else { vip };
    let kind = if vip.is_ipv4() { 8 } else { 128 };
    let payload = rng.usize(..100);
    let transport = Transport::Icmp(kind, if once_in(rng, 8) { rng.u8(..) } else { 0 }, [rng.u8(..), 0, 0, 1]);
    let payload = bytes(rng, payload);
    let from = clients::address(rng, vip.is_ipv4());
    message(rng, from, to, transport, payload)
}

/// An ICMP message of a random type, or a fragment of an echo request.
pub(super) fn other(rng: &mut Rng, source: &Source<'_>) -> Frame {
    let mut frame = echo(rng, source);
    if rng.bool() {
        frame.transport = Transport::Icmp(rng.u8(..), rng.u8(..), [0; 4]);
    } else {
        frame.more_fragments = true;
    }
    frame
}

fn message(rng: &mut Rng, from: IpAddr, to: IpAddr, transport: Transport, payload: Vec<u8>) -> Frame {
    let (source, destination) = (SocketAddr::new(from, 0), SocketAddr::new(to, 0));
    Frame { source, destination, payload, ..dressed(rng, from, transport) }
}
