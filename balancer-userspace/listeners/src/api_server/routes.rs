//! The paths of the control API, and the conversion of requests into calls to the controller.

use std::{net::IpAddr, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware::from_fn_with_state,
    response::Response,
    routing::{MethodRouter, delete, get, post, put},
};
use balancer_api::{
    MAX_CLIENTS_BODY, MAX_CONFIGURATION_BODY,
    model::{
        Applied, ApplyConfiguration, BackendEntry, Changed, ClientQuery, ClientView, FlowView, Force, ForceHealth,
        ForgottenView, HealthView, ImportClients, ImportedView, KnownClientsView, MAX_IMPORTED, PlanRequest, PlanView,
        RuleView, RuleWord, ServiceView, SetLimits, SetRule, SetSteer, SetWeight, StatusView,
    },
};
use balancer_config::{
    listeners::Listener, names::BackendName, states::Forced, validate::Valid, value, words::counted,
};
use balancer_control::{
    fleet::FleetSnapshot,
    io::{Change, Refused},
    next_step,
    plan::{clients_changing_sides, clients_moved},
    readiness::Readiness,
    report::NOTHING_CHANGED,
    rules::Action,
};
use balancer_runtime::clocks::wall;
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::{
    asker::Asker,
    body::{read, read_up_to},
    change::{self, ADD_SHAPE, ADMIN_SHAPE},
    drop_ins, events,
    exchange::{Asked, Names, NoQuery, Outcome, ask, change, change_request, coming, no_service, snapshot},
    failure::Failure,
    foreign,
    guard::{Planned, guard},
    peer::Needs,
    quic, statistics, trace,
    written::written,
};
use crate::{
    call::{Call, Calls, ChangeRequest},
    configuration::Configurations,
    reload,
};

/// The OpenAPI description of the control API.
const OPENAPI: &str = include_str!("../../../../docs/openapi.json");

/// Every method with its path, the right that a request needs, and the function that answers the request.
/// `docs/openapi.json` describes each method and path, and `tests/openapi.rs` compares this table with the description.
fn table() -> Vec<(&'static str, &'static str, Needs, MethodRouter<Calls>)> {
    vec![
        ("GET", "/v1/status", Needs::Read, get(status)),
        ("GET", "/v1/ready", Needs::Read, get(ready)),
        ("GET", "/v1/fleet", Needs::Read, get(fleet)),
        ("PUT", "/v1/withdrawn", Needs::Change, put(withdraw)),
        ("DELETE", "/v1/withdrawn", Needs::Change, delete(announce)),
        ("GET", "/v1/services", Needs::Read, get(services)),
        ("GET", "/v1/services/{service}", Needs::Read, get(service)),
        ("POST", "/v1/services/{service}/backends", Needs::Change, post(add_backend)),
        ("DELETE", "/v1/services/{service}/backends/{backend}", Needs::Change, delete(remove_backend)),
        ("PUT", "/v1/services/{service}/backends/{backend}/admin", Needs::Drain, put(set_admin)),
        ("PUT", "/v1/services/{service}/backends/{backend}/weight", Needs::Drain, put(set_weight)),
        ("PUT", "/v1/services/{service}/backends/{backend}/limits", Needs::Change, put(set_limits)),
        ("PUT", "/v1/services/{service}/backends/{backend}/health", Needs::Change, put(force_health)),
        ("DELETE", "/v1/services/{service}/backends/{backend}/clients", Needs::Change, delete(forget_all)),
        ("PUT", "/v1/services/{service}/steer", Needs::Change, put(set_steer)),
        ("POST", "/v1/services/{service}/quic/key", Needs::Change, post(quic::rotate)),
        ("GET", "/v1/services/{service}/quic/{backend}", Needs::Keys, get(quic::server)),
        ("PUT", "/v1/services/{service}/listeners/{protocol}/{address}/{ports}", Needs::Change, put(add_listener)),
        (
            "DELETE",
            "/v1/services/{service}/listeners/{protocol}/{address}/{ports}",
            Needs::Change,
            delete(remove_listener),
        ),
        ("PUT", "/v1/services/{service}/rules/{address}/{length}", Needs::Change, put(set_rule)),
        ("DELETE", "/v1/services/{service}/rules/{address}/{length}", Needs::Change, delete(remove_rule)),
        ("GET", "/v1/services/{service}/clients", Needs::Read, get(export_clients)),
        ("POST", "/v1/services/{service}/clients", Needs::Change, post(import_clients)),
        ("GET", "/v1/backends", Needs::Read, get(backends)),
        ("GET", "/v1/health", Needs::Read, get(health)),
        ("GET", "/v1/rules", Needs::Read, get(rules)),
        ("GET", "/v1/flows", Needs::Read, get(flows)),
        ("GET", "/v1/clients/{ip}", Needs::Read, get(clients)),
        ("DELETE", "/v1/clients/{ip}", Needs::Change, delete(forget)),
        ("POST", "/v1/configuration", Needs::Change, post(apply)),
        ("POST", "/v1/configuration/reread", Needs::Change, post(reread)),
        ("GET", "/v1/drop-ins", Needs::Read, get(drop_ins::list)),
        ("GET", "/v1/drop-ins/{drop_in}", Needs::Change, get(drop_ins::show)),
        ("PUT", "/v1/drop-ins/{drop_in}", Needs::Change, put(drop_ins::set)),
        ("DELETE", "/v1/drop-ins/{drop_in}", Needs::Change, delete(drop_ins::remove)),
        ("POST", "/v1/plan", Needs::Read, post(plan)),
        ("GET", "/v1/stats", Needs::Read, get(statistics::stats)),
        ("GET", "/v1/top", Needs::Read, get(statistics::top)),
        ("GET", "/v1/events", Needs::Read, get(events::events)),
        ("POST", "/v1/trace", Needs::Change, post(trace::begin)),
        ("GET", "/v1/trace/{trace}", Needs::Change, get(trace::packets)),
        ("DELETE", "/v1/trace/{trace}", Needs::Change, delete(trace::end)),
        ("GET", "/v1/openapi.json", Needs::Read, get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI))),
    ]
}

