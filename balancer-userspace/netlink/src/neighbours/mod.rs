//! Next hops, which determine how frames reach an address. A task updates the next hops when the kernel's routes, links
//! and neighbours change.
//!
//! `default_hops` is a separate thread, which publishes the next hop of the default route for replies.
//!
//! One task owns the netlink sockets. `resolve` derives next hops from tables, and `tracker` decides which changes to
//! report and which neighbours to query; both modules are pure. `netlink` sends queries to the kernel, and `monitor`
//! receives the kernel's notifications.

mod default_hops;
mod devices;
mod heard;
mod monitor;
mod netlink;
mod path_errors;
mod resolve;
mod task;
mod tracker;

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use balancer_common::map_types::{FAMILY_V4, FAMILY_V6, NeighbourWanted};
use balancer_control::io::Event;
use balancer_dataplane::{Devices, Layers};
use balancer_runtime::supervisor::{Supervisor, Task};
use netlink_packet_route::route::RouteType;
use resolve::NeighbourKey;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::{
    default_hops::{DefaultHopThread, PublishedHops},
    heard::heard,
    path_errors::Tunnels,
};
use crate::interfaces::Link;

#[cfg(test)]
pub(crate) use resolve::tests::link as test_link;

/// Returns the links of this network namespace, and the interface by which the kernel would send packets to each of
/// these addresses. Addresses of this machine, and addresses without a route, are missing in the result.
///
/// # Errors
/// Fails if the kernel does not answer.
pub(crate) async fn egresses(addresses: BTreeSet<IpAddr>) -> anyhow::Result<(Vec<Link>, HashMap<IpAddr, u32>)> {
    let netlink = netlink::Netlink::connect()?;
    let links = netlink.links().await?;
    let mut found = HashMap::new();
    for address in addresses {
        if let Ok(route) = netlink.route(address).await?
            && route.kind == RouteType::Unicast
        {
            found.insert(address, route.ifindex);
        }
    }
    Ok((links, found))
}

/// The maximum number of waiting requests to resolve clients' neighbours; the task drops further requests, and the next
/// packet of the client causes a new request.
const WANTED: usize = 256;

/// Requests that callers have made and the task has not taken yet. No request is lost; the number of addresses limits
/// the memory for requests.
#[derive(Debug, Default)]
struct Wishes {
    /// For each address, the last request that the task has not taken yet: whether to watch the address.
    untaken: Mutex<HashMap<IpAddr, bool>>,
    changed: Notify,
}

impl Wishes {
    fn wish(&self, address: IpAddr, watched: bool) {
        self.untaken().insert(address, watched);
        self.changed.notify_one();
    }

    fn take(&self) -> HashMap<IpAddr, bool> {
        mem::take(&mut *self.untaken())
    }

