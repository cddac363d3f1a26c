//! Renders a snapshot in Prometheus' text format. Label values are names from the configuration, and never the
//! addresses of clients.

use balancer_control::{run_time::What, snapshot::Snapshot};

use super::{
    backends, fleet, host, services,
    text::{Text, gauges},
};

/// Renders `snapshot` as text; every metric name has the prefix `balancer_`. The function passes each full piece of the
/// text to `full`, and returns the last piece.
pub fn render(snapshot: &Snapshot, full: &mut dyn FnMut(String)) -> String {
    let mut text = Text::new(full);
    let encoder = &mut text;
    host::build(encoder);
    host::interfaces(encoder, snapshot);
    host::client_table(encoder, &snapshot.memory);
    if let Some(flows) = &snapshot.flows {
        host::flow_table(encoder, flows);
    }
    host::member(encoder, &snapshot.member);
    let changed = |what| snapshot.changed.iter().filter(|change| change.what == what).count() as u64;
    gauges(
        encoder,
        "changed_at_run_time",
        "What is not as the configuration file says, because it was changed at run time.",
        What::ALL.into_iter().map(|what| ([("what", what.word())], changed(what))),
    );
    if let Some(of) = &snapshot.fleet {
        fleet::render(encoder, of, &snapshot.services);
    }
    services::services(encoder, &snapshot.services);
    services::heavy(encoder, &snapshot.services);
    let backends = backends::backends(&snapshot.services);
    backends::traffic(encoder, &snapshot.services, &backends);
    backends::health(encoder, &backends);
    text.end()
}
