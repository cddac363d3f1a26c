//! Rewrites both endpoints of a flow's packet.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    checksum,
    features::Features,
    map_types::{FAMILY_V4, FlowRow},
};
use network_types::ip::Ipv4Hdr;

use crate::{
    features,
    flows::table::Flow,
    forward::rewrite::{self, End, Translation},
    ingress::Ingress,
    parse::Ip,
    step::Toward,
};

/// An endpoint as the other end of the connection sees it, in network order.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) address: &'a [u32; 4],
    pub(super) port: u16,
}

/// The new source and new destination of a flow's packet in this direction.
#[inline(always)]
pub(super) const fn ends(row: &FlowRow, toward: Toward) -> [Place<'_>; 2] {
    match toward {
        Toward::Backend => {
            [Place { address: &row.pool, port: row.pool_port }, Place { address: &row.backend, port: row.backend_port }]
        }
        Toward::Client => {
            [Place { address: &row.vip, port: row.vip_port }, Place { address: &row.client, port: row.client_port }]
        }
    }
}

/// The family of a flow's packets in this direction.
#[inline(always)]
pub(super) const fn family(row: &FlowRow, toward: Toward) -> u8 {
    match toward {
        Toward::Backend => row.backend_family(),
        Toward::Client => row.family,
    }
}

/// The amounts that a flow's translation adds to complemented checksums, folded to 16 bits.
pub(super) struct Deltas {
    pub(super) addresses: u16,
    pub(super) all: u16,
}

/// The checksum differences of a flow's row: for packets to the backend first, then for packets to the client.
#[inline(always)]
pub(super) fn deltas(row: &FlowRow) -> [Deltas; 2] {
    let old = checksum::sum_address(&row.client) + checksum::sum_address(&row.vip);
    let new = checksum::sum_address(&row.pool) + checksum::sum_address(&row.backend);
    let ports = |one: u16, other: u16| u64::from(one) + u64::from(other);
    let old_ports = ports(row.client_port, row.vip_port);
    let new_ports = ports(row.pool_port, row.backend_port);
    [delta(old, new, old_ports, new_ports), delta(new, old, new_ports, old_ports)]
}

/// The complements of the old 16-bit words add up to a multiple of 0xffff minus the sum of these words.
#[inline(always)]
fn delta(old: u64, new: u64, old_ports: u64, new_ports: u64) -> Deltas {
    const COMPLEMENT: u64 = 0xffff * 64;
    Deltas {
        addresses: checksum::fold(COMPLEMENT + new - old),
        all: checksum::fold(COMPLEMENT + new + new_ports - old - old_ports),
    }
}

/// Replaces both endpoints of a flow's packet and lowers the packet's TTL by one. `false`: a header is missing, or the
/// row now belongs to another flow. If the call fails, the packet may be half rewritten.
#[inline(always)]
#[must_use]
pub(super) fn rewrite(ingress: Ingress, ip: &Ip<'_>, flow: &Flow, toward: Toward) -> bool {
    if toward == Toward::Backend
        && ip.fragment.is_part()
        && ip.family == FAMILY_V4
        && balancer_flow_identify(ingress.context(), flow.row().pool_port.into(), ip.place()) == 0
    {
        return false;
    }
    let which = u64::from(flow.name()) | u64::from(toward == Toward::Client) << 32;
    balancer_flow_rewrite(ingress.context(), which, ip.place()) != 0
}

/// Changes the identification of an IPv4 fragment by the flow's port of the pool, so that a backend does not put
/// together fragments of two clients that have the same identification. Returns 1 on success. This is a global function
/// for the same reason as `balancer_flow_rewrite`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_identify(context: *mut xdp_md, port: u64, place: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    // SAFETY: `rewrite` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    u64::from(Ip::placed(ingress.frame(), place).and_then(|ip| identify(&ip, port as u16)).is_some())
}

