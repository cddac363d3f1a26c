//! Every request passes here, and goes on only if its peer may make it.

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::task::spawn_blocking;

use super::{
    body::discard,
    failure::Failure,
    peer::{Needs, Peer},
};

/// Answers a request that takes `needs`, or refuses it.
pub(super) async fn guard(State(needs): State<Needs>, request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return Failure::new(StatusCode::FORBIDDEN, "nobody knows who asks").into_response();
    };
    if needs <= peer.may() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // A peer that is still sending would lose the answer.
    discard(&parts.headers, body).await;
    let why = spawn_blocking(move || peer.refusal(needs)).await.unwrap_or_else(|_| "this is not allowed".to_owned());
    Failure::new(StatusCode::FORBIDDEN, why).into_response()
}
