//! Imports and exports known clients.

use std::{collections::HashMap, time::Duration};

use balancer_api::model::{ImportClient, ImportedView, KnownClientView, KnownClientsView};
use balancer_config::{
    config::ClientPrefix,
    listeners::Family,
    names::BackendName,
    words::{counted, grouped},
};
use balancer_control::{
    io::{BackendId, Refused, ServiceId},
    search::{self, Found, Hashing, Sought},
    service::{Backend, Service},
};
use balancer_dataplane::{Dataplane as _, KernelDataplane, KnownClients, Learning, Learnt, Seen, Served};
use ipnet::IpNet;

use super::Owner;

/// The known clients of a service, for a search that runs in another thread.
pub struct Searching {
    service: String,
    prefixes: ClientPrefix,
    legs: Vec<(ServiceId, Hashing)>,
    /// The names of backends by their ids.
    names: HashMap<BackendId, (ServiceId, String)>,
    known: Option<KnownClients>,
}

impl Owner<KernelDataplane> {
    /// Records clients of a service at the backends that `clients` names; `served` says what becomes of clients that this
    /// balancer has served.
    ///
    /// # Errors
    /// Fails if the service or a backend does not exist, or if the service remembers no clients. After a failure, the
    /// client table is unchanged.
    pub fn import_clients(
        &mut self,
        service: &str,
        clients: &[ImportClient],
        served: Served,
        uid: Option<u32>,
    ) -> Result<ImportedView, Refused> {
        if !self.controller.service(service)?.remembers() {
            return Err(Refused::Conflict(format!(
                "service {service} has no memory of clients (remember = \"0s\"): no client can be recorded"
            )));
        }
        let mut learnt: Vec<(Option<ServiceId>, Learnt)> = Vec::with_capacity(clients.len());
        for client in clients {
            let name = BackendName { service: service.to_owned(), backend: client.backend.clone() };
            self.controller.backend(&name)?;
            let address = client.client.to_canonical();
            let leg = self.controller.leg(service, Family::of(address));
            let backend = leg.and_then(|leg| leg.backends().iter().find(|of| of.name() == name.backend));
            let seconds = Duration::from_secs;
            let seen = match (client.age_seconds, client.left_seconds) {
                (_, Some(left)) => Seen::Left(seconds(left)),
                (age, None) => Seen::Ago(seconds(age.unwrap_or(0))),
            };
            let backend = backend.map_or(BackendId(0), Backend::id);
            learnt.push((leg.map(Service::id), Learnt { address, backend, seen }));
        }
        let mut sum = Learning::default();
        sum.strangers += learnt.iter().filter(|(leg, _)| leg.is_none()).count() as u64;
        let legs: Vec<ServiceId> = self.controller.legs(service).map(Service::id).collect();
        for id in legs {
            let of: Vec<Learnt> = learnt.iter().filter(|(leg, _)| *leg == Some(id)).map(|&(_, of)| of).collect();
            let Learning { new, known, moved, served, expired, full, strangers } =
                self.dataplane.learn_clients(id, &of, served);
            sum.new += new;
            sum.known += known;
            sum.moved += moved;
            sum.served += served;
            sum.expired += expired;
            sum.full += full;
            sum.strangers += strangers;
        }
        Ok(self.imported(service, &sum, uid))
    }

    fn imported(&self, service: &str, sum: &Learning, uid: Option<u32>) -> ImportedView {
        let &Learning { new, known, moved, served, expired, full, strangers } = sum;
        let taken = counted((new + known + moved) as usize, "client");
        let mut message = format!("service {service}: {taken} imported");
        for (count, what) in [
            (moved, "known at another backend before"),
            (served, "left where this balancer serves them"),
            (expired, "too old"),
            (full, "without room"),
            (strangers, "of another family"),
        ] {
            if count > 0 {
                message += &format!(", {} {what}", grouped(count));
            }
        }
        let about = BackendName { service: service.to_owned(), backend: String::new() };
        self.events.change(Some(&about), &message, uid, None);
        ImportedView { message, new, known, moved, served, expired, full, strangers }
    }

    /// Returns the known clients of a service, for use with [`Searching::search`].
    ///
    /// # Errors
    /// Fails if the service does not exist, or if it remembers no clients.
    pub fn export_clients(&mut self, service: &str) -> Result<Searching, Refused> {
        if !self.controller.service(service)?.remembers() {
            let text = format!("service {service} has no memory of clients (remember = \"0s\"): no client is known");
            return Err(Refused::Conflict(text));
        }
        let legs: Vec<&Service> = self.controller.legs(service).collect();
        let hashing =
            |leg: &&Service| Hashing { key: leg.client_key(), family: leg.family(), prefix: leg.client_prefix() };
        let names = legs
            .iter()
            .flat_map(|leg| leg.backends().iter().map(|backend| (backend.id(), (leg.id(), backend.name().to_owned()))));
        Ok(Searching {
            service: service.to_owned(),
            prefixes: self.controller.service(service)?.client_prefixes(),
            names: names.collect(),
            legs: legs.iter().map(|leg| (leg.id(), hashing(leg))).collect(),
            known: self.dataplane.known_clients(),
        })
    }
}

impl Searching {
    /// Searches for clients whose addresses are in the prefixes `within`. The search takes up to a second.
    ///
    /// # Errors
    /// Fails if the prefixes contain more clients than one search can examine.
    pub fn search(self, within: &[IpNet]) -> Result<KnownClientsView, Refused> {
        let Self { service, prefixes, legs, names, known } = self;
        let mut clients: Vec<KnownClientView> = Vec::new();
        let mut all = 0;
        for (id, hashing) in legs {
            let own = within.iter().filter(|net| Family::of(net.addr()) == hashing.family);
            let looked_at = own.map(|&net| search::count(net, hashing.prefix)).fold(0, u128::saturating_add);
            if looked_at > search::MOST {
                return Err(Refused::Invalid(format!(
                    "{} prefixes hold more than {} clients of service {service}: ask for smaller ones",
                    hashing.family,
                    grouped(search::MOST as u64)
                )));
            }
            let Some(known) = &known else { continue };
            let mut sought = Sought::new(hashing, known.buckets());
            known.for_each_placed(|bucket, entry, seen| {
                if names.get(&BackendId(entry.backend())).is_some_and(|(leg, _)| *leg == id) {
                    sought.add(bucket, entry, seen);
                }
            });
            all += sought.len() as u64;
            clients.extend(sought.within(within).into_iter().filter_map(|Found { address, backend, seen }| {
                let (_, name) = names.get(&backend)?;
                Some(KnownClientView { client: address, backend: name.clone(), age_seconds: seen.as_secs() })
            }));
        }
        let ClientPrefix { v4: prefix_v4, v6: prefix_v6 } = prefixes;
        Ok(KnownClientsView { service, known_clients: all, prefix_v4, prefix_v6, clients })
    }
}
