//! Request bodies, with limits on size and time.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use balancer_api::MAX_REQUEST_BODY;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::failure::Failure;

/// The maximum time for receiving the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of bytes of an oversized body that the server reads and discards, so that a connection reset does
/// not destroy the answer.
const MAX_DISCARDED: usize = 16 << 20;

/// Reads a JSON body; the error message shows `shape`, an example of a valid body.
pub(super) async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body, shape: &str) -> Result<T, Failure> {
    read_up_to(MAX_REQUEST_BODY, headers, body, shape).await
}

/// Reads a JSON body of up to `limit` bytes.
pub(super) async fn read_up_to<T: DeserializeOwned>(
    limit: usize,
    headers: &HeaderMap,
    body: Body,
    shape: &str,
) -> Result<T, Failure> {
    let bytes = timeout(BODY_TIMEOUT, read_bytes(limit, headers, body)).await.unwrap_or_else(|_| {
        let text = format!("the body did not arrive within {} s; nothing was changed", BODY_TIMEOUT.as_secs());
        Err(Failure::new(StatusCode::REQUEST_TIMEOUT, text))
    })?;
    // The parser would also accept a JSON list that contains the values of the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Failure::bad_request(format!("the body is not a JSON object; give {shape}")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::bad_request(format!("the body is not right: {error}; give {shape}")))
}

/// Discards a body that the server does not need, until the end of the body or a timeout.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let all = async {
        let mut discarded = 0;
        while discarded <= MAX_DISCARDED
            && let Some(Ok(frame)) = body.frame().await
        {
            discarded += frame.data_ref().map_or(0, |data| data.len());
        }
    };
    // A peer that sends the body for longer than the timeout may lose the answer.
    let _ = timeout(BODY_TIMEOUT, all).await;
}

async fn read_bytes(limit: usize, headers: &HeaderMap, mut body: Body) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut discarded = 0;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut too_large = declared.is_some_and(|length| length > limit as u64);
    // The server answers at once if the peer waits for permission to send the body.
    while !(too_large && (headers.contains_key(header::EXPECT) || discarded > MAX_DISCARDED)) {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| Failure::bad_request(format!("the body ended early: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        too_large |= bytes.len() + data.len() > limit;
        if too_large {
            bytes = Vec::new();
            discarded += data.len();
        } else {
            bytes.extend_from_slice(data);
        }
    }
    if too_large {
        let text = format!("the body is larger than {} KiB; nothing was changed", limit >> 10);
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    Ok(bytes)
}
