//! Processes datagrams as if the kernel had sent them, for fuzz targets.

use std::{collections::HashMap, net::IpAddr};

use bytes::BytesMut;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use tokio::time::Instant;

use super::{
    devices,
    monitor::updates,
    netlink::{gateways, route},
    resolve::{NoRoute, Route},
    tracker::{PATIENCE, RETRY, Tracker},
};
use crate::{layers, xdp_features};

/// Processes an rtnetlink datagram and a datagram about drivers' features, while the tracker watches the next hops of
/// `addresses`. The function returns the number of neighbours that the task would query, and the number of changes that
/// the task would report.
#[must_use]
pub fn heard(changes: &[u8], features: &[u8], addresses: &[IpAddr]) -> (usize, usize) {
    let begin = Instant::now();
    let mut tracker = Tracker::default();
    for &address in addresses {
        tracker.watch(address, begin);
    }
    // The kernel's answer to a route query has the same format as a notification about a route.
    let mut known: Option<Route> = None;
    if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(changes)
        && let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) = message.payload
    {
        known = route(&message);
        tracker.set_gateways(gateways(&message).into_iter().collect());
    }
    for update in updates(&mut BytesMut::from(changes)) {
        tracker.apply(update, begin);
    }
    for address in tracker.stale_routes() {
        tracker.set_route(address, known.ok_or(NoRoute::Missing));
    }
    let asked = [begin, begin + RETRY, begin + PATIENCE].map(|now| tracker.evaluate(now).len());
    let told = std::iter::from_fn(|| tracker.next_news()).count();
    let features: Option<HashMap<_, _>> = xdp_features::told(features).ok().map(Iterator::collect);
    let _ = devices::devices(tracker.links(), features.as_ref());
    let layers = layers::of(tracker.links());
    for link in tracker.links() {
        let _ = (layers.local_macs(link.ifindex), layers.related(link.ifindex, 2));
    }
    (asked.iter().sum(), told)
}
