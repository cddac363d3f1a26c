//! The time stamps of TCP segments (RFC 7323). The program reads only those of a client's SYN and FIN.

use aya_ebpf::bindings::xdp_md;
use balancer_common::{
    features::Features,
    flows::{Numbers, Segment},
};

use crate::{
    features,
    ingress::Ingress,
    parse::{self, Ip, SYN},
};

/// The kind and the length of the option with the time stamp.
const OPTION: [u8; 2] = [8, 10];
/// The places of the option in a SYN: Linux writes the segment size and SACK before it, other systems also the window
/// scale.
const IN_SYN: [usize; 2] = [26, 30];
/// The place of the option in other segments, behind two bytes of padding (RFC 7323, appendix A).
const IN_OTHERS: usize = 22;

/// What a packet of a client says about its flow, with the time stamp of a SYN or FIN.
#[inline(always)]
pub(super) fn segment(ingress: Ingress, ip: &Ip<'_>) -> Segment {
    let segment = parse::segment(ip, true);
    if segment.fin || segment.syn {
        Segment { stamp: balancer_flow_stamp(ingress.context(), ip.place()) as u32, ..segment }
    } else {
        segment
    }
}

/// The numbers of a flow that a packet opens.
#[inline(always)]
pub(super) fn opening(ingress: Ingress, ip: &Ip<'_>) -> Numbers {
    let numbers = balancer_flow_numbers(ingress.context(), ip.place());
    Numbers { next: numbers as u32, other: (numbers >> 32) as u32 }
}

/// This is a global function, so that its stack does not add to that of the search for a row.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_numbers(context: *mut xdp_md, place: u64) -> u64 {
    // Old kernels verify functions that nothing calls.
    if !features::uses(Features::SNAT) {
        return 0;
    }
    // SAFETY: `opening` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    let Some(ip) = Ip::placed(ingress.frame(), place) else { return 0 };
    let Numbers { next, other } = segment(ingress, &ip).opening();
    u64::from(next) | u64::from(other) << 32
}

/// The time stamp of a segment, or 0. This is a global function, so the verifier checks it only once.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_flow_stamp(context: *mut xdp_md, place: u64) -> u64 {
    // Old kernels verify functions that nothing calls.
    if !features::uses(Features::SNAT) {
        return 0;
    }
    // SAFETY: `segment` passes the program's context.
    let ingress = unsafe { Ingress::new(context) };
    Ip::placed(ingress.frame(), place).and_then(|ip| of(&ip)).map_or(0, u64::from)
}

#[inline(always)]
fn of(ip: &Ip<'_>) -> Option<u32> {
    const CONTROL: usize = 12;
    let [offset, flags]: [u8; 2] = ip.l4.load(CONTROL)?;
    let end = usize::from(offset >> 4) * 4;
    let at = |place: usize| {
        let [kind, length, stamp @ ..]: [u8; 6] = ip.l4.load(place)?;
        let is_stamp = [kind, length] == OPTION && place + usize::from(OPTION[1]) <= end;
        is_stamp.then_some(u32::from_be_bytes(stamp))
    };
    if flags & SYN == 0 {
        return at(IN_OTHERS);
    }
    let [first, second] = IN_SYN;
    at(first).or_else(|| at(second))
}
