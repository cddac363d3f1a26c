//! Packets of a backend that is this machine: the program passes such packets to the host.

use aya_ebpf::{macros::map, maps::HashMap};
use balancer_common::{
    direct::Event,
    map_types::{CONTROL_PEERS, Forwarding, MAX_PEERS, Mac, peer},
    verdict::Verdict,
};

use crate::{
    backends::{Reachable, reachable},
    control,
    forward::{
        nat,
        sent::{self, Sender},
    },
    found::Found,
    own_connections,
    parse::TCP,
    stats,
    step::{Carries, Choice, Step},
};

/// The `dsr` and `nat` backends of services of which this machine is also a backend, by the key that [`peer`] makes; each
/// value is this machine's backend id.
#[map]
static PEERS: HashMap<u64, u32> = HashMap::with_max_entries(MAX_PEERS, 0);

/// Passes a packet to this machine, which is the backend chosen for its client.
#[inline(always)]
pub(super) fn pass(
    found: &Found,
    backend: Reachable,
    choice: Choice,
    carries: Carries,
    port: u16,
) -> Result<Step, Step> {
    if backend.row.mode() != Forwarding::Dsr as u8 {
        nat::to_this_machine(&found.ip, carries, backend, port).map_err(Step::drop)?;
        if carries == Carries::Header && own_connections::may_exist() {
            let event = if found.ip.protocol == TCP { Event::Segment } else { Event::Datagram };
            own_connections::arrives(found.ingress, event);
        }
    }
    Ok(passed(found, backend, choice, Sender::Client { added: 0 }))
}

/// Passes a packet that another balancer sent; the other balancer is also a backend of the service. If this balancer
/// forwarded the packet again, two balancers that disagree could send the packet back and forth forever. `None`: the
/// packet comes from a client.
#[inline(always)]
pub(super) fn from_peer(found: &Found, chosen: Reachable, choice: Choice) -> Option<Step> {
    let local = peers_choice(found, chosen.service)?;
    let choice = Choice { backend: local, ..choice };
    Some(passed(found, reachable(local)?, choice, Sender::Client { added: 0 }))
}

/// The id of this machine's backend of a service, if another backend of this service has sent the packet.
#[inline(always)]
fn peers_choice(found: &Found, service: u16) -> Option<u16> {
    if control::words()?.flags & CONTROL_PEERS == 0 {
        return None;
    }
    let sender: u64 = found.frame.load(size_of::<Mac>())?;
    // SAFETY: the pointer points to a map value of one word.
    Some(unsafe { PEERS.get_ptr(peer(sender, service))?.read_volatile() } as u16)
}

/// Whether another backend of a service has sent the packet.
#[inline(always)]
pub(crate) fn is_from_peer(found: &Found, service: u16) -> bool {
    peers_choice(found, service).is_some()
}

/// Passes a packet to this machine and counts it. The program also counts the packet as passed, so that its last step
/// need not treat such packets separately; the controller subtracts these packets from the passed packets.
#[inline(always)]
pub(super) fn passed(found: &Found, backend: Reachable, choice: Choice, sender: Sender) -> Step {
    sent::count(found.ingress, &found.ip, backend, choice, sender);
    stats::count_verdict(found.ingress.row(), Verdict::Local);
    Step::PASS
}
