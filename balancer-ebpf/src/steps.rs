//! The steps that only few packets need. Each step is a global function: the verifier checks it once, and its stack
//! does not add to that of the other steps.

use aya_ebpf::bindings::xdp_md;
use balancer_common::features::Features;

use crate::{
    direct, features, flows,
    forward::{self, encapsulate, nat, sockets},
    found::Found,
    icmp::{self, too_big},
    ingress::Ingress,
    memory, quic, rare, reject, share,
    step::{
        Encapsulate, ErrorToBackend, ErrorToClient, FlowCross, FlowCrossError, FlowError, FlowErrorBack, FlowPart,
        FlowPort, FlowReturn, FlowThere, IcmpError, Kind, OpenFlow, Packed, Payload, Quic, QuicFlow, QuicNamed, Reject,
        Step, ToBackend, ToClient, Watch,
    },
};

/// Declares the step functions and the function that runs them. Each step is a global function. A step that names
/// features exists only for configurations that use one of them. Each step function takes the frame as it arrived
/// (`Ingress`) or with the headers whose position an earlier step has stored (`Found`) and, with `packed`, the step's
/// [`Payload`] as [`Packed`]. The function in the first line runs the steps in the order of their declaration; each step
/// leads only to later steps.
macro_rules! steps {
    (
        $take:ident:
        $($([$($feature:ident)|+])? $kind:ident => $global:ident($frame:ident $(, $packed:ident)?) $run:path;)*
    ) => {
        $(
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $global(context: *mut xdp_md $(, $packed: u64)?) -> u64 {
                $(
                    if !features::any(Features::NONE$(.and(Features::$feature))+) {
                        return Step::PASS.word();
                    }
                )?
                // SAFETY: `take` passes the program's context.
                let ingress = unsafe { Ingress::new(context) };
                steps!(@run ingress, $frame, $run $(, Packed::<$kind>::of_word($packed))?).word()
            }
        )*

        #[inline(always)]
        fn $take(ingress: Ingress, first: Step) -> Step {
            let mut step = first;
            $(
                if step.is(Kind::$kind) {
                    $(let $packed = step.word();)?
                    step = Step::of_word($global(ingress.context() $(, $packed)?));
                    if step.is_last() {
                        return step;
                    }
                }
            )*
            step
        }
    };
    (@run $ingress:ident, Ingress, $run:path $(, $packed:expr)?) => { $run($ingress $(, $packed)?) };
    (@run $ingress:ident, Found, $run:path) => {
        match Found::again($ingress) {
            Some(found) => $run(&found),
            None => Step::PASS,
        }
    };
    (@run $ingress:ident, Found, $run:path, $packed:expr) => {
        match Found::again($ingress) {
            Some(found) => $run(&found, $packed),
            None => $packed.get().given_up(),
        }
    };
}

steps! {
    look:
    Rare => balancer_rare(Ingress) rare::decide;
    Part => balancer_part(Found) rare::later_fragment;
    Ported => balancer_ported(Found) rare::steered;
    Unserved => balancer_unserved(Found) rare::not_for_a_service;
    Icmp => balancer_icmp(Found) icmp::decide;
    Quote => balancer_quote(Ingress) icmp::find_quoted;
    Quoted => balancer_about_quoted(Found) icmp::about_quoted;
    [QUIC] Quic => balancer_quic(Found, packed) quic::read;
    [QUIC] QuicServer => balancer_quic_server(Ingress) quic::find;
    [QUIC] QuicFlow => balancer_quic_flow(Found, packed) flows::named::find;
    [QUIC] QuicNamed => balancer_quic_named(Found, packed) quic::choose;
    [SNAT] Flow => balancer_flow(Found) flows::find::decide;
    [SNAT] FlowNew => balancer_flow_new(Found) flows::open::choose;
}

steps! {
    act:
    [SNAT] OpenFlow => balancer_open_flow(Found, packed) flows::open::begin;
    [SNAT] FlowPort => balancer_flow_ports(Ingress, packed) flows::ports::find;
    [SNAT] FlowThere => balancer_flow_there(Found, packed) flows::there::send;
    [SNAT] FlowBack => balancer_flow_back(Found) flows::back::decide;
    [SNAT] FlowReturn => balancer_flow_return(Found, packed) flows::back::to_client;
    [SNAT] FlowPart => balancer_flow_part(Found, packed) flows::parts::send;
    [SNAT] FlowError => balancer_flow_error(Found, packed) flows::errors::to_backend;
    [SNAT] FlowErrorBack => balancer_flow_error_back(Found, packed) flows::errors::to_client;
    [CROSS] FlowCross => balancer_flow_cross(Found, packed) flows::families::send;
    [CROSS] FlowCrossError => balancer_flow_cross_error(Found, packed) flows::families::send_error;
    ToBackend => balancer_to_backend(Found, packed) forward::any_to_backend;
    ErrorToBackend => balancer_error_to_backend(Found, packed) forward::error_to_backend;
    [NAT] ToClient => balancer_to_client(Found, packed) nat::to_client;
    [NAT] ErrorToClient => balancer_error_to_client(Found, packed) nat::error_to_client;
    [SHARE] Watch => balancer_watched(Found, packed) forward::watch;
    [NAT | SNAT] Own => balancer_own(Ingress) sockets::pass;
    [LOCAL] Direct => balancer_direct_pass(Found) direct::pass;
    [TUNNEL] Encapsulate => balancer_encapsulate(Found, packed) encapsulate::to_backend;
    [REJECT | SNAT] Reject => balancer_reject(Found, packed) reject::answer;
    IcmpError => balancer_icmp_error(Found, packed) too_big::answer;
}

/// Continues with the step `next`, unless the connection belongs to the host.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_unless_hosts(context: *mut xdp_md, next: u64) -> u64 {
    let next = Step::of_word(next);
    if !features::uses(Features::SHARE) {
        return next.word();
    }
    // SAFETY: `take` passes the program's context.
    share::decide(unsafe { Ingress::new(context) }, next).word()
}

/// Runs all steps that follow from `first`.
#[inline(always)]
pub(crate) fn take(ingress: Ingress, first: Step) -> Step {
    let mut step = look(ingress, first);
    if step.is_last() {
        return step;
    }
    if let Some(next) = step.if_not_hosts() {
        step = Step::of_word(balancer_unless_hosts(ingress.context(), next.word()));
    }
    if features::uses(Features::MEMORY) && step.is(Kind::Consult) {
        let (next, note) = memory::resume();
        if note != 0 {
            quic::note(note);
        }
        step = next;
    }
    act(ingress, step)
}
