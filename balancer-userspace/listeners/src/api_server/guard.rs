//! Guards all requests: refuses requests that the peer is not allowed to make, and writes requests for changes to the
//! audit file.

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tracing::info;

use super::{
    body::discard,
    failure::Failure,
    peer::{Needs, Peer},
};
use crate::audit::{Audit, Entry};

/// The maximum number of characters of a request's method and path in messages.
const LONGEST: usize = 500;

/// Marks an answer with whether the request only planned a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned(pub(super) bool);

/// The fields with text that an answer may have.
#[derive(Default, Deserialize)]
struct Told {
    message: Option<String>,
    error: Option<String>,
}

/// Answers a request if the peer has the right `needs`, and refuses the request otherwise.
pub(super) async fn guard(State(needs): State<Needs>, request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return Failure::new(StatusCode::FORBIDDEN, "the sender of the request is unknown").into_response();
    };
    let audit = request.extensions().get::<Audit>().cloned();
    let asked: String = format!("{} {}", request.method(), request.uri()).chars().take(LONGEST).collect();
    let changes = needs != Needs::Read && (request.method() != Method::GET || needs == Needs::Keys);
    let is_allowed = peer.may().is_some_and(|most| needs <= most);
    let response = if is_allowed { next.run(request).await } else { refuse(&peer, needs, request).await };
    let is_planned = response.extensions().get::<Planned>().is_some_and(|planned| planned.0);
    if is_planned || is_allowed && !changes {
        return response;
    }
    tell(audit.as_ref(), &peer, &asked, response).await
}

async fn refuse(peer: &Peer, needs: Needs, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // The peer would lose the answer while it is still sending.
    discard(&parts.headers, body).await;
    let peer = peer.clone();
    let why = spawn_blocking(move || peer.refusal(needs)).await.unwrap_or_else(|_| "this is not allowed".to_owned());
    Failure::new(StatusCode::FORBIDDEN, why).into_response()
}

/// Records a request with the message of its answer; the body of the answer is in memory.
async fn tell(audit: Option<&Audit>, peer: &Peer, request: &str, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer ended early").into_response();
    };
    let told = serde_json::from_slice::<Told>(&bytes).unwrap_or_default();
    let result = told.message.or(told.error).unwrap_or_default();
    let (via, who) = peer.told();
    if let Peer::Remote { names, address, .. } = peer {
        info!("the certificate {names} at {address} asked for {request}: {} {result}", parts.status.as_u16());
    }
    if let Some(audit) = audit {
        audit.tell(&Entry { via, who, request, status: parts.status.as_u16(), result: &result });
    }
    Response::from_parts(parts, Body::from(bytes))
}
