//! Listeners: checks each listener by itself, conflicts between services, and the settings that belong to listeners.

use std::net::IpAddr;

use balancer_common::map_types::{Forwarding, MAX_LISTENERS};
use foldhash::HashMap;

use super::{Place, Problems, problem::Fault};
use crate::{
    listeners::{Listener, MAX_LISTENERS_OF_SERVICE},
    protocol::Protocol,
    service::{ServiceConfig, forwarding_word},
    value,
};

/// Port ranges, with the listeners that contain the ranges and with the names of the services.
type Ranges<'a> = Vec<(Listener, Place, &'a str)>;

impl Problems<'_> {
    /// Checks each listener by itself, conflicts between the listeners of services, and the number of listeners.
    pub(super) fn listeners(&mut self) {
        let services = self.services;
        let mut taken: HashMap<Listener, (Place, &str)> = HashMap::default();
        let mut ranges: HashMap<(IpAddr, Protocol), Ranges<'_>> = HashMap::default();
        for (index, service) in services.iter().enumerate() {
            if service.listen.is_empty() {
                self.add(
                    Place::Name(index),
                    Fault::Invalid("it has no listener; give listen = [\"ADDR:PORT\"]".to_owned()),
                );
            }
            for (number, &listener) in service.listen.iter().enumerate() {
                let at = Place::Listener(index, number);
                if number == MAX_LISTENERS_OF_SERVICE {
                    let text = format!("more than {MAX_LISTENERS_OF_SERVICE} listeners of one service; remove some");
                    self.add(at, Fault::Invalid(text));
                }
                if let Err(text) = value::usable(listener.address) {
                    self.add(at, Fault::Invalid(text));
                }
                if let Some((first, by)) = taken.insert(listener.taken(), (at, &service.name)) {
                    self.add(at, Fault::ListenerTaken { listener, first, by: by.to_owned() });
                } else if listener.ports.single().is_none() {
                    let same = ranges.entry((listener.address, listener.protocol.transport())).or_default();
                    if let Some(&(other, place, by)) =
                        same.iter().find(|(other, ..)| other.ports.crosses(listener.ports))
                    {
                        self.add(at, Fault::Overlapping { one: listener, other, at: place, by: by.to_owned() });
                    }
                    same.push((listener, at, &service.name));
                }
            }
            self.ports(index, service);
            self.quic(index, service);
        }
        let mut all = services
            .iter()
            .enumerate()
            .flat_map(|(index, service)| (0..service.listen.len()).map(move |number| Place::Listener(index, number)));
        if let Some(excess) = all.nth(MAX_LISTENERS as usize - 1) {
            let text = format!("more than {} listeners over all services; remove some", MAX_LISTENERS - 1);
            self.add(excess, Fault::Invalid(text));
        }
    }

    /// Checks that a service has QUIC settings if and only if it has a QUIC listener.
    fn quic(&mut self, index: usize, service: &ServiceConfig) {
        let listener = service.listen.iter().position(|listener| listener.protocol == Protocol::Quic);
        let (at, text) = match (&service.quic, listener) {
            (Some(_), None) => (
                Place::Name(index),
                "quic is for listeners of the protocol quic, and there is none; add one such as \"198.51.100.10:443/quic\", or \
                 remove quic",
            ),
            (None, Some(listener)) => (
                Place::Listener(index, listener),
                "a listener of the protocol quic needs quic = { format = \"nlb\" } or { format = \"draft\" }, which says how \
                 connection IDs name backends; add it, or write udp",
            ),
            _ => return,
        };
        self.add(at, Fault::Invalid(text.to_owned()));
    }

    /// Checks the setting `ports`, which is invalid in modes that do not change ports.
    fn ports(&mut self, index: usize, service: &ServiceConfig) {
        let at = Place::Name(index);
        if !service.ports.is_empty() && !matches!(service.forwarding, Forwarding::Nat | Forwarding::Snat) {
            let mode = forwarding_word(service.forwarding);
            self.add(
                at,
                Fault::Invalid(format!("{mode} cannot change ports; remove ports, or use forwarding = \"nat\"")),
            );
        }
        for (port, backend_port) in &service.ports {
            if *backend_port == 0 {
                self.add(at, Fault::Invalid(format!("ports has {port} = 0; give 1 to 65535")));
            }
        }
    }
}
