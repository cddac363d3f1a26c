//! Finds the ways of replies to clients that complete no connection, and to clients of UDP, which begin none. As long as
//! clients complete their connections, the module asks nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use balancer_api::{
    client::Client,
    model::{FlowView, ServiceView, UnansweredView},
    statistics::TopQuery,
};
use balancer_config::{config::Protocol, listeners::Listener};

use super::netlink::Netlink;
use crate::facts::{Facts, Way, WayBack};

/// The maximum number of clients of each service to which the routes are looked up.
const CLIENTS: usize = 8;

/// Adds the ways to clients of services with backends that do not complete connections, and to clients of `nat` and
/// `snat` over UDP. If the controller or the kernel does not answer, these facts stay absent.
pub(super) async fn find(client: &Client, facts: &mut Facts, services: &[ServiceView]) {
    let Ok(netlink) = Netlink::connect() else { return };
    for service in services.iter().filter(|of| waits(of) || is_translated_udp(of)) {
        let top = TopQuery { service: Some(service.name.clone()), n: Some(CLIENTS), ..TopQuery::default() };
        let top = client.top(&top).await.unwrap_or_default();
        let top = top.iter().filter_map(|of| of.client.split_once('/')?.0.parse().ok());
        let flows = if service.forwarding == "snat" {
            client.flows(Some(&service.name), None).await.unwrap_or_default()
        } else {
            Vec::new()
        };
        note_replies(facts, service, &flows);
        let of_flows = flows.iter().rev().filter_map(|flow| Some(flow.client.parse::<SocketAddr>().ok()?.ip()));
        let clients: BTreeSet<IpAddr> = top.chain(of_flows.take(CLIENTS)).collect();
        for address in clients {
            if let Ok(way) = way_back(&netlink, facts, &service.name, address).await {
                facts.ways_back.push(way);
            }
        }
    }
}

fn is_translated_udp(service: &ServiceView) -> bool {
    let mut listeners = service.listeners.iter().filter_map(|view| view.listener.parse::<Listener>().ok());
    matches!(service.forwarding.as_str(), "nat" | "snat") && listeners.all(|of| of.protocol != Protocol::Tcp)
}

fn waits(service: &ServiceView) -> bool {
    service.backends.iter().any(|backend| backend.unanswered.as_ref().is_some_and(UnansweredView::is_trouble))
}

/// Notes which backends of a service have replied to a connection that began among the unfinished ones.
fn note_replies(facts: &mut Facts, service: &ServiceView, flows: &[FlowView]) {
    let waiting = service.backends.iter().filter_map(|of| Some((of.name.as_str(), of.unanswered?.seconds)));
    let waiting: BTreeMap<&str, f64> = waiting.collect();
    let replied = |flow: &&FlowView| {
        let since = waiting.get(flow.backend.as_str()).copied().unwrap_or(0.0);
        flow.bytes_to_client > 0 && flow.age_seconds as f64 <= since
    };
    let replied: BTreeSet<&str> = flows.iter().filter(replied).map(|flow| flow.backend.as_str()).collect();
    for backend in facts.backends.iter_mut().filter(|of| of.service == service.name) {
        backend.replied |= replied.contains(backend.name.as_str());
    }
}

/// Looks up the route as the program does, which asks for packets from the VIP that arrive by the backend's interface.
async fn way_back(netlink: &Netlink, facts: &Facts, service: &str, client: IpAddr) -> anyhow::Result<WayBack> {
    let same_family = |address: &IpAddr| address.is_ipv4() == client.is_ipv4();
    let vips = facts.vips.iter().filter(|vip| vip.service == service).map(|vip| vip.address);
    let vip = vips.filter(same_family).find(|vip| facts.is_own(*vip));
    let from = vip.map(|vip| format!(" from {vip}")).unwrap_or_default();
    let out = netlink.way_from(client, vip).await?;
    let back = |way, lookup| WayBack { service: service.to_owned(), client, way, lookup, neighbour: None };
    let leaving = back(out.way, format!("ip route get {client}{from}"));
    if let Way::Known { .. } = leaving.way
        && let Some((ifindex, backend)) = arrival(facts, service, client)
        && let Some(link) = facts.link(ifindex)
        && let Some(why) = netlink.forbids(client, backend, ifindex).await?
    {
        let lookup = format!("ip route get {client} from {backend} iif {}", link.name);
        return Ok(back(Way::None(why), lookup));
    }
    Ok(leaving)
}

/// The interface by which replies to a client arrive, and the address of a backend that sends them.
fn arrival(facts: &Facts, service: &str, client: IpAddr) -> Option<(u32, IpAddr)> {
    facts.backends.iter().filter(|of| of.service == service).find_map(|of| match of.way {
        Way::Known { ifindex, .. } if of.address.is_ipv4() == client.is_ipv4() => Some((ifindex, of.address.ip())),
        Way::Known { .. } | Way::Local | Way::None(_) => None,
    })
}
