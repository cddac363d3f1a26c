//! A backend that is this machine: the program passes its packets to the host.

use aya_ebpf::{macros::map, maps::HashMap};
use balancer_common::{
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
    stats,
    step::{Carries, Choice, Step},
};

/// The `dsr` backends of services of which this machine is also a backend, with [`peer`] as the key; the value is this
/// machine's backend id.
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
    }
    Ok(passed(found, backend, choice, Sender::Client { added: 0 }))
}

/// Passes a packet that came from another balancer, which is a backend of the same service. If this balancer sent the
/// packet on, two balancers that disagree could send it back and forth forever. `None`: the packet comes from a client.
#[inline(always)]
pub(super) fn from_peer(found: &Found, chosen: Reachable, choice: Choice) -> Option<Step> {
    if control::words()?.flags & CONTROL_PEERS == 0 {
        return None;
    }
    let sender: u64 = found.frame.load(size_of::<Mac>())?;
    // SAFETY: a map value of one word.
    let local = unsafe { PEERS.get_ptr(peer(sender, chosen.service))?.read_volatile() } as u16;
    let choice = Choice { backend: local, ..choice };
    Some(passed(found, reachable(local)?, choice, Sender::Client { added: 0 }))
}

/// Passes a packet to this machine and counts it. The program also counts it as passed, so that its last part need not
/// treat these packets separately; the controller subtracts them.
#[inline(always)]
pub(super) fn passed(found: &Found, backend: Reachable, choice: Choice, sender: Sender) -> Step {
    sent::count(found.ingress, &found.ip, backend, choice, sender);
    stats::count_verdict(found.ingress.row(), Verdict::Local);
    Step::PASS
}
