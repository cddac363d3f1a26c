//! The page for browsers at `/`: a self-contained document, rendered by the balancer so that the numbers are visible
//! without scripts. Its script polls the page and merges changes.
//!
//! Every client that may scrape may see the page, so it shows shares and ranks of clients but never an address.

mod chart;
mod colours;
mod document;
mod fleet;
mod hour;
mod overview;
mod service;
mod slot_map;

use anyhow::Context as _;
use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use balancer_api::events::EventView;
use balancer_control::snapshot::Snapshot;
use maud::Markup;

/// The number of events among which the page finds those to show.
pub(super) const EVENTS: usize = 100;

/// Headers of every answer.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// The page for `snapshot`; only with the `selected` service if there is one.
///
/// # Errors
/// If the system provides no random numbers.
pub(super) fn whole(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> anyhow::Result<Response> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).context("no random numbers")?;
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    // The policy allows only the style and the script with the nonce, and the script may only request the page itself.
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::try_from(policy).context("a header's value")?;
    Ok(respond(document::document(snapshot, selected, events, &nonce), policy))
}

/// The changing part of the page, for its script.
pub(super) fn numbers(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> Response {
    respond(document::fragment(snapshot, selected, events), HeaderValue::from_static("default-src 'none'"))
}

fn respond(markup: Markup, policy: HeaderValue) -> Response {
    (HEADERS, [(header::CONTENT_SECURITY_POLICY, policy)], markup.into_string()).into_response()
}
