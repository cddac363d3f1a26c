//! The requests `/v1/stats` and `/v1/top`.

use std::{cmp::Ordering, collections::BTreeMap};

use axum::{Json, extract::State};
use balancer_api::{
    model::ClientQuery,
    statistics::{BackendShare, ChangeView, PeriodView, StatsView, TableView, TopClient, TopQuery},
    tally::{self, Tally},
};
use balancer_common::verdict::{CauseIndex, Decision, MoveCause};
use balancer_control::{
    history::Counted,
    snapshot::ServiceSnapshot,
    top::{By, Heavy},
};
use balancer_fleet::documents;
use serde::Deserialize;

use super::{
    exchange::{Asked, Outcome, ask, no_service, snapshot},
    failure::Failure,
};
use crate::call::{Call, Calls, Tallies};

/// The default number of clients listed in `/v1/top`.
const CLIENTS: usize = 10;
/// The number of heavy clients listed in `/v1/stats`.
const TOP_OF_STATS: usize = 5;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatsQuery {
    service: Option<String>,
    #[serde(default)]
    fleet: bool,
}

pub(super) async fn stats(State(calls): State<Calls>, Asked(query): Asked<StatsQuery>) -> Outcome<Vec<StatsView>> {
    let mut views = views(&calls, query.service.as_deref()).await?;
    if query.fleet {
        let Tallies { others, shared } = ask(&calls, |reply| Call::Tallies { reply }).await??;
        let read =
            |bytes: Result<Vec<u8>, String>| bytes.and_then(|bytes| documents::unpack(&bytes, "what it has counted"));
        let others = others.into_iter().map(|(member, bytes)| (member, read(bytes))).collect();
        views = tally::add_up(views, &others, shared);
    }
    for view in &mut views {
        view.top_clients.truncate(TOP_OF_STATS);
        look_up(&calls, &mut view.top_clients).await?;
    }
    Ok(Json(views))
}

/// Returns this member's counters, which the other members of the fleet add to their own; `None` if the controller is
/// shutting down.
pub async fn tally(calls: &Calls) -> Option<Tally> {
    views(calls, None).await.ok().map(|views| Tally::of(&views))
}

/// Returns the statistics of one service, or of all services, but does not yet look up whether the heaviest clients are
/// known.
async fn views(calls: &Calls, service: Option<&str>) -> Result<Vec<StatsView>, Failure> {
    let view = |service: &ServiceSnapshot| {
        let clients = heaviest(service, None, By::Bytes).take(TOP_OF_STATS).collect();
        view(service, clients)
    };
    Ok(services(calls, service).await?.iter().map(view).collect())
}

pub(super) async fn top(State(calls): State<Calls>, Asked(query): Asked<TopQuery>) -> Outcome<Vec<TopClient>> {
    let services = services(&calls, query.service.as_deref()).await?;
    if let Some(name) = &query.backend
        && !services.iter().flat_map(|service| &service.backends).any(|backend| backend.name == *name)
    {
        let name = query.service.iter().chain([name]).map(String::as_str).collect::<Vec<_>>().join("/");
        let cure = "see \"balancer backend list\" or /v1/backends";
        return Err(Failure::bad_request(format!("there is no backend {name:?}; {cure}")));
    }
    let backend = query.backend.as_deref();
    let mut clients: Vec<TopClient> =
        services.iter().flat_map(|service| heaviest(service, backend, query.by)).collect();
    let weight = |client: &TopClient| match query.by {
        By::Bytes => client.bytes_per_second,
        By::Packets => client.packets_per_second,
    };
    clients.sort_by(|a, b| weight(b).partial_cmp(&weight(a)).unwrap_or(Ordering::Equal));
    clients.truncate(query.n.unwrap_or(CLIENTS));
    look_up(&calls, &mut clients).await?;
    Ok(Json(clients))
}

async fn services(calls: &Calls, name: Option<&str>) -> Result<Vec<ServiceSnapshot>, Failure> {
    let mut services = snapshot(calls).await?.services;
    if let Some(name) = name {
        if !services.iter().any(|service| service.name == name) {
            return Err(no_service(name, services.iter().map(|service| service.name.as_str())));
        }
        services.retain(|service| service.name == name);
    }
    Ok(services)
}