/// Every method and path of the API.
#[must_use]
pub fn routes() -> Vec<(&'static str, &'static str)> {
    table().into_iter().map(|(method, path, ..)| (method, path)).collect()
}

pub(super) fn router(calls: Calls, configurations: Configurations) -> Router {
    let router = table().into_iter().fold(Router::new(), |router, (_, path, needs, handler)| {
        router.route(path, handler.route_layer(from_fn_with_state(needs, guard)))
    });
    router
        .fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            Failure::new(StatusCode::NOT_FOUND, format!("no resource {path}; start from /v1/status"))
        })
        .method_not_allowed_fallback(async |parts: Parts| {
            let path = value::quoted(parts.uri.path());
            let text = format!("{path} does not take {}; the Allow header says what it takes", parts.method);
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .layer(Extension(configurations))
        .with_state(calls)
}

async fn view(calls: &Calls) -> Result<StatusView, Failure> {
    snapshot(calls).await.map(Into::into)
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

async fn status(State(calls): State<Calls>) -> Result<Response, Failure> {
    written(StatusView::from(coming(&calls).await?)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyQuery {
    #[serde(default)]
    announced: bool,
}

async fn ready(State(calls): State<Calls>, Asked(ReadyQuery { announced }): Asked<ReadyQuery>) -> Outcome<Readiness> {
    Ok(Json(ask(&calls, |reply| Call::Ready { reply }).await?.seen(announced)))
}

async fn fleet(State(calls): State<Calls>, Asked(NoQuery {}): Asked<NoQuery>) -> Outcome<FleetSnapshot> {
    let none = || Failure::new(StatusCode::NOT_FOUND, "this balancer is in no fleet: its configuration has no [fleet]");
    coming(&calls).await?.fleet.ok_or_else(none).map(Json)
}

async fn withdraw(State(calls): State<Calls>, asker: Asker, Asked(NoQuery {}): Asked<NoQuery>) -> Outcome<Changed> {
    change_request(&calls, asker, ChangeRequest::Withdraw(true)).await
}

async fn announce(State(calls): State<Calls>, asker: Asker, Asked(NoQuery {}): Asked<NoQuery>) -> Outcome<Changed> {
    change_request(&calls, asker, ChangeRequest::Withdraw(false)).await
}

async fn services(State(calls): State<Calls>) -> Outcome<Vec<ServiceView>> {
    view(&calls).await.map(|status| Json(status.services))
}

async fn service(State(calls): State<Calls>, Names(name): Names<String>) -> Outcome<ServiceView> {
    find(view(&calls).await?.services, |service| &service.name, &name).map(Json)
}

fn find<T>(services: Vec<T>, name_of: impl Fn(&T) -> &str, name: &str) -> Result<T, Failure> {
    match services.iter().position(|service| name_of(service) == name) {
        Some(index) => Ok(services.into_iter().nth(index).ok_or_else(Failure::stopping)?),
        None => Err(no_service(name, services.iter().map(&name_of))),
    }
}

/// The service that the request names, or all services.
fn asked_for<T>(
    services: Vec<T>,
    name_of: impl Fn(&T) -> &str,
    ServiceQuery { service }: ServiceQuery,
) -> Result<Vec<T>, Failure> {
    match service {
        Some(name) => Ok(vec![find(services, name_of, &name)?]),
        None => Ok(services),
    }
}

async fn backends(State(calls): State<Calls>, Asked(query): Asked<ServiceQuery>) -> Outcome<Vec<BackendEntry>> {
    let services = asked_for(view(&calls).await?.services, |service| &service.name, query)?;
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
    let query = client_query(&address, query)?;
    Ok(Json(ask(&calls, |reply| Call::Clients { query, reply }).await??))
}

fn client_query(address: &str, ServiceQuery { service }: ServiceQuery) -> Result<ClientQuery, Failure> {
    let address = address
        .parse()
        .map_err(|_| Failure::bad_request(format!("{} is not an IP address", value::quoted(address))))?;
    Ok(ClientQuery { address, service })
}

async fn forget(
    State(calls): State<Calls>,
    asker: Asker,
    Names(address): Names<String>,
    Asked(query): Asked<ServiceQuery>,
) -> Outcome<ForgottenView> {
    let query = client_query(&address, query)?;
    Ok(Json(ask(&calls, |reply| Call::Forget { query, uid: asker.uid, reply }).await??))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportQuery {
    /// Client prefixes, separated by commas; without prefixes, the answer contains no clients.
    within: Option<String>,
}

async fn export_clients(
    State(calls): State<Calls>,
    Names(service): Names<String>,
    Asked(ExportQuery { within }): Asked<ExportQuery>,
) -> Outcome<KnownClientsView> {
    let within = within
        .iter()
        .flat_map(|within| within.split(','))
        .map(value::prefix)
        .collect::<Result<_, _>>()
        .map_err(Failure::bad_request)?;
    Ok(Json(ask(&calls, |reply| Call::ExportClients { service, within, reply }).await??))
}

async fn import_clients(
    State(calls): State<Calls>,
    asker: Asker,
    Names(service): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<ImportedView> {
    let shape = r#"{"clients": [{"client": "203.0.113.7", "backend": "web1", "age_seconds": 40}]}"#;
    let ImportClients { clients, overwrite } = read_up_to(MAX_CLIENTS_BODY, &headers, body, shape).await?;
    if clients.len() > MAX_IMPORTED {
        let text = format!("the request has {} clients; give at most {MAX_IMPORTED}", clients.len());
        return Err(Failure::bad_request(text));
    }
    Ok(Json(ask(&calls, |reply| Call::ImportClients { service, clients, overwrite, uid: asker.uid, reply }).await??))
}

async fn forget_all(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
) -> Outcome<ForgottenView> {
    let backend = BackendName { service, backend };
    Ok(Json(ask(&calls, |reply| Call::ForgetAll { backend, uid: asker.uid, reply }).await??))
}

async fn add_backend(
    State(calls): State<Calls>,
    asker: Asker,
    Names(service): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let backend = read(&headers, body, ADD_SHAPE).await?;
    change(&calls, asker, change::add(service, backend)?).await
}

async fn remove_backend(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
    Asked(RemoveQuery { force }): Asked<RemoveQuery>,
) -> Outcome<Changed> {
    change(&calls, asker, Change::Remove { name: BackendName { service, backend }, force }).await
}

async fn set_admin(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let admin = read(&headers, body, ADMIN_SHAPE).await?;
    change(&calls, asker, change::set_admin(BackendName { service, backend }, admin)?).await
}

async fn set_steer(
    State(calls): State<Calls>,
    asker: Asker,
    Names(service): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let SetSteer { steer, force } = read(&headers, body, r#"{"steer": 10, "force": false}, 0 to 100"#).await?;
    let set = Change::SetSteer { service: service.clone(), steer };
    // Only a plan counts the clients that would move between balancer and host.
    let planned = ask(&calls, |reply| Call::Plan { change: set.clone(), reply }).await??;
    if !force {
        check_step(&calls, &service, steer).await?;
    }
    let Json(Changed { message, not_applied_by }) = change(&calls, asker, set).await?;
    Ok(Json(Changed { message: message + &clients_changing_sides(&planned.services), not_applied_by }))
}

/// Refuses a step to more steered clients if they would not be served.
async fn check_step(calls: &Calls, service: &str, steer: u8) -> Result<(), Failure> {
    let service = find(snapshot(calls).await?.services, |service| &service.name, service)?;
    Ok(next_step::check(&service, steer)?)
}

async fn add_listener(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, protocol, address, ports)): Names<(String, String, String, String)>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Outcome<Changed> {
    let listener = listener(&protocol, &address, &ports)?;
    change(&calls, asker, Change::AddListener { service, listener }).await
}

async fn remove_listener(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, protocol, address, ports)): Names<(String, String, String, String)>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Outcome<Changed> {
    let listener = listener(&protocol, &address, &ports)?;
    change(&calls, asker, Change::RemoveListener { service, listener }).await
}

fn listener(protocol: &str, address: &str, ports: &str) -> Result<Listener, Failure> {
    let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{address}:{ports}/{protocol}").parse().map_err(Failure::bad_request)
}

async fn set_weight(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let SetWeight { weight } = read(&headers, body, r#"{"weight": 100}, 0 to 65535"#).await?;
    change(&calls, asker, Change::SetWeight { name: BackendName { service, backend }, weight }).await
}

async fn set_limits(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let limits: SetLimits = read(&headers, body, r#"{"max_clients": 1000}"#).await?;
    change(&calls, asker, change::set_limits(BackendName { service, backend }, limits)).await
}

async fn apply(
    State(calls): State<Calls>,
    Extension(configurations): Extension<Configurations>,
    asker: Asker,
    headers: HeaderMap,
    body: Body,
) -> Result<(Extension<Planned>, Json<Applied>), Failure> {
    let shape = r#"{"file": "balancer.toml", "text": "…", "dry_run": false}"#;
    let ApplyConfiguration { file, text, dry_run, age_seconds, force, reset, path } =
        read_up_to(MAX_CONFIGURATION_BODY, &headers, body, shape).await?;
    let parsed = configurations.parse(file.clone().into(), text.into_bytes()).await;
    let (config, warnings) = parsed
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .map_err(|errors| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, errors.to_string()))?;
    foreign::refuse(&configurations, &config.services).await?;
    let services = config.services.clone();
    let config = Box::new(config);
    let reload = if reset { Change::Reset(config.clone()) } else { Change::Reload(config.clone()) };
    let planned = ask(&calls, |reply| Call::Plan { change: reload.clone(), reply }).await??;
    // A member of a fleet uses only the services of the configuration file.
    if config.fleet.is_none() && planned.reports.iter().any(|line| line.starts_with("control.")) {
        foreign::refuse_control(&configurations, &config).await?;
    }
    let is_older = planned.message != NOTHING_CHANGED && is_older(&calls, age_seconds, services.clone(), reset).await?;
    let newer = if reset { "the file that the fleet applied last" } else { "the newest change in the fleet" };
    let mut applied = if dry_run {
        Applied::from(planned)
    } else if is_older && !force {
        let would = format!("{}{}", planned.message, clients_moved(&planned.services));
        return Err(Failure::new(
            StatusCode::CONFLICT,
            format!(
                "nothing was changed: {file} is older than {newer}; to apply it all the same, use --force, which \
                 would do this: {would}"
            ),
        ));
    } else {
        let Json(Changed { message, not_applied_by }) = change(&calls, asker, reload).await?;
        if let Some(path) = path {
            calls.send(Call::FileApplied { path, services }).await.map_err(|_| Failure::stopping())?;
        }
        let message = message + &clients_moved(&planned.services);
        Applied { message, differences: Vec::new(), not_applied_by, ..Applied::from(planned) }
    };
    if dry_run && is_older {
        let older = format!("warning: {file} is older than {newer}: applying it needs --force");
        applied.differences.insert(0, older);
    }
    applied.differences.splice(0..0, warnings.iter().map(|warning| format!("warning: {warning}")));
    Ok((Extension(Planned(dry_run)), Json(applied)))
}

/// Rereads the configuration file as SIGHUP does, and returns the result.
async fn reread(State(calls): State<Calls>, Extension(configurations): Extension<Configurations>) -> Outcome<Changed> {
    let Some(file) = configurations.own() else {
        return Err(Failure::new(StatusCode::CONFLICT, "this balancer was started without a file"));
    };
    let (path, file) = (file.display().to_string(), file.to_owned());
    match reload::reread(&calls, &configurations, file).await {
        Some(Ok(services)) => {
            let message = format!("{path} reloaded: serving {}", counted(services, "service"));
            Ok(Json(Changed::applied(message)))
        }
        Some(Err(refused)) => Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, refused)),
        None => Err(Failure::stopping()),
    }
}

/// Whether a configuration file of this age is too old for the fleet to apply its services.
async fn is_older(calls: &Calls, age_seconds: Option<f64>, services: Valid, reset: bool) -> Result<bool, Failure> {
    let Some(age) = age_seconds.and_then(|age| Duration::try_from_secs_f64(age).ok()) else { return Ok(false) };
    let oldest = ask(calls, |reply| Call::OldestFile { services, reset, reply }).await?;
    Ok(oldest.zip(wall().checked_sub(age)).is_some_and(|(oldest, modified)| modified < oldest))
}

async fn plan(State(calls): State<Calls>, headers: HeaderMap, body: Body) -> Outcome<PlanView> {
    let shape = r#"{"change": "remove", "service": "web", "name": "web4", "force": false}; other changes are add \
                   (with "backend"), admin (with "admin": {"admin": "drain"}), weight (with "weight": 100), steer (with "steer": 10 instead \
                   of "name"), add_listener and remove_listener (with "listener": "198.51.100.10:443/udp" instead of "name")"#;
    let request = read(&headers, body, shape).await?;
    let step = if let PlanRequest::Steer { steer, force: false, .. } = request { Some(steer) } else { None };
    let (service, change) = change::planned(request)?;
    let planned = ask(&calls, |reply| Call::Plan { change, reply }).await??;
    if let Some(steer) = step {
        check_step(&calls, &service, steer).await?;
    }
    find(planned.services, |plan| &plan.service, &service).map(|plan| Json(plan.into()))
}

async fn health(State(calls): State<Calls>, Asked(query): Asked<ServiceQuery>) -> Outcome<Vec<HealthView>> {
    let services = asked_for(snapshot(&calls).await?.services, |service| &service.name, query)?;
    let views = services.into_iter().flat_map(|service| {
        let name = service.name;
        service.backends.into_iter().flat_map(move |backend| HealthView::all(backend, &name))
    });
    Ok(Json(views.collect()))
}

async fn force_health(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, backend)): Names<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let ForceHealth { force } = read(&headers, body, r#"{"force": "up"}, "down" or "auto""#).await?;
    let forced = match force {
        Force::Up => Some(Forced::Up),
        Force::Down => Some(Forced::Down),
        Force::Auto => None,
    };
    change(&calls, asker, Change::ForceHealth { name: BackendName { service, backend }, forced }).await
}

async fn rules(State(calls): State<Calls>, Asked(query): Asked<ServiceQuery>) -> Outcome<Vec<RuleView>> {
    let ServiceQuery { service } = query;
    Ok(Json(ask(&calls, |reply| Call::Rules { service, reply }).await??))
}

/// The maximum number of connections in one answer.
const MOST_FLOWS: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    service: Option<String>,
    client: Option<IpAddr>,
}

async fn flows(State(calls): State<Calls>, Asked(query): Asked<FlowsQuery>) -> Outcome<Vec<FlowView>> {
    let FlowsQuery { service, client } = query;
    let look = ask(&calls, |reply| Call::Flows { service, reply }).await??;
    let found = spawn_blocking(move || look.list(client, MOST_FLOWS)).await;
    Ok(Json(found.map_err(|error| Refused::Conflict(format!("cannot list the connections: {error}")))?))
}

async fn set_rule(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, address, length)): Names<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Outcome<Changed> {
    let shape = r#"{"action": "pin", "backend": "web1"}, {"action": "spread"} or {"action": "deny", "ttl": "5m"}"#;
    let SetRule { action, backend, ttl } = read(&headers, body, shape).await?;
    let action = match (action, backend) {
        (RuleWord::Pin, Some(backend)) => Action::Pin { backend },
        (RuleWord::Spread, None) => Action::Spread,
        (RuleWord::Deny, None) => Action::Deny,
        (RuleWord::Pin, None) | (RuleWord::Spread | RuleWord::Deny, Some(_)) => {
            return Err(Failure::bad_request(format!("pin needs a backend, and nothing else takes one; give {shape}")));
        }
    };
    let prefix = value::prefix(&format!("{address}/{length}")).map_err(Failure::bad_request)?;
    let ttl = ttl.as_deref().map(value::duration).transpose().map_err(Failure::bad_request)?;
    change(&calls, asker, Change::AddRule { service, prefix, action, ttl }).await
}

async fn remove_rule(
    State(calls): State<Calls>,
    asker: Asker,
    Names((service, address, length)): Names<(String, String, String)>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Outcome<Changed> {
    let prefix = value::prefix(&format!("{address}/{length}")).map_err(Failure::bad_request)?;
    change(&calls, asker, Change::RemoveRule { service, prefix }).await
}
