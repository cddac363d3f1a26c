//! The connections of `snat` services, as far as user space looks at them.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use balancer_api::model::FlowView;
use balancer_core::io::{BackendId, ServiceId};
use balancer_dataplane::{FlowTable, KnownFlow};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::call::{Call, Calls};

/// How often all are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Counts the connections again and again, and gives up the rows of those that have ended; the owner hears what there is.
pub(crate) async fn watch(table: Arc<FlowTable>, calls: Calls) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let table = Arc::clone(&table);
        let Ok(counts) = spawn_blocking(move || table.sweep()).await else { return };
        if calls.send(Call::FlowsCounted(counts)).await.is_err() {
            return;
        }
    }
}

/// What connections are listed of, and the names for it.
#[derive(Clone)]
pub struct FlowLook {
    pub(crate) table: Arc<FlowTable>,
    /// The services asked for: one for each family.
    pub(crate) services: Vec<(ServiceId, String)>,
    pub(crate) backends: HashMap<BackendId, String>,
}

impl std::fmt::Debug for FlowLook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowLook").field("services", &self.services).finish_non_exhaustive()
    }
}

impl FlowLook {
    /// The connections, of all clients or of one, at most `most`. Goes through the whole table.
    pub(crate) fn list(&self, client: Option<IpAddr>, most: usize) -> Vec<FlowView> {
        let wanted = |flow: &KnownFlow| client.is_none_or(|client| flow.client.ip() == client);
        let mut found = Vec::new();
        for (id, name) in &self.services {
            let flows = self.table.list(*id, wanted, most - found.len());
            found.extend(flows.into_iter().map(|flow| self.view(name, &flow)));
        }
        found
    }

    fn view(&self, service: &str, flow: &KnownFlow) -> FlowView {
        FlowView {
            service: service.to_owned(),
            protocol: flow.protocol.to_string(),
            client: flow.client.to_string(),
            vip: flow.vip.to_string(),
            seen_as: flow.pool.to_string(),
            backend: self.backends.get(&flow.backend).cloned().unwrap_or_else(|| "-".to_owned()),
            address: flow.at.to_string(),
            state: flow.state.to_owned(),
            age_seconds: flow.age.as_secs(),
            idle_seconds: flow.idle.as_secs(),
            bytes_to_backend: flow.bytes_to_backend,
            bytes_to_client: flow.bytes_to_client,
        }
    }
}
