//! Finds clients that are on the same link as their `nat` backends. The backend of such a client replies directly with
//! its own address, past the balancer, so that no connection is established.
//!
//! The task reports a client under three conditions: the client began two handshakes with backends on its own link,
//! these backends passed their checks at the time, and the client continued neither handshake. If backends send all
//! replies through the balancer, for example because of their routes, clients continue their handshakes and are not
//! reported. A packet with a forged source address does not make that address a neighbour on the link.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use balancer_control::{
    controller::NearBackend,
    io::{BackendId, ServiceId},
};
use balancer_dataplane::{Begun, Handshakes};
use balancer_listeners::statistics::{Named, Statistics};
use balancer_netlink::{
    interfaces,
    neighbours::{NearAddress, NearAddresses},
};
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::task_call::{TaskCall, TaskCalls};

/// The interval between two searches for such clients.
const LOOK: Duration = Duration::from_secs(10);
/// The minimum age of an unfinished handshake: a client repeats its SYN after one second and after three seconds.
const WAITED: Duration = Duration::from_secs(3);
/// The number of a client's unfinished handshakes that is taken as no coincidence.
const ENOUGH: usize = 2;

/// Logs warnings about clients on the link of their backends, until the controller has ended.
pub(crate) async fn watch(handshakes: Handshakes, near: NearAddresses, calls: TaskCalls, statistics: Arc<Statistics>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = look.tick().await;
        let (reply, answer) = oneshot::channel();
        if calls.send(TaskCall::NearBackends { reply }).await.is_err() {
            return;
        }
        let Ok(backends) = answer.await else { return };
        let ifindexes: BTreeSet<u32> = backends.iter().map(|backend| backend.ifindex).collect();
        let clients = if ifindexes.is_empty() { Vec::new() } else { near.on(ifindexes).await };
        if clients.is_empty() {
            statistics.name_near_clients(HashMap::new());
            continue;
        }
        let record = handshakes.clone();
        let begun = spawn_blocking(move || {
            let addresses: Vec<IpAddr> = clients.iter().map(|client| client.address).collect();
            (record.begun(&addresses), clients)
        });
        let Ok((begun, clients)) = begun.await else { return };
        statistics.name_near_clients(unanswered(&begun, &clients, &backends, now));
    }
}

/// The clients to report by service, with a line about each client.
fn unanswered(
    begun: &[Begun],
    clients: &[NearAddress],
    backends: &[NearBackend],
    now: Instant,
) -> HashMap<ServiceId, Vec<Named>> {
    let backends: HashMap<BackendId, &NearBackend> = backends.iter().map(|backend| (backend.id, backend)).collect();
    let is_near = |client: IpAddr, ifindex| clients.contains(&NearAddress { ifindex, address: client });
    let mut waits: BTreeMap<(ServiceId, IpAddr), Vec<&NearBackend>> = BTreeMap::new();
    for Begun { client, backend, ago } in begun {
        let Some(backend) = backends.get(backend) else { continue };
        let up_for = now.into_std().saturating_duration_since(backend.up_since);
        if *ago >= WAITED && up_for > *ago && is_near(*client, backend.ifindex) {
            waits.entry((backend.service, *client)).or_default().push(backend);
        }
    }
    let mut said: HashMap<ServiceId, Vec<Named>> = HashMap::new();
    for ((service, client), backends) in waits {
        if let Some(backend) = backends.first().filter(|_| backends.len() >= ENOUGH) {
            said.entry(service).or_default().push((client, line(client, backend)));
        }
    }
    said
}

fn line(client: IpAddr, NearBackend { name, ifindex, .. }: &NearBackend) -> String {
    let interface = interfaces::name(*ifindex);
    format!(
        "client {client} and backend {name} are on the same link ({interface}), so replies bypass the balancer and \
         the client's connections fail; use forwarding = \"snat\""
    )
}

#[cfg(test)]
mod tests {
    use balancer_config::names::BackendName;

    use super::*;

    fn backend(id: u16, ifindex: u32, up_since: Instant) -> NearBackend {
        let name = BackendName { service: "web".to_owned(), backend: format!("web{id}") };
        NearBackend { service: ServiceId(1), id: BackendId(id), name, ifindex, up_since: up_since.into_std() }
    }

    #[test]
    fn when_a_client_on_the_link_begins_twice_and_never_goes_on_then_it_is_named() {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let client = |last| IpAddr::from([10, 1, 0, last]);
        let clients = [NearAddress { ifindex: 2, address: client(7) }, NearAddress { ifindex: 3, address: client(8) }];
        let backends = [backend(1, 2, start), backend(2, 2, start), backend(3, 2, now - Duration::from_secs(5))];
        let begun = |last, id, seconds| Begun {
            client: client(last),
            backend: BackendId(id),
            ago: Duration::from_secs(seconds),
        };
        let named = |all: &[Begun]| -> Vec<IpAddr> {
            unanswered(all, &clients, &backends, now).into_values().flatten().map(|(client, _)| client).collect()
        };
        assert_eq!(named(&[begun(7, 1, 4), begun(7, 2, 9)]), [client(7)]);
        assert!(named(&[begun(7, 1, 4)]).is_empty(), "one may be a client that has gone");
        assert!(named(&[begun(7, 1, 4), begun(7, 1, 2)]).is_empty(), "one may be about to be answered");
        assert!(named(&[begun(7, 3, 6), begun(7, 3, 9)]).is_empty(), "it was down then");
        assert!(named(&[begun(8, 1, 4), begun(8, 2, 9)]).is_empty(), "it is on another link");
        assert!(named(&[begun(7, 9, 4), begun(7, 9, 9)]).is_empty(), "other services than nat");
        let said = unanswered(&[begun(7, 1, 4), begun(7, 2, 9)], &clients, &backends, now);
        assert_eq!(
            said[&ServiceId(1)][0].1,
            format!(
                "client 10.1.0.7 and backend web/web1 are on the same link ({}), so replies bypass the balancer and \
                 the client's connections fail; use forwarding = \"snat\"",
                interfaces::name(2)
            )
        );
    }
}
