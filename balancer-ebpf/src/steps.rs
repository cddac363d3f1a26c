//! The steps that only few packets need. Each step is a global function: the verifier checks it once, and its stack
//! does not add to that of the other steps.

use aya_ebpf::bindings::xdp_md;

use crate::{
    flows,
    forward::{self, encapsulate, nat, sockets},
    found::Found,
    icmp::{self, too_big},
    ingress::Ingress,
    memory, quic, rare, reject, share,
    step::{
        Encapsulate, ErrorToBackend, ErrorToClient, FlowCross, FlowCrossError, FlowError, FlowPart, FlowPort,
        FlowReturn, FlowThere, IcmpError, Kind, OpenFlow, Packed, Payload, Quic, QuicNamed, Reject, Step, ToBackend,
        ToClient, Watch,
    },
};

/// Declares the step functions and the function that runs them. Each step is a global function. Each step function
/// takes the frame in one of four forms (`Ingress`: as it arrived; `Found`: with its layer-4 header; `Plain`: like
/// `Found`, but faster for most packets; `Again`: like `Found`, after a step that has found the header) and, with
/// `packed`, the step's [`Payload`] as [`Packed`]. The function in the first line runs the steps in the order of their
/// declaration; each step leads only to later steps.
macro_rules! steps {
    ($take:ident: $($kind:ident => $global:ident($frame:ident $(, $packed:ident)?) $run:path;)*) => {
        $(
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $global(context: *mut xdp_md $(, $packed: u64)?) -> u64 {
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
    (@run $ingress:ident, Again, $run:path $(, $packed:expr)?) => {
        match Found::again($ingress) {
            Some(found) => $run(&found $(, $packed)?),
            None => Step::PASS,
        }
    };
    (@run $ingress:ident, Plain, $run:path $(, $packed:expr)?) => {
        match Found::plain($ingress) {
            Some(found) => $run(&found $(, $packed)?),
            None => Step::PASS,
        }
    };
    (@run $ingress:ident, Found, $run:path) => {
        match Found::of($ingress) {
            Some(found) => $run(&found),
            None => Step::PASS,
        }
    };
    (@run $ingress:ident, Found, $run:path, $packed:expr) => {
        match Found::of($ingress) {
            Some(found) => $run(&found, $packed),
            None => $packed.get().given_up(),
        }
    };
}

steps! {
    look:
    Rare => balancer_rare(Ingress) rare::decide;
    Icmp => balancer_icmp(Found) icmp::decide;
    Flow => balancer_flow(Plain) flows::find::decide;
    FlowNew => balancer_flow_new(Again) flows::open::choose;
    Quic => balancer_quic(Plain, packed) quic::read;
    QuicServer => balancer_quic_server(Ingress) quic::find;
    QuicNamed => balancer_quic_named(Again, packed) quic::choose;
}

steps! {
    act:
    OpenFlow => balancer_open_flow(Again, packed) flows::open::begin;
    FlowPort => balancer_flow_ports(Ingress, packed) flows::ports::find;
    FlowThere => balancer_flow_there(Again, packed) flows::there::send;
    FlowBack => balancer_flow_back(Plain) flows::back::decide;
    FlowReturn => balancer_flow_return(Again, packed) flows::back::to_client;
    FlowPart => balancer_flow_part(Again, packed) flows::parts::send;
    FlowError => balancer_flow_error(Again, packed) flows::errors::send;
    FlowCross => balancer_flow_cross(Again, packed) flows::families::send;
    FlowCrossError => balancer_flow_cross_error(Again, packed) flows::families::send_error;
    ToBackend => balancer_to_backend(Again, packed) forward::any_to_backend;
    ErrorToBackend => balancer_error_to_backend(Found, packed) forward::error_to_backend;
    ToClient => balancer_to_client(Found, packed) nat::to_client;
    ErrorToClient => balancer_error_to_client(Found, packed) nat::error_to_client;
    Watch => balancer_watched(Found, packed) forward::watch;
    Own => balancer_own(Ingress) sockets::pass;
    Encapsulate => balancer_encapsulate(Ingress, packed) encapsulate::to_backend;
    Reject => balancer_reject(Found, packed) reject::answer;
    IcmpError => balancer_icmp_error(Found, packed) too_big::answer;
}

/// Continues with the step `next`, unless the connection belongs to the host.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn balancer_unless_hosts(context: *mut xdp_md, next: u64) -> u64 {
    // SAFETY: `take` passes the program's context.
    share::decide(unsafe { Ingress::new(context) }, Step::of_word(next)).word()
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
    if step.is(Kind::Consult) {
        let (next, note) = memory::resume();
        if note != 0 {
            quic::note(note);
        }
        step = next;
    }
    act(ingress, step)
}
