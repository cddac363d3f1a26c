//! Forgets known clients on request: a single client, or all clients of a backend.

use balancer_api::model::{ClientQuery, ForgottenView};
use balancer_common::{
    map_types::BackendStats,
    verdict::{CauseIndex, MoveCause},
};
use balancer_config::{listeners::Family, names::BackendName, words::grouped};
use balancer_control::{
    io::{BackendId, Refused, ServiceId},
    service::Service,
};
use balancer_dataplane::{Dataplane, Forgotten};
use balancer_runtime::events::Events;
use tokio::time::Instant;

use super::Owner;

/// A pass over the client table that forgets a backend's clients.
#[derive(Debug)]
pub struct Forgetting {
    /// The services to scan, one for each address family, each with the id of the backend.
    parts: Vec<(ServiceId, BackendId)>,
    name: BackendName,
    uid: Option<u32>,
    /// The position in the client table at which the scan for the last of these services continues.
    next: usize,
    sum: Forgotten,
}

impl<D: Dataplane> Owner<D> {
    /// Forgets a client in the requested service, or in every service that remembers clients.
    ///
    /// # Errors
    /// Fails if the requested service does not exist, or if no service remembers clients.
    pub fn forget(&mut self, query: &ClientQuery, uid: Option<u32>) -> Result<ForgottenView, Refused> {
        let located = self.controller.locate(query.address, query.service.as_deref())?;
        let address = query.address.to_canonical();
        let services = located.iter().filter_map(|client| self.controller.leg(&client.service, Family::of(address)));
        let remembering: Vec<ServiceId> = services.filter(|service| service.remembers()).map(Service::id).collect();
        if remembering.is_empty() {
            let names: Vec<&str> = located.iter().map(|client| client.service.as_str()).collect();
            return Err(remembers_nobody(&names.join(", ")));
        }
        let mut sum = Forgotten::default();
        for service in remembering {
            let known = self.dataplane.client(service, address);
            let forgotten = self.dataplane.forget(service, address);
            if let Some(name) = known.and_then(|known| self.controller.name_of(known.backend)).map(str::to_owned) {
                self.count_forgotten(service, name, forgotten.moved);
            }
            sum.clients += forgotten.clients;
            sum.moved += forgotten.moved;
        }
        Ok(forgotten_view(&self.events, &format!("client {address}"), None, sum, uid))
    }

    /// Starts to forget the clients of a backend, which [`Owner::forget_more`] continues.
    ///
    /// # Errors
    /// Fails if the backend does not exist, or if its service remembers no clients.
    pub fn forget_all(&self, name: BackendName, uid: Option<u32>) -> Result<Forgetting, Refused> {
        self.controller.backend(&name)?;
        if !self.controller.service(&name.service)?.remembers() {
            return Err(remembers_nobody(&name.service));
        }
        let parts = self.controller.legs(&name.service).flat_map(|service| {
            let backends = service.backends().iter().filter(|backend| backend.name() == name.backend);
            backends.map(|backend| (service.id(), backend.id()))
        });
        Ok(Forgetting { parts: parts.collect(), name, uid, next: 0, sum: Forgotten::default() })
    }

    /// Forgets the backend's clients in the next section of the client table. The function returns `Some` after the
    /// last section.
    pub fn forget_more(&mut self, forgetting: &mut Forgetting) -> Option<ForgottenView> {
        let Forgetting { parts, name, uid, next, sum } = forgetting;
        if let Some(&(service, backend)) = parts.last() {
            let (part, following) = self.dataplane.forget_all(backend, *next);
            self.count_forgotten(service, name.backend.clone(), part.moved);
            sum.clients += part.clients;
            sum.moved += part.moved;
            *next = following.unwrap_or(0);
            if following.is_none() {
                parts.pop();
            }
        }
        match parts.last() {
            Some(_) => None,
            None => Some(forgotten_view(&self.events, &format!("backend {name}"), Some(name), *sum, *uid)),
        }
    }

    /// Counts the moves of forgotten clients immediately, because later packets cannot show that their client was known
    /// at another backend.
    pub(super) fn count_forgotten(&mut self, service: ServiceId, backend: String, moved: u64) {
        if moved > 0 {
            let mut stats = BackendStats::default();
            if let Some(count) = stats.moves.get_mut(CauseIndex::from(MoveCause::Forgotten).counter()) {
                *count = moved;
            }
            self.removed_backends.add(service, backend, &stats, Instant::now().into_std());
        }
    }
}

fn remembers_nobody(services: &str) -> Refused {
    Refused::Conflict(format!("no client to forget: {services} has no memory of clients (remember = \"0s\")"))
}

fn forgotten_view(
    events: &Events,
    whose: &str,
    about: Option<&BackendName>,
    Forgotten { clients, moved }: Forgotten,
    uid: Option<u32>,
) -> ForgottenView {
    let (known, go) = (grouped(clients), grouped(moved));
    let message = format!("{whose}: {known} known clients forgotten, {go} of them go elsewhere now");
    events.change(about, &message, uid, None);
    ForgottenView { message, forgotten: clients, moved }
}
