//! Metrics of the balancer as a whole: interfaces, tables and readiness.

use balancer_common::verdict::{DropReason, Verdict};
use balancer_control::{
    readiness::Fitness,
    snapshot::{FlowsSnapshot, MemberSnapshot, MemorySnapshot, Snapshot},
};

use super::text::{Text, counters, gauges};

pub(super) fn build(encoder: &mut Text<'_>) {
    let labels = [("version", env!("CARGO_PKG_VERSION"))];
    gauges(encoder, "build_info", "The running program.", std::iter::once((labels, 1u32)));
}

pub(super) fn interfaces(encoder: &mut Text<'_>, snapshot: &Snapshot) {
    gauges(
        encoder,
        "xdp_mode",
        "The XDP mode that the program is attached in.",
        snapshot.interfaces.iter().map(|i| ([("interface", i.name.as_str()), ("mode", i.xdp_mode)], 1u32)),
    );
    counters(
        encoder,
        "packets_seen",
        "Packets by what became of them.",
        snapshot.interfaces.iter().flat_map(|i| {
            Verdict::ALL.iter().map(|&verdict| {
                let labels = [("interface", i.name.as_str()), ("verdict", verdict.label())];
                (labels, i.stats.verdicts[verdict.index()])
            })
        }),
    );
    counters(
        encoder,
        "drops",
        "Packets dropped, by reason.",
        DropReason::ALL.iter().map(|&reason| ([("reason", reason.label())], snapshot.drops.reasons[reason.index()])),
    );
    counters(
        encoder,
        "redirect_errors",
        "Frames that were redirected to an interface and not sent.",
        snapshot.redirect_errors.iter().map(|(interface, &frames)| ([("interface", interface.as_str())], frames)),
    );
    let replies = [
        ("echo", snapshot.replies.echo),
        ("too_big", snapshot.replies.too_big),
        ("rejected", snapshot.replies.rejected),
    ];
    counters(
        encoder,
        "replies",
        "Packets answered by the program itself: pings to a VIP, packets too big for their way, and what nobody takes.",
        replies.into_iter().map(|(kind, count)| ([("kind", kind)], count)),
    );
    counters(
        encoder,
        "fragments_not_remembered",
        "First fragments forwarded without a note of where to, as too many came at once.",
        std::iter::once(([], snapshot.replies.fragments_not_remembered)),
    );
}

/// Writes whether this balancer is ready, whether it is withdrawn, and how many VIPs it has.
pub(super) fn member(encoder: &mut Text<'_>, member: &MemberSnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    let serves = u64::from(member.readiness.state.serves());
    gauges(encoder, "ready", "Whether it is fit to be sent clients: 1 ready or degraded, 0 not ready.", one(serves));
    let degraded = u64::from(member.readiness.state == Fitness::Degraded);
    gauges(encoder, "degraded", "Whether it steers, but somebody should look.", one(degraded));
    let withdrawn = u64::from(member.withdrawn);
    gauges(encoder, "withdrawn", "Whether the operator has taken its VIPs away.", one(withdrawn));
    gauges(encoder, "assigned_vips", "VIPs that the machine has from the balancer.", one(member.vips.len() as u64));
    let unsaved = u64::from(member.unsaved);
    gauges(
        encoder,
        "state_unsaved",
        "Whether the state file lacks the present state, as writing it failed.",
        one(unsaved),
    );
}

pub(super) fn flow_table(encoder: &mut Text<'_>, flows: &FlowsSnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    let text = "Rows of the table of connections that are taken, by connections or by what is left of them.";
    gauges(encoder, "flow_table_entries", text, one(flows.entries));
    gauges(encoder, "flow_table_capacity", "Connections the table is made for.", one(flows.capacity));
}

pub(super) fn client_table(encoder: &mut Text<'_>, memory: &MemorySnapshot) {
    let one = |value: u64| std::iter::once(([], value));
    gauges(encoder, "client_table_entries", "Known clients at the last sweep.", one(memory.entries));
    gauges(encoder, "client_table_capacity", "Known clients the table is made for.", one(memory.capacity));
    gauges(
        encoder,
        "table_exception_slots",
        "Slots of lookup tables with known clients elsewhere, whose entries are read for every packet.",
        one(memory.exceptions),
    );
    counters(encoder, "client_table_inserts", "Clients recorded.", one(memory.stats.inserted));
    counters(
        encoder,
        "client_table_evictions",
        "Clients forgotten to make room for others.",
        one(memory.stats.evicted),
    );
    counters(encoder, "samples", "Packets sampled to find heavy clients.", one(memory.samples.sent));
    counters(encoder, "samples_lost", "Samples lost because the controller was behind.", one(memory.samples.lost));
    counters(
        encoder,
        "client_table_unrecorded",
        "Newcomers steered without being recorded, by why.",
        [("full", memory.stats.full), ("limited", memory.stats.limited)]
            .into_iter()
            .map(|(reason, count)| ([("reason", reason)], count)),
    )
}
