//! Chooses between `nat` and `snat` for services of a proxy.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    notes::Conversion,
    service::{Forwarding, Service},
};

impl Conversion {
    /// Chooses `snat`, which is closest to a proxy, for a proxy's service that `nat` cannot serve.
    pub(crate) fn choose_forwarding(&self, service: &mut Service) {
        if self.of_proxy && service.forwarding == Forwarding::Nat && !nat_suffices(service) {
            service.forwarding = Forwarding::Snat;
        }
    }

    /// Chooses `snat` for each service of a proxy that shares a server with a service with `snat`, because the routes of
    /// such a server need not lead through the balancer.
    pub(crate) fn share_snat(&mut self) {
        if !self.of_proxy {
            return;
        }
        let mut services: Vec<&mut Service> = self.services.iter_mut().chain(&mut self.waiting).collect();
        let mut of_address: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        for (index, service) in services.iter().enumerate() {
            addresses(service).for_each(|address| of_address.entry(address).or_default().push(index));
        }
        let is_snat = |service: &&&mut Service| service.forwarding == Forwarding::Snat;
        let mut shared: Vec<IpAddr> = services.iter().filter(is_snat).flat_map(|service| addresses(service)).collect();
        while let Some(address) = shared.pop() {
            for index in of_address.remove(&address).unwrap_or_default() {
                if let Some(service) = services.get_mut(index)
                    && service.forwarding == Forwarding::Nat
                {
                    service.forwarding = Forwarding::Snat;
                    shared.extend(addresses(service));
                }
            }
        }
    }
}

fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    service.backends.iter().filter_map(|backend| backend.host.address())
}

/// Whether `nat` can serve all listeners of a service: with `nat`, clients and backends have the same address family, and
/// a backend has a port for each listener.
fn nat_suffices(service: &Service) -> bool {
    let mut addresses = addresses(service).peekable();
    let share_ports = service.listeners.len() > 1 && service.backends.iter().any(|backend| backend.port.is_some());
    if addresses.peek().is_some() && share_ports {
        return false;
    }
    let is_same = |address: IpAddr| service.listeners.iter().all(|one| one.address.is_ipv4() == address.is_ipv4());
    addresses.all(is_same)
}
