//! What is asked at which path, and the call it becomes.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, StatusCode, request::Parts},
    routing::{delete, get, post, put},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::oneshot, time::timeout};

use super::{body::read, failure::Failure, statistics};
use crate::{
    api::model::{
        AddBackend, BackendEntry, Changed, ClientQuery, ClientView, PlanRequest, PlanView, ServiceView, SetAdmin,
        SetWeight, StatusView,
    },
    config::value,
    core::io::{Admin, BackendName, Change},
    shell::{
        call::{Call, Calls},
        snapshot::Snapshot,
    },
};

/// How long the controller may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn router(calls: Calls) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route("/v1/services/{service}/backends", post(add_backend))
        .route("/v1/services/{service}/backends/{backend}", delete(remove_backend))
        .route("/v1/services/{service}/backends/{backend}/admin", put(set_admin))
        .route("/v1/services/{service}/backends/{backend}/weight", put(set_weight))
        .route("/v1/backends", get(backends))
        .route("/v1/clients/{ip}", get(clients))
        .route("/v1/plan", post(plan))
        .route("/v1/stats", get(statistics::stats))
        .route("/v1/top", get(statistics::top))
        .fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            Failure::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}; start from /v1/status"))
        })
        .method_not_allowed_fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            let text = format!("{path} does not take {}; the Allow header says what it takes", parts.method);
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .with_state(calls)
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) uid: Option<u32>,
}

pub(super) type Outcome<T> = Result<Json<T>, Failure>;

/// The part of the URL that is not the body, checked; a rejection becomes JSON.
struct Names<T>(T);

impl<T: DeserializeOwned + Send> FromRequestParts<Calls> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let Path(names) = Path::from_request_parts(parts, state).await?;
        Ok(Self(names))
    }
}

/// The query string, checked; a rejection becomes JSON.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Calls> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let Query(asked) = Query::from_request_parts(parts, state).await?;
        Ok(Self(asked))
    }
}

/// Sends a call and waits for its answer.
pub(super) async fn ask<T>(calls: &Calls, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Failure> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        calls.send(call(reply)).await.map_err(|_| Failure::stopping())?;
        answer.await.map_err(|_| {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the controller is shutting down and gave no answer")
        })
    };
    timeout(CALL_TIMEOUT, exchange).await.unwrap_or_else(|_| {
        let text = format!(
            "the controller gave no answer within {} s; a change may have happened, look at the status",
            CALL_TIMEOUT.as_secs()
        );
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
    })
}

pub(super) async fn snapshot(calls: &Calls) -> Result<Snapshot, Failure> {
    ask(calls, |reply| Call::Snapshot { reply })
        .await?
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))
}

async fn view(calls: &Calls) -> Result<StatusView, Failure> {
    snapshot(calls).await.map(Into::into)
}

