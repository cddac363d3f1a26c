//! The request `/v1/trace`.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use balancer_api::trace::{BeginTrace, InterfaceName, MAX_WAIT, TraceBegun, TraceEnded, TraceView};
use nix::net::if_::if_nameindex;
use serde::Deserialize;

use super::{
    asker::Asker,
    body::read,
    exchange::{Asked, Names, Outcome, ask, patience},
    failure::Failure,
};
use crate::call::{Call, Calls};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceQuery {
    wait: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

pub(super) async fn begin(
    State(calls): State<Calls>,
    asker: Asker,
    headers: HeaderMap,
    body: Body,
) -> Outcome<TraceBegun> {
    let shape = r#"{"service": "web", "client": "203.0.113.0/24", "snaplen": 256}, the first two as is wanted"#;
    let wanted: BeginTrace = read(&headers, body, shape).await?;
    let trace = ask(&calls, |reply| Call::Trace { wanted, uid: asker.uid, reply }).await??;
    Ok(Json(TraceBegun { trace: trace.number }))
}

pub(super) async fn packets(
    State(calls): State<Calls>,
    Names(trace): Names<u64>,
    Asked(query): Asked<TraceQuery>,
) -> Outcome<TraceView> {
    let wait = patience(query.wait.as_deref(), MAX_WAIT)?;
    let (trace, hops) = ask(&calls, |reply| Call::Traced { trace, reply }).await??;
    trace.watch(&hops);
    let packets = trace.take(wait).await;
    Ok(Json(TraceView { packets, lost: trace.lost(), hops, interfaces: interfaces()? }))
}

pub(super) async fn end(
    State(calls): State<Calls>,
    Names(trace): Names<u64>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Outcome<TraceEnded> {
    let (trace, _) = ask(&calls, |reply| Call::Traced { trace, reply }).await??;
    trace.end();
    Ok(Json(TraceEnded { lost: trace.lost() }))
}

fn interfaces() -> Result<Vec<InterfaceName>, Failure> {
    let unknown = |error| {
        let text = format!("the kernel does not name its interfaces: {error}");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let all = if_nameindex().map_err(unknown)?;
    let named = |interface: &nix::net::if_::Interface| InterfaceName {
        ifindex: interface.index(),
        name: interface.name().to_string_lossy().into_owned(),
    };
    Ok(all.iter().map(named).collect())
}
