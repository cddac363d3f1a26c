//! Backends of a service: their names, addresses and server IDs, and the size of the lookup table for them.

use balancer_common::map_types::Forwarding;
use foldhash::HashMap;

use super::{Place, Problems, problem::Fault};
use crate::{
    listeners::{Family, PortRange},
    primes::{MAX_TABLE_SIZE, is_prime, next_prime},
    service::{BackendConfig, ServiceConfig, forwarding_word},
    table_size::SLOTS_PER_BACKEND,
    value,
};

impl Problems<'_> {
    pub(super) fn backends(&mut self, index: usize, service: &ServiceConfig) {
        let mut names = HashMap::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::BackendName(index, number);
            self.name(at, &backend.name, backend.renamed_from.as_deref());
            if let Some(first) = names.insert(backend.name.as_str(), at) {
                self.add(at, Fault::NameTaken { what: "backend", name: backend.name.clone(), first });
            }
            if let Err(text) = fits(service, backend) {
                self.add(Place::BackendAddress(index, number), Fault::Invalid(text));
            }
        }
    }

    /// Checks that the server IDs in a service are unique.
    pub(super) fn server_ids(&mut self, index: usize, service: &ServiceConfig) {
        let mut ids = HashMap::default();
        for (number, backend) in service.backends.iter().enumerate() {
            let at = Place::BackendName(index, number);
            let Some(quic) = &service.quic else {
                if backend.quic_server_id.is_some() {
                    let text = "quic_server_id is for a service with quic; add that, or remove it".to_owned();
                    self.add(at, Fault::Invalid(text));
                }
                continue;
            };
            let id = backend.server_id(quic);
            if id.bytes().len() != usize::from(quic.server_id_length) {
                let length = quic.server_id_length;
                let text = format!(
                    "quic_server_id = \"{id}\" is not of {length} bytes, the service's server_id_length; write \"0x\" and {} \
                     hexadecimal digits",
                    2 * length
                );
                self.add(at, Fault::Invalid(text));
            }
            if let Some(first) = ids.insert(id, backend.name.as_str()) {
                let text = format!(
                    "{} has the server ID {id}, which is {first}'s; give one of them another with quic_server_id, or make \
                     server_id_length larger",
                    backend.name
                );
                self.add(at, Fault::Invalid(text));
            }
        }
    }

    pub(super) fn table_size(&mut self, index: usize, service: &ServiceConfig) {
        let (size, backends) = (service.slots(), service.backends.len());
        let text = if !is_prime(size) {
            format!("table_size = {size} is not prime; the next prime is {}", next_prime(size))
        } else if size as usize <= backends {
            format!(
                "table_size = {size} is too small for {backends} backends; give at least {}",
                enough_slots(backends)
            )
        } else {
            return;
        };
        self.add(Place::TableSize(index), Fault::Invalid(text));
    }
}

/// The number of slots that gives this many backends even shares.
pub(crate) fn enough_slots(backends: usize) -> u32 {
    u32::try_from(backends.saturating_mul(SLOTS_PER_BACKEND)).map_or(MAX_TABLE_SIZE, next_prime)
}

/// Whether the program can forward the service's packets to `backend`.
fn fits(service: &ServiceConfig, backend: &BackendConfig) -> Result<(), String> {
    let name = &backend.name;
    for address in [Some(backend.address), backend.address6].into_iter().flatten() {
        value::usable(address.ip())?;
        if service.listen.iter().any(|listener| listener.address == address.ip()) {
            return Err(format!(
                "the address of backend {name:?} is the service's own {}; give the server's own",
                address.ip()
            ));
        }
        port_fits(service, name, address.port())?;
    }
    if let Some(address6) = backend.address6
        && (address6.is_ipv4() || backend.address.is_ipv6())
    {
        return Err(format!(
            "backend {name:?} has address = {} and address6 = {}; give an IPv4 address and an IPv6 address",
            backend.address.ip(),
            address6.ip()
        ));
    }
    let missing =
        service.families().into_iter().find(|&family| backend.address_for(family, service.forwarding).is_none());
    missing.map_or(Ok(()), |family| Err(family_missing(service, backend, family)))
}

fn family_missing(service: &ServiceConfig, backend: &BackendConfig, family: Family) -> String {
    let (name, mode) = (&backend.name, forwarding_word(service.forwarding));
    let vip = service.listeners(family).next().unwrap_or(service.first()).address;
    let give = if service.families().len() > 1 && family == Family::V6 {
        "give an IPv6 address as well, address6 = \"…\"".to_owned()
    } else {
        format!("give an {family} address")
    };
    let snat = if service.forwarding == Forwarding::Nat { ", or use forwarding = \"snat\"" } else { "" };
    format!(
        "backend {name:?} has the address {}, which {mode} cannot reach from {vip}; {give}{snat}",
        backend.address.ip()
    )
}

/// Whether a backend may have the same `port` for all listeners; 0: the backend has no port of its own.
fn port_fits(service: &ServiceConfig, name: &str, port: u16) -> Result<(), String> {
    let mode = forwarding_word(service.forwarding);
    let every = service.listen.iter().any(|listener| listener.ports.single().is_none());
    match (service.forwarding, service.listen.as_slice()) {
        _ if port == 0 => Ok(()),
        (Forwarding::Nat | Forwarding::Snat, _) if every => Err(format!(
            "backend {name:?} has port {port}, but the service listens on every port and keeps the client's port; \
             leave the port out"
        )),
        (Forwarding::Nat | Forwarding::Snat, _) => Ok(()),
        (_, [only]) if only.ports == PortRange::EVERY => {
            Err(format!("backend {name:?} has port {port}, but {mode} keeps the client's port; leave the port out"))
        }
        (_, listen) => {
            let ports = match listen {
                [only] => only.ports.to_string(),
                _ => "ports".to_owned(),
            };
            Err(format!(
                "backend {name:?} has port {port}, and {mode} cannot change the service's {ports}; leave the port out, or use \
                 forwarding = \"nat\""
            ))
        }
    }
}
