//! The drop-ins: services that the balancer keeps beside the services of the configuration file.

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use balancer_api::{
    MAX_CONFIGURATION_BODY,
    model::{Applied, Changed, DropInText, DropInView, SetDropIn},
};
use balancer_config::value;
use balancer_control::{io::Change, plan::clients_moved};

use super::{
    asker::Asker,
    body::read_up_to,
    exchange::{Asked, Names, NoQuery, Outcome, ask, change},
    failure::Failure,
    foreign,
    guard::Planned,
};
use crate::{
    call::{Call, Calls, DropIn},
    configuration::Configurations,
};

pub(super) async fn list(State(calls): State<Calls>, Asked(NoQuery {}): Asked<NoQuery>) -> Outcome<Vec<DropInView>> {
    Ok(Json(all(&calls).await?.into_iter().map(|(view, _)| view).collect()))
}

pub(super) async fn show(State(calls): State<Calls>, Names(name): Names<String>) -> Outcome<DropInText> {
    Ok(Json(find(&calls, &name).await?.1))
}

/// Replaces a drop-in, or only reports the effects.
pub(super) async fn set(
    State(calls): State<Calls>,
    Extension(configurations): Extension<Configurations>,
    asker: Asker,
    Names(name): Names<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<(Extension<Planned>, Json<Applied>), Failure> {
    value::name(&name).map_err(Failure::bad_request)?;
    let shape = r#"{"file": "shop.toml", "text": "[[service]]…", "dry_run": false}"#;
    let SetDropIn { file, text, dry_run } = read_up_to(MAX_CONFIGURATION_BODY, &headers, body, shape).await?;
    let parsed = configurations.parse_drop_in(name.clone(), file.into(), text.clone()).await;
    let (services, warnings) = parsed
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .map_err(|errors| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, errors.to_string()))?;
    foreign::refuse(&configurations, &services).await?;
    if services.is_empty() {
        let text = format!("a drop-in without [[service]] has no effect; remove it with DELETE /v1/drop-ins/{name}");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let wanted = Change::SetDropIn { name, text, services: services.copies() };
    let planned = ask(&calls, |reply| Call::Plan { change: wanted.clone(), reply }).await??;
    let mut applied = if dry_run {
        Applied::from(planned)
    } else {
        let Json(Changed { message, not_applied_by }) = change(&calls, asker, wanted).await?;
        let message = message + &clients_moved(&planned.services);
        Applied { message, differences: Vec::new(), not_applied_by, ..Applied::from(planned) }
    };
    applied.differences.splice(0..0, warnings.iter().map(|warning| format!("warning: {warning}")));
    Ok((Extension(Planned(dry_run)), Json(applied)))
}

/// Removes a drop-in with its services.
pub(super) async fn remove(State(calls): State<Calls>, asker: Asker, Names(name): Names<String>) -> Outcome<Changed> {
    find(&calls, &name).await?;
    change(&calls, asker, Change::SetDropIn { name, text: String::new(), services: Vec::new() }).await
}

async fn find(calls: &Calls, name: &str) -> Result<DropIn, Failure> {
    let mut all = all(calls).await?;
    match all.iter().position(|(view, _)| view.name == name) {
        Some(index) => Ok(all.swap_remove(index)),
        None => {
            let names: Vec<&str> = all.iter().map(|(view, _)| view.name.as_str()).collect();
            let hint = value::hint(name, &names, "drop-ins");
            let text = format!("there is no drop-in {}; {hint}", value::quoted(name));
            Err(Failure::new(StatusCode::NOT_FOUND, text))
        }
    }
}

async fn all(calls: &Calls) -> Result<Vec<DropIn>, Failure> {
    ask(calls, |reply| Call::DropIns { reply }).await
}
