//! Lists the connections of `snat` services.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use balancer_api::model::FlowView;
use balancer_control::io::{BackendId, ServiceId};
use balancer_dataplane::{FlowTable, KnownFlow};

/// A flow table, with the names of services and backends for listing the connections.
#[derive(Clone, Default)]
pub struct FlowLook {
    /// The flow table of `snat` services; `None` if no flow table exists.
    pub table: Option<Arc<FlowTable>>,
    /// The requested services; a service with both address families has two entries.
    pub services: Vec<(ServiceId, String)>,
    pub backends: HashMap<BackendId, String>,
}

impl fmt::Debug for FlowLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowLook").field("services", &self.services).finish_non_exhaustive()
    }
}

impl FlowLook {
    /// Lists up to `most` connections, of all clients or of one client. The function reads the whole flow table.
    pub fn list(&self, client: Option<IpAddr>, most: usize) -> Vec<FlowView> {
        let wanted = |flow: &KnownFlow| client.is_none_or(|client| flow.client.ip() == client);
        let mut found = Vec::new();
        let Some(table) = &self.table else { return found };
        for (id, name) in &self.services {
            let flows = table.list(*id, wanted, most - found.len());
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
