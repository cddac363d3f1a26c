//! The request `GET /v1/events`.

use axum::{Json, extract::State, http::StatusCode};
use balancer_api::events::{EventsView, MAX_WAIT};
use balancer_config::value;
use balancer_runtime::events::Since;
use serde::Deserialize;

use super::{
    exchange::{Asked, Outcome, ask, patience},
    failure::Failure,
};
use crate::call::{Call, Calls};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    since: Option<String>,
    last: Option<usize>,
    wait: Option<String>,
}

pub(super) async fn events(State(calls): State<Calls>, Asked(query): Asked<EventsQuery>) -> Outcome<EventsView> {
    let since = match (query.since, query.last) {
        (Some(_), Some(_)) => {
            return Err(Failure::bad_request("since and last contradict each other; give one of them"));
        }
        (Some(since), None) => begin(&since).map_err(Failure::bad_request)?,
        (None, Some(last)) => Since::Last(last),
        (None, None) => Since::Sequence(0),
    };
    let wait = patience(query.wait.as_deref(), MAX_WAIT)?;
    let events = ask(&calls, |reply| Call::Events { reply }).await?;
    let found = events.read(since, wait).await;
    found.map(Json).map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

/// Parses the start of the range of requested events: the number of an event, or an age.
fn begin(text: &str) -> Result<Since, String> {
    if let Ok(sequence) = text.parse() {
        return Ok(Since::Sequence(sequence));
    }
    value::duration(text)
        .map(Since::Age)
        .map_err(|_| format!("since is {}; give the number of an event, or an age such as 10m", value::quoted(text)))
}
