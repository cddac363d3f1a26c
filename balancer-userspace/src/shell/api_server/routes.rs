//! What is asked at which path, and the call it becomes.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    routing::{MethodRouter, delete, get, post, put},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::oneshot, time::timeout};

use super::{body::read, events, failure::Failure};
use crate::{
    api::model::{
        AddBackend, BackendEntry, Changed, ClientQuery, ClientView, ServiceView, SetAdmin, SetWeight, StatusView,
    },
    config::value,
    core::io::{Admin, BackendName, Change},
    shell::call::{Call, Calls},
};

/// How long the controller may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The description of this API.
const OPENAPI: &str = include_str!("../../../../docs/openapi.json");

/// Every method, its path and what answers it. `docs/openapi.json` describes each; `tests/openapi.rs` compares.
fn table() -> Vec<(&'static str, &'static str, MethodRouter<Calls>)> {
    vec![
        ("GET", "/v1/status", get(status)),
        ("GET", "/v1/services", get(services)),
        ("GET", "/v1/services/{service}", get(service)),
        ("POST", "/v1/services/{service}/backends", post(add_backend)),
        ("DELETE", "/v1/services/{service}/backends/{backend}", delete(remove_backend)),
        ("PUT", "/v1/services/{service}/backends/{backend}/admin", put(set_admin)),
        ("PUT", "/v1/services/{service}/backends/{backend}/weight", put(set_weight)),
        ("GET", "/v1/backends", get(backends)),
        ("GET", "/v1/clients/{ip}", get(clients)),
        ("GET", "/v1/events", get(events::events)),
        ("GET", "/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI))),
    ]
}

/// Every method and path there is.
#[must_use]
pub fn routes() -> Vec<(&'static str, &'static str)> {
    table().into_iter().map(|(method, path, _)| (method, path)).collect()
}

pub(super) fn router(calls: Calls) -> Router {
    let router = table().into_iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler));
    router
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

async fn view(calls: &Calls) -> Result<StatusView, Failure> {
    match ask(calls, |reply| Call::Snapshot { reply }).await? {
        Ok(snapshot) => Ok(snapshot.into()),
        Err(error) => Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))),
    }
}

async fn change(calls: &Calls, peer: Peer, change: Change) -> Outcome<Changed> {
    Ok(Json(ask(calls, |reply| Call::Change { change, uid: peer.uid, reply }).await??))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceQuery {
    service: Option<String>,
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
    services.into_iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let hint = value::hint(name, &names, "services");
        Failure::new(StatusCode::NOT_FOUND, format!("there is no service {}; {hint}", value::quoted(name)))
    })
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
