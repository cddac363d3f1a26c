//! The metrics of a fleet in the text format of Prometheus.

use balancer_common::verdict::{CauseIndex, MoveCause};
use balancer_control::{fleet::FleetSnapshot, snapshot::ServiceSnapshot};

use super::text::{Text, counters, gauges};

/// The states that members report about themselves.
const STATES: [&str; 4] = ["ready", "degraded", "not_ready", "withdrawn"];

pub(super) fn render(encoder: &mut Text<'_>, fleet: &FleetSnapshot, services: &[ServiceSnapshot]) {
    members(encoder, fleet);
    records(encoder, fleet);
    counters(
        encoder,
        "fleet_moves_repeated",
        "Moves counted here that another member counts as well: to be taken from the sum over members.",
        services.iter().flat_map(|service| {
            MoveCause::ALL.iter().map(move |&cause| {
                let labels = [("service", service.name.as_str()), ("cause", cause.label())];
                (labels, service.repeated_moves[CauseIndex::from(cause).counter()])
            })
        }),
    );
    engine(encoder, fleet);
}

fn members(encoder: &mut Text<'_>, fleet: &FleetSnapshot) {
    let epoch = fleet.epoch.into_iter().map(|epoch| ([], epoch));
    gauges(encoder, "fleet_epoch", "The epoch that is applied here.", epoch);
    let in_state = |state: &str| fleet.members.iter().filter(|member| member.ready == state).count();
    let members = STATES.iter().map(|&state| ([("state", state)], in_state(state)));
    gauges(encoder, "fleet_members", "Members by what they say of themselves.", members);
    let lags = fleet.members.iter().map(|member| ([("member", member.name.as_str())], member.lag_seconds));
    gauges(encoder, "fleet_lag_seconds", "How long a member has not applied the epoch that holds.", lags);
    let clocks = fleet
        .members
        .iter()
        .filter_map(|member| Some(([("member", member.name.as_str())], member.clock_ahead_seconds?)));
    gauges(encoder, "fleet_clock_ahead_seconds", "How far a member's clock is ahead of this one's.", clocks);
    let commit = fleet.commit_seconds.into_iter().map(|seconds| ([], seconds));
    gauges(encoder, "fleet_commit_seconds", "The last epoch: from its decision until it was applied here.", commit);
    let votes = fleet.votes_that_differ();
    let votes = votes.iter().filter_map(|(name, &members)| {
        let (service, backend) = name.split_once('/')?;
        Some(([("service", service), ("backend", backend)], members))
    });
    gauges(encoder, "fleet_votes_differ", "Members that see something else of a backend than the fleet holds.", votes);
}

fn records(encoder: &mut Text<'_>, fleet: &FleetSnapshot) {
    let records = &fleet.records;
    let kinds = [("told", records.told), ("taken_over", records.taken_over)];
    let kinds = kinds.into_iter().map(|(kind, count)| ([("kind", kind)], count));
    counters(encoder, "fleet_records", "Records of clients that members have exchanged.", kinds);
    let dropped = records.dropped.iter().map(|(reason, &count)| ([("reason", reason.as_str())], count));
    counters(encoder, "fleet_records_dropped", "Records of other members that were not taken over.", dropped);
    let conflicts = std::iter::once(([], records.conflicts));
    counters(encoder, "fleet_conflicts", "Clients that were found at two backends.", conflicts);
}

fn engine(encoder: &mut Text<'_>, fleet: &FleetSnapshot) {
    let reachable = std::iter::once(([], u64::from(fleet.engine.reachable)));
    gauges(encoder, "fleet_engine_reachable", "Whether etcd can be used.", reachable);
    let writable = std::iter::once(([], u64::from(fleet.engine.denial.is_none())));
    gauges(encoder, "fleet_engine_writable", "Whether etcd takes writes, as far as is known.", writable);
    let size = std::iter::once(([], fleet.engine.database_bytes));
    gauges(encoder, "fleet_engine_database_bytes", "What etcd's database takes on disk.", size);
    let quota = fleet.engine.database_quota_bytes.into_iter().map(|quota| ([], quota));
    gauges(encoder, "fleet_engine_database_quota_bytes", "How large etcd's database may become.", quota);
    let bytes = [("sent", fleet.engine.bytes_sent), ("received", fleet.engine.bytes_received)];
    let bytes = bytes.into_iter().map(|(direction, count)| ([("direction", direction)], count));
    counters(encoder, "fleet_engine_bytes", "Bytes to and from etcd.", bytes);
}