async fn change(calls: &Calls, peer: Peer, change: Change) -> Outcome<Changed> {
    Ok(Json(ask(calls, |reply| Call::Change { change, uid: peer.uid, reply }).await??))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceQuery {
    pub(super) service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

async fn status(State(calls): State<Calls>) -> Outcome<StatusView> {
    view(&calls).await.map(Json)
}

async fn services(State(calls): State<Calls>) -> Outcome<Vec<ServiceView>> {
    view(&calls).await.map(|status| Json(status.services))
}

async fn service(State(calls): State<Calls>, Names(name): Names<String>) -> Outcome<ServiceView> {
    find(view(&calls).await?.services, &name).map(Json)
}

fn find(services: Vec<ServiceView>, name: &str) -> Result<ServiceView, Failure> {
    let names: Vec<_> = services.iter().map(|service| service.name.clone()).collect();
    let found = services.into_iter().find(|service| service.name == name);
    found.ok_or_else(|| no_service(name, names.iter().map(String::as_str)))
}

pub(super) fn no_service<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Failure {
    let hint = value::hint(name, &names.collect::<Vec<_>>(), "services");
    Failure::new(StatusCode::NOT_FOUND, format!("there is no service {}; {hint}", value::quoted(name)))
}

async fn backends(State(calls): State<Calls>, Asked(query): Asked<ServiceQuery>) -> Outcome<Vec<BackendEntry>> {
    let mut services = view(&calls).await?.services;
    if let Some(name) = query.service {
        services = vec![find(services, &name)?];
    }
    let entries = services.into_iter().flat_map(|service| {
        let name = service.name;
        service.backends.into_iter().map(move |backend| BackendEntry { service: name.clone(), backend })
    });
    Ok(Json(entries.collect()))
}

async fn clients(
    State(calls): State<Calls>,
    Names(address): Names<String>,
    Asked(query): Asked<ServiceQuery>,
) -> Outcome<Vec<ClientView>> {
    let address = address
        .parse()
        .map_err(|_| Failure::bad_request(format!("{} is not an IP address", value::quoted(&address))))?;
    let query = ClientQuery { address, service: query.service };
    Ok(Json(ask(&calls, |reply| Call::Clients { query, reply }).await??))
}

async fn add_backend(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names(service): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let shape = r#"{"name": "web4", "address": "192.0.2.4:8080", "weight": 100, "backup": false}"#;
    let AddBackend { name, address, weight, backup } = read(&headers, body, shape).await?;
    let name = BackendName { service, backend: value::name(&name).map_err(Failure::bad_request)? };
    let (address, port) = value::address(&address).map_err(Failure::bad_request)?;
    change(&calls, peer, Change::Add { name, address, port, weight, backup }).await
}

async fn remove_backend(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    Asked(RemoveQuery { force }): Asked<RemoveQuery>,
) -> Outcome<Changed> {
    change(&calls, peer, Change::Remove { name: BackendName { service, backend }, force }).await
}

async fn set_admin(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let shape = r#"{"admin": "ready"}, {"admin": "drain", "timeout": "5m"} or {"admin": "maint"}"#;
    let SetAdmin { admin, timeout } = read(&headers, body, shape).await?;
    if timeout.is_some() && admin != Admin::Drain {
        return Err(Failure::bad_request(format!("a timeout means nothing without drain; give {shape}")));
    }
    let timeout = timeout.as_deref().map(value::duration).transpose().map_err(Failure::bad_request)?;
    change(&calls, peer, Change::SetAdmin { name: BackendName { service, backend }, admin, timeout }).await
}

async fn set_weight(
    State(calls): State<Calls>,
    Extension(peer): Extension<Peer>,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let SetWeight { weight } = read(&headers, body, r#"{"weight": 100}, 0 to 65535"#).await?;
    change(&calls, peer, Change::SetWeight { name: BackendName { service, backend }, weight }).await
}

async fn plan(State(calls): State<Calls>, headers: HeaderMap, body: Body) -> Outcome<PlanView> {
    let shape = r#"{"change": "remove", "service": "web", "name": "web4", "force": false}; other changes are add \
                   (with "backend"), admin (with "admin": {"admin": "drain"}) and weight (with "weight": 100)"#;
    let request: PlanRequest = read(&headers, body, shape).await?;
    let name = |service: String, backend: String| BackendName { service, backend };
    let (service, change) = match request {
        PlanRequest::Add { service, backend: AddBackend { name: backend, address, weight, backup } } => {
            let backend = value::name(&backend).map_err(Failure::bad_request)?;
            let (address, port) = value::address(&address).map_err(Failure::bad_request)?;
            (service.clone(), Change::Add { name: name(service, backend), address, port, weight, backup })
        }
        PlanRequest::Remove { service, name: backend, force } => {
            (service.clone(), Change::Remove { name: name(service, backend), force })
        }
        PlanRequest::Admin { service, name: backend, admin } => {
            let SetAdmin { admin, timeout } = admin;
            let timeout = timeout.as_deref().map(value::duration).transpose().map_err(Failure::bad_request)?;
            (service.clone(), Change::SetAdmin { name: name(service, backend), admin, timeout })
        }
        PlanRequest::Weight { service, name: backend, weight } => {
            (service.clone(), Change::SetWeight { name: name(service, backend), weight })
        }
    };
    Ok(Json(ask(&calls, |reply| Call::Plan { change, service, reply }).await??))
}
