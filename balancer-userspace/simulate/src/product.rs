//! Simulates this balancer by its real controller, with all backends reachable and without checks.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::HashMap;

use balancer_common::{
    client::{HashKey, hash_v4, hash_v6, mask_v4, mask_v6, slot},
    client_table::Entry,
    map_types::Forwarding,
};
use balancer_config::{
    config::{AssignVip, CheckKind, ClientPrefix, Config, Protocol, ServiceConfig},
    listeners::{Family, Listener},
    names::BackendName,
    shared::shared,
    validate::Valid,
};
use balancer_control::{
    controller::Controller,
    io::{Change as CoreChange, Command, Event, NextHop},
    plan::Plan,
    service::Service,
};

use crate::servers::Change;

/// The hash key that the simulator uses if the configuration has none. Without a configured key, a controller draws a
/// random key.
const EXAMPLE_KEY: HashKey = HashKey::from_bytes(*b"balancersimulate");

/// The listener's address of a simulated service.
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));

/// The address of a backend that a change adds.
const ADDED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 255, 1));

/// The reason why a service cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(String);

#[derive(Clone, Debug)]
pub struct Product {
    controller: Controller,
    config: Config,
    name: String,
    now: Instant,
}

/// The lookup table of a simulated service.
#[derive(Clone, Debug, Default)]
pub struct Table {
    slots: Vec<Option<u16>>,
    names: Vec<String>,
}

impl Table {
    /// The backend to which the lookup table maps a client hash; `None` if no backend takes clients.
    #[must_use]
    pub fn backend(&self, hash: u64) -> Option<&str> {
        let place = self.slots.get(slot(hash, self.slots.len() as u32) as usize).copied().flatten()?;
        self.names.get(usize::from(place)).map(String::as_str)
    }
}

/// The effects of a change on a simulated service.
#[derive(Debug)]
pub struct Changed {
    plan: Plan,
    pub after: Product,
}

/// The numbers of known clients that a change affects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// The number of clients that go to another backend at once.
    pub moved: u64,
    /// The number of clients that stay with a draining backend until the drain ends.
    pub draining: u64,
}

impl Product {
    /// Makes a simulation of the service `name` in `config`. Addresses, checks and listeners do not influence which
    /// backend a client gets, so the simulator replaces them. One IPv4 service represents both address families,
    /// because the two families share tables and keys.
    ///
    /// # Errors
    /// Fails if the configuration does not contain the service.
    pub fn new(config: Config, name: &str, now: Instant) -> Result<Self, Impossible> {
        let found = config.services.iter().find(|service| service.name == name);
        let Some(service) = found else {
            let all: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
            return Err(Impossible(format!("there is no service {name:?}; there is {}", all.join(", "))));
        };
        let service = plain(service);
        let services = Valid::new(shared(vec![service])).map_err(|problem| Impossible(problem.text(|_| None)))?;
        // The configuration may lack interfaces that the command line of `run` would name, but a reload needs
        // interfaces in the file.
        let interfaces = vec!["simulated".to_owned()];
        let config = Config { services, interfaces, fleet: None, ..config };
        let key = config.hash_key.unwrap_or(EXAMPLE_KEY);
        let mut controller = Controller::new(config.clone(), key);
        let mut commands = controller.start(now);
        while let Some(command) = commands.pop() {
            if let Command::WatchNextHop(address) = command {
                commands.extend(controller.handle(Event::NextHop { address, next_hop: Ok(next_hop()) }, now));
            }
        }
        Ok(Self { controller, config, name: name.to_owned(), now })
    }

    fn service(&self) -> Option<&Service> {
        self.controller.leg(&self.name, Family::V4)
    }

    #[must_use]
    pub fn config(&self) -> Option<Arc<ServiceConfig>> {
        self.config.services.iter().find(|service| service.name == self.name).cloned()
    }