fn heaviest<'a>(
    service: &'a ServiceSnapshot,
    backend: Option<&'a str>,
    by: By,
) -> impl Iterator<Item = TopClient> + 'a {
    let top = &service.statistics.top;
    let named = move |heavy: &Heavy| {
        let found = service.backends.iter().find(|backend| backend.ids.contains(&heavy.backend));
        found.map(|backend| backend.name.clone())
    };
    top.heaviest(by).into_iter().map(move |heavy| (named(&heavy), heavy)).filter_map(move |(name, heavy)| {
        if backend.is_some() && name.as_deref() != backend {
            return None;
        }
        let rate = top.rate(&heavy.seen, service.statistics.interval);
        Some(TopClient {
            client: format!("{}/{}", heavy.client, service.prefix_of(heavy.client)),
            service: service.name.clone(),
            backend: name,
            share: top.share(&heavy.seen, by),
            packets_per_second: rate.packets,
            bytes_per_second: rate.bytes,
            known: false,
        })
    })
}

/// Looks up whether the client table contains these clients.
async fn look_up(calls: &Calls, clients: &mut [TopClient]) -> Result<(), Failure> {
    for client in clients {
        let address = client.client.split_once('/').and_then(|(address, _)| address.parse().ok());
        let Some(address) = address else { continue };
        let query = ClientQuery { address, service: Some(client.service.clone()) };
        // A service that was removed in the meantime knows no clients.
        let views = ask(calls, |reply| Call::Clients { query, reply }).await?.unwrap_or_default();
        client.known = views.iter().any(|view| view.known);
    }
    Ok(())
}

fn view(service: &ServiceSnapshot, top_clients: Vec<TopClient>) -> StatsView {
    let statistics = &service.statistics;
    let now = service.counted();
    let since = |period: &str, before: &Option<(std::time::Duration, Counted)>| {
        before.as_ref().map(|(ago, then)| period_view(period, Some(ago.as_secs()), &now.since(then)))
    };
    let periods = since("minute", &statistics.minute).into_iter().chain(since("hour", &statistics.hour));
    let known = service.backends.iter().map(|backend| backend.known_clients).sum();
    StatsView {
        service: service.name.clone(),
        steer: service.share.now,
        watched: service.is_watched(),
        stickiness_ratio: now.stickiness(),
        imbalance_ratio: service.imbalance(),
        client_gini: statistics.top.gini(known),
        periods: periods.chain([period_view("start", None, &now)]).collect(),
        backends: service
            .backends
            .iter()
            .zip(service.shares())
            .map(|(backend, (share, expected_share))| BackendShare {
                name: backend.name.clone(),
                state: backend.state.word().to_owned(),
                share,
                expected_share,
                known_clients: backend.known_clients,
                connections: backend.stats.connections,
            })
            .collect(),
        top_clients,
        table: TableView {
            size: service.table_size,
            generation: service.table_generation,
            last_change: service.last_change.as_ref().map(|change| ChangeView {
                message: change.message.clone(),
                slots_moved: change.slots_moved,
                needless_slots_moved: change.needless_slots_moved,
                seconds_ago: change.at.elapsed().as_secs(),
            }),
        },
        warnings: statistics.warnings.clone(),
    }
}

fn period_view(period: &str, seconds: Option<u64>, counted: &Counted) -> PeriodView {
    let decisions: BTreeMap<String, u64> =
        Decision::ALL.iter().map(|decision| decision.label().to_owned()).zip(counted.decisions).collect();
    let moves = MoveCause::ALL.iter().map(|&cause| {
        let count = counted.moves.get(CauseIndex::from(cause).counter()).copied().unwrap_or(0);
        (cause.label().to_owned(), count)
    });
    PeriodView {
        period: period.to_owned(),
        seconds,
        stickiness_ratio: counted.stickiness(),
        connections: counted.decisions.iter().sum(),
        decisions,
        moves: moves.collect(),
    }
}
