//! Provides the facts about services and backends that a trace needs.

use std::collections::BTreeSet;

use balancer_api::trace::{BeginTrace, HopView, LEAST_SNAPLEN, MOST_SNAPLEN};
use balancer_config::value;
use balancer_control::{
    io::{BackendSpec, Refused},
    service::Service,
};
use balancer_dataplane::{Dataplane, telling::Filter};

use super::Owner;

impl<D: Dataplane> Owner<D> {
    /// Makes the filter that selects the packets to trace.
    ///
    /// # Errors
    /// Fails if the service does not exist, or if the client or the length is invalid.
    pub fn trace_filter(&self, wanted: &BeginTrace) -> Result<Filter, Refused> {
        let BeginTrace { service, client, snaplen } = wanted;
        if let Some(name) = service {
            self.controller.service(name)?;
        }
        if !(LEAST_SNAPLEN..=MOST_SNAPLEN).contains(snaplen) {
            return Err(Refused::Invalid(format!("snaplen is {snaplen}; give {LEAST_SNAPLEN} to {MOST_SNAPLEN}")));
        }
        let client = client.as_deref().map(value::prefix).transpose().map_err(Refused::Invalid)?;
        let asked = |of: &&Service| service.as_ref().is_none_or(|name| of.name() == name);
        let services = self.controller.services().iter().filter(asked);
        let vips: BTreeSet<_> = services.flat_map(|of| of.listeners().map(|(at, _)| at.address)).collect();
        Ok(Filter { client, vips, only_vips: service.is_some(), snaplen: *snaplen })
    }

    /// The paths to all backends.
    #[must_use]
    pub fn hops(&self) -> Vec<HopView> {
        self.controller.rows().map(|(row, present)| hop(&row, present)).collect()
    }
}

fn hop(row: &BackendSpec, in_use: bool) -> HopView {
    let sent = row.next_hop.filter(|hop| !hop.local);
    HopView {
        id: row.id.0,
        address: row.address.ip(),
        port: (row.address.port() != 0).then_some(row.address.port()),
        ifindex: sent.map(|hop| hop.ifindex),
        mac: sent.map(|hop| hop.destination_mac.map(|byte| format!("{byte:02x}")).join(":")),
        in_use,
    }
}