    /// Whether the configuration contains a hash key.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        self.config.hash_key.is_some()
    }

    /// Whether the simulated service remembers clients.
    #[must_use]
    pub fn remembers(&self) -> bool {
        self.service().is_some_and(Service::remembers)
    }

    /// The client hash of an address with this client prefix, computed as the kernel program does.
    #[must_use]
    pub fn hash(&self, client: IpAddr, prefix: ClientPrefix) -> u64 {
        let key = self.service().map_or(EXAMPLE_KEY, Service::client_key);
        match client {
            IpAddr::V4(address) => hash_v4(key, u32::from_ne_bytes(address.octets()) & mask_v4(prefix.v4)),
            IpAddr::V6(address) => {
                let [high, low] = mask_v6(prefix.v6);
                let bits = address.to_bits().to_be_bytes();
                let (first, second) = bits.split_at(8);
                let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                hash_v6(key, [word(first) & high, word(second) & low])
            }
        }
    }

    fn id(&self, service: &Service, hash: u64) -> Option<u16> {
        let table = service.live_table();
        table.get(slot(hash, table.len() as u32) as usize).copied()
    }

    /// Returns the lookup table of the service, with the names of backends.
    #[must_use]
    pub fn table(&self) -> Table {
        let Some(service) = self.service() else { return Table::default() };
        let ids: HashMap<u16, u16> = service.backends().iter().map(|backend| backend.id().0).zip(0..).collect();
        Table {
            slots: service.live_table().iter().map(|id| ids.get(id).copied()).collect(),
            names: service.backends().iter().map(|backend| backend.name().to_owned()).collect(),
        }
    }

    /// Simulates a change of the service.
    ///
    /// # Errors
    /// Fails if the controller refuses the change; the error contains the controller's message.
    pub fn change(&self, change: &Change) -> Result<Changed, Impossible> {
        let made = self.core_change(change)?;
        let planned = self.controller.plan_and_make(made, self.now);
        let (plan, controller) = planned.map_err(|refused| Impossible(refused.to_string()))?;
        Ok(Changed { plan, after: Self { controller, ..self.clone() } })
    }

    fn core_change(&self, change: &Change) -> Result<CoreChange, Impossible> {
        let name = |name: &String| BackendName { service: self.name.clone(), backend: name.clone() };
        Ok(match change {
            Change::Add { name: backend, weight, backup } => CoreChange::Add {
                name: name(backend),
                address: ADDED,
                address6: None,
                port: None,
                weight: *weight,
                backup: *backup,
                limits: Default::default(),
            },
            Change::Remove { name: backend, force } => CoreChange::Remove { name: name(backend), force: *force },
            Change::Admin { name: backend, admin, timeout } => {
                CoreChange::SetAdmin { name: name(backend), admin: *admin, timeout: *timeout }
            }
            Change::Weight { name: backend, weight } => CoreChange::SetWeight { name: name(backend), weight: *weight },
            Change::Reorder => {
                let mut services = self.config.services.copies();
                services.iter_mut().for_each(|service| service.backends.reverse());
                let services = Valid::new(shared(services)).map_err(|problem| Impossible(problem.text(|_| None)))?;
                CoreChange::Reload(Box::new(Config { services, ..self.config.clone() }))
            }
        })
    }
}

impl Changed {
    /// Returns the effects of a change on known clients. Each client is known at the backend to which the lookup table
    /// mapped its hash before the change. `clients` contains the hash of each client and the time since the client was
    /// last seen.
    pub fn known(&self, before: &Product, clients: impl Iterator<Item = (u64, Duration)>) -> Moved {
        let Some(service) = before.service() else { return Moved::default() };
        let planned = self.plan.clone().counted(|count| {
            for (hash, seen) in clients {
                if let Some(id) = before.id(service, hash) {
                    count(Entry::new((hash >> 32) as u32, id, 1), seen, false);
                }
            }
        });
        let of = planned.services.iter();
        of.fold(Moved::default(), |sum, of| Moved {
            moved: sum.moved + of.known_clients_moved,
            draining: sum.draining + of.known_clients_draining,
        })
    }
}

/// The service with only those settings that influence which backend a client gets.
fn plain(service: &ServiceConfig) -> ServiceConfig {
    let mut service = service.clone();
    service.listen = vec![Listener::at(SocketAddr::new(VIP, 80), Protocol::Tcp)];
    service.ports.clear();
    service.forwarding = Forwarding::Nat;
    service.assign_vip = AssignVip::No;
    service.check.kind = CheckKind::None;
    service.start_down = false;
    service.slow_start = Duration::ZERO;
    let first = Ipv4Addr::new(10, 0, 0, 1).to_bits();
    for (backend, address) in service.backends.iter_mut().zip(first..) {
        backend.address = SocketAddr::new(Ipv4Addr::from_bits(address).into(), 0);
        backend.address6 = None;
        backend.check = None;
    }
    service
}

const fn next_hop() -> NextHop {
    NextHop {
        ifindex: 1,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        source: None,
        gateway: None,
        local: false,
    }
}