    fn untaken(&self) -> MutexGuard<'_, HashMap<IpAddr, bool>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address on an interface's link that has answered the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearAddress {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// A request for the addresses on the links of some interfaces.
struct NearAsked {
    ifindexes: BTreeSet<u32>,
    reply: oneshot::Sender<Vec<NearAddress>>,
}

/// A handle for listing the addresses on this machine's links.
#[derive(Clone, Debug)]
pub struct NearAddresses(mpsc::Sender<NearAsked>);

impl NearAddresses {
    /// Returns the addresses on the links of the given interfaces, at most a thousand; empty if the task has ended.
    pub async fn on(&self, ifindexes: BTreeSet<u32>) -> Vec<NearAddress> {
        let (reply, answer) = oneshot::channel();
        match self.0.send(NearAsked { ifindexes, reply }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }
}

/// A handle for watching next hops. Dropping this value ends the task that watches next hops.
#[derive(Debug)]
pub struct Neighbours {
    wishes: Arc<Wishes>,
    wanted: mpsc::Sender<NeighbourKey>,
    layers: watch::Receiver<Layers>,
    devices: watch::Receiver<Devices>,
    tunnels: watch::Sender<Tunnels>,
    near: NearAddresses,
    task: Task<()>,
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Neighbours {
    /// Starts the task on the current tokio runtime, in the calling thread's network namespace. Changes arrive at
    /// `events` as [`Event::NextHop`]; if the channel is full, changes wait, and for each address the task sends only
    /// the latest change.
    ///
    /// # Errors
    /// Fails if a netlink socket cannot be opened.
    pub fn spawn(events: mpsc::Sender<Event>, supervisor: &Supervisor) -> anyhow::Result<Self> {
        let wishes = Arc::new(Wishes::default());
        let (wanted, wanted_receiver) = mpsc::channel(WANTED);
        let (layers_sender, layers) = watch::channel(Layers::default());
        let (devices_sender, devices) = watch::channel(Devices::new());
        let (tunnels, tunnels_receiver) = watch::channel(Tunnels::default());
        let (near, near_asked) = mpsc::channel(1);
        let told = task::DeviceChannels { layers: layers_sender, devices: devices_sender };
        let wanted_by = task::WantedBy {
            wishes: Arc::clone(&wishes),
            wanted: wanted_receiver,
            near: near_asked,
            tunnels: tunnels_receiver,
        };
        let task =
            task::Task::new(wanted_by, events, told).context("watching routes and neighbours through netlink")?;
        let task = supervisor.spawn("the watch on next hops", async {
            task.run().await;
            Ok(())
        });
        Ok(Self { wishes, wanted, layers, devices, tunnels, near: NearAddresses(near), task })
    }

    /// The network devices of this machine: empty until the task has listed the devices, and updated after each change
    /// of the devices.
    pub fn layers(&self) -> watch::Receiver<Layers> {
        self.layers.clone()
    }

    /// The interfaces to which XDP can send no frames, or only some frames; updated after each change. The task
    /// determines these interfaces soon after it has started.
    #[must_use]
    pub fn devices(&self) -> watch::Receiver<Devices> {
        self.devices.clone()
    }

    /// Watches the next hop of `address`: the task sends an event as soon as the next hop is resolved, and after each
    /// change of the next hop. If the next hop stays unresolved for about 2.5 s, the task sends an event with the
    /// reason. If `address` is already watched, the task repeats the last event. The function never blocks.
    pub fn watch(&self, address: IpAddr) {
        self.wishes.wish(address, true);
    }

    /// Stops watching `address`, even if the caller has called `watch` several times. The function never blocks.
    pub fn unwatch(&self, address: IpAddr) {
        self.wishes.wish(address, false);
    }

    /// Returns a handle for listing the addresses on this machine's links.
    #[must_use]
    pub fn near(&self) -> NearAddresses {
        self.near.clone()
    }

    /// Sets the kinds of tunnels that lead to watched addresses, so that the task receives routers' errors about tunnel
    /// packets. The function never blocks.
    pub fn set_tunnels(&self, tunnels: Tunnels) {
        self.tunnels.send_if_modified(|known| std::mem::replace(known, tunnels) != tunnels);
    }

    /// Makes the kernel resolve a neighbour that a `nat` reply needs, at most once a second for each neighbour and a
    /// hundred times a second for all neighbours. The task drops requests above these limits. The function never
    /// blocks.
    pub fn want(&self, wanted: &NeighbourWanted) {
        let address = match u8::try_from(wanted.family) {
            Ok(FAMILY_V4) => IpAddr::V4(Ipv4Addr::from(wanted.address[0].to_ne_bytes())),
            Ok(FAMILY_V6) => IpAddr::V6(Ipv6Addr::from(bytemuck::cast::<[u32; 4], [u8; 16]>(wanted.address))),
            _ => return,
        };
        // If the queue is full, the request is dropped, and this enforces the limit.
        let _ = self.wanted.try_send(NeighbourKey { ifindex: wanted.ifindex, address });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_requests_for_an_address_pile_up_then_the_last_counts_and_is_taken_once() {
        let wishes = Wishes::default();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        for (last, watched) in [(1, true), (2, true), (2, false), (3, false), (3, true), (1, true)] {
            wishes.wish(address(last), watched);
        }
        assert_eq!(wishes.take(), HashMap::from([(address(1), true), (address(2), false), (address(3), true)]));
        wishes.wish(address(1), false);
        assert_eq!(wishes.take(), HashMap::from([(address(1), false)]));
        assert!(wishes.take().is_empty());
    }
}