#[inline(always)]
fn identify(ip: &Ip<'_>, port: u16) -> Option<()> {
    const ID: usize = offset_of!(Ipv4Hdr, id);
    const CHECK: usize = offset_of!(Ipv4Hdr, check);
    let (old, check): (u16, u16) = (ip.header.load(ID)?, ip.header.load(CHECK)?);
    let new = old ^ port;
    ip.header.store(ID, new)?;
    ip.header.store(CHECK, checksum::apply(check, checksum::replace_u16(old, new)))
}

/// This is a global function, so the verifier checks it only once, and its stack does not add to that of its callers.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_rewrite(context: *mut xdp_md, which: u64, place: u64) -> u64 {
    if !features::uses(Features::SNAT) {
        return 0;
    }
    // SAFETY: `rewrite` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    let Some(flow) = Flow::named(which as u32) else { return 0 };
    let toward = if which >> 32 == 0 { Toward::Backend } else { Toward::Client };
    let written = Ip::placed(ingress.frame(), place).and_then(|ip| translate(&ip, flow.row(), toward));
    u64::from(written.is_some() && flow.is_still())
}

#[inline(always)]
pub(super) fn translate(ip: &Ip<'_>, row: &FlowRow, toward: Toward) -> Option<()> {
    let addresses = match toward {
        Toward::Backend => row.there_addresses,
        Toward::Client => row.back_addresses,
    };
    let [from, to] = ends(row, toward);
    addresses_of(ip, from, to, addresses.into())?;
    if ip.fragment.is_later() { Some(()) } else { ports_of(ip, row, toward) }
}

/// Replaces both ports of a flow's packet.
#[inline(always)]
pub(super) fn ports_of(ip: &Ip<'_>, row: &FlowRow, toward: Toward) -> Option<()> {
    let [from, to] = ends(row, toward);
    ip.l4.store(0, u32::from(from.port) | u32::from(to.port) << 16)?;
    rewrite::translate_l4(ip, End::Source, None, all(row, toward).into())
}

/// The amount that the translation in this direction adds to the complemented checksum of TCP or UDP.
#[inline(always)]
pub(super) const fn all(row: &FlowRow, toward: Toward) -> u16 {
    match toward {
        Toward::Backend => row.there_all,
        Toward::Client => row.back_all,
    }
}

/// Replaces both addresses of the IP header and lowers the TTL by one.
#[inline(always)]
fn addresses_of(ip: &Ip<'_>, from: Place<'_>, to: Place<'_>, delta: u64) -> Option<()> {
    rewrite::translate_ip(ip, End::Source, from.address, delta)?;
    rewrite::address(ip, End::Destination, to.address)
}

/// Replaces the addresses of an ICMP error about a flow's packet, so that the sender of this packet recognizes the
/// error.
#[inline(always)]
#[must_use]
pub(super) fn translate_error(ip: &Ip<'_>, inner: &Ip<'_>, row: &FlowRow, toward: Toward) -> Option<()> {
    let [from, to] = ends(row, toward);
    let outer = rewrite::leaving(ip, End::Source)?
        + rewrite::leaving(ip, End::Destination)?
        + checksum::sum_address(from.address)
        + checksum::sum_address(to.address);
    addresses_of(ip, from, to, outer)?;
    // The quoted packet travelled in the opposite direction: its source is the error's destination.
    let later = inner.fragment.is_later();
    let source = translation(inner, End::Source, to, if later { 0 } else { inner.l4.load(0)? })?;
    rewrite::translate_quoted(ip, inner, outer, &source)?;
    let destination = translation(inner, End::Destination, from, if later { 0 } else { inner.l4.load(2)? })?;
    rewrite::translate_quoted(ip, inner, 0, &destination)
}

#[inline(always)]
fn translation(inner: &Ip<'_>, end: End, new: Place<'_>, old_port: u16) -> Option<Translation> {
    let delta = rewrite::leaving(inner, end)? + checksum::sum_address(new.address);
    Some(Translation {
        end,
        address: *new.address,
        port: Some(new.port),
        address_delta: delta,
        l4_delta: delta + checksum::replace_u16(old_port, new.port),
    })
}
