//! The MACs of other backends in services where this machine is a `dsr` or `nat` backend; other balancers have already
//! steered the packets from these MACs.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{HashMap as HashTable, MapData},
};
use balancer_common::map_types::{Forwarding, MAX_PEERS, Mac, mac_word, peer};
use balancer_control::io::{BackendId, BackendSpec, ServiceId, ServiceSpec};

/// The MACs of other backends; see the [module](self).
pub(super) struct Peers {
    map: HashTable<MapData, u64, u32>,
    /// The MACs from which the backends send frames.
    macs: HashMap<BackendId, (ServiceId, Mac)>,
    /// The backend id of this machine in each service.
    local: HashMap<ServiceId, BackendId>,
    written: HashMap<u64, u32>,
}

impl Peers {
    /// Makes a value that contains no backends.
    ///
    /// # Errors
    /// Fails if the object contains no such map, which would be a broken build.
    pub(super) fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map("PEERS").context("the kernel object holds no map PEERS")?.try_into()?;
        Ok(Self { map, macs: HashMap::new(), local: HashMap::new(), written: HashMap::new() })
    }

    /// Whether this machine is a backend of some service.
    pub(super) fn any(&self) -> bool {
        !self.local.is_empty()
    }

    /// Records the new row of a backend.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub(super) fn set(&mut self, row: &BackendSpec) -> anyhow::Result<()> {
        // The frames of a backend behind a gateway come from the gateway, as those of other hosts do.
        let mac =
            row.next_hop.filter(|hop| keeps_clients_address(row.forwarding) && !hop.local && hop.gateway.is_none());
        let place = mac.map(|hop| (row.service, hop.destination_mac));
        let before = match place {
            Some(place) => self.macs.insert(row.id, place),
            None => self.macs.remove(&row.id),
        };
        if before == place { Ok(()) } else { self.write() }
    }

    /// Forgets a backend that was removed.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub(super) fn forget(&mut self, id: BackendId) -> anyhow::Result<()> {
        if self.macs.remove(&id).is_some() { self.write() } else { Ok(()) }
    }

    /// Records `services`, which contains all services that now exist.
    ///
    /// # Errors
    /// Fails if the kernel refuses a write.
    pub(super) fn publish(&mut self, services: &[ServiceSpec]) -> anyhow::Result<()> {
        let services = services.iter().filter(|spec| keeps_clients_address(spec.forwarding));
        let local = services.filter_map(|spec| Some((spec.id, *spec.local.first()?))).collect();
        if self.local == local {
            return Ok(());
        }
        self.local = local;
        self.write()
    }

    fn write(&mut self) -> anyhow::Result<()> {
        if self.local.is_empty() && self.written.is_empty() {
            return Ok(());
        }
        let of_local = |(service, mac): &(ServiceId, Mac)| {
            self.local.get(service).map(|local| (peer(mac_word(*mac), service.0), u32::from(local.0)))
        };
        let all: BTreeMap<u64, u32> = self.macs.values().filter_map(of_local).collect();
        let room = MAX_PEERS as usize;
        if all.len() > room {
            tracing::warn!("{} backends are beside this machine, of which {room} are told from clients", all.len());
        }
        let wanted: BTreeMap<u64, u32> = all.into_iter().take(room).collect();
        let gone: HashSet<u64> = self.written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.map.remove(&key).context("forgetting the MAC of a backend")?;
            self.written.remove(&key);
        }
        for (key, local) in wanted {
            if self.written.get(&key) != Some(&local) {
                self.map.insert(key, local, 0).context("noting the MAC of a backend")?;
                self.written.insert(key, local);
            }
        }
        Ok(())
    }
}

/// Whether a balancer sends clients' packets to a backend on its network segment with the clients' source addresses.
const fn keeps_clients_address(forwarding: Forwarding) -> bool {
    matches!(forwarding, Forwarding::Dsr | Forwarding::Nat)
}
