//! What the handlers of requests share: the parts of requests, and the exchange with the controller.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query},
    http::{StatusCode, request::Parts},
};
use balancer_api::model::Changed;
use balancer_config::value;
use balancer_control::{
    io::Change,
    snapshot::{Coming, Snapshot},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

use super::{asker::Asker, failure::Failure};
use crate::call::{Call, Calls, ChangeRequest, Request};

/// The maximum time to wait for the controller's answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that a request with `wait` waits for new data, at most `most`.
pub(super) fn patience(wait: Option<&str>, most: Duration) -> Result<Duration, Failure> {
    let wait = wait.map(value::duration).transpose().map_err(Failure::bad_request)?.unwrap_or(Duration::ZERO);
    if wait > most {
        return Err(Failure::bad_request(format!("wait is too long; give at most \"{}s\"", most.as_secs())));
    }
    Ok(wait)
}

pub(super) type Outcome<T> = Result<Json<T>, Failure>;

/// The validated parameters in the path of a URL; the server answers invalid parameters with a JSON error.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Calls> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let Path(names) = Path::from_request_parts(parts, state).await?;
        Ok(Self(names))
    }
}

/// The validated query string of a URL; the server answers an invalid query with a JSON error.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Calls> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Calls) -> Result<Self, Failure> {
        let Query(asked) = Query::from_request_parts(parts, state).await?;
        Ok(Self(asked))
    }
}

/// Sends a call to the controller and waits for the answer.
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
            "the controller gave no answer within {} s; the change may have been made, check with `balancer status`",
            CALL_TIMEOUT.as_secs()
        );
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, text))
    })
}

/// Returns a snapshot of the whole state; each service in it is assembled only when it is read.
pub(super) async fn coming(calls: &Calls) -> Result<Snapshot<Coming>, Failure> {
    ask(calls, |reply| Call::Snapshot { reply })
        .await?
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))
}

/// Returns a snapshot of the whole state, completely assembled.
pub(super) async fn snapshot(calls: &Calls) -> Result<Snapshot, Failure> {
    let coming = coming(calls).await?;
    spawn_blocking(|| coming.whole()).await.map_err(|_| Failure::stopping())
}

/// Requests a change, and returns the line about it.
pub(super) async fn change(calls: &Calls, asker: Asker, change: Change) -> Outcome<Changed> {
    change_request(calls, asker, ChangeRequest::Change(change)).await
}

pub(super) async fn change_request(calls: &Calls, asker: Asker, change_request: ChangeRequest) -> Outcome<Changed> {
    let Asker { uid, if_generation } = asker;
    Ok(Json(ask(calls, |reply| Call::Change(Request { change_request, uid, if_generation, reply })).await??))
}

/// The query of a request that takes no query parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// The failure that no service has the name `name`; `names` are the names of the existing services.
pub(super) fn no_service<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Failure {
    let hint = value::hint(name, &names.collect::<Vec<_>>(), "services");
    Failure::new(StatusCode::NOT_FOUND, format!("there is no service {}; {hint}", value::quoted(name)))
}
