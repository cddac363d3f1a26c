//! The page for browsers at `/`, a self-contained document; the balancer renders the numbers, so that the page works
//! without scripts. The document's script polls the page and merges changes into the document.
//!
//! Everybody who may scrape metrics may also see the page, so the page shows shares and ranks of clients, but never an
//! address.

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

/// The number of latest events from which the page selects those to show.
pub(super) const EVENTS: usize = 100;

/// HTTP headers of every answer with the page.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// Renders the page for `snapshot`. If a service is `selected`, the page shows only the selected service.
///
/// # Errors
/// Fails if the system provides no random numbers.
pub(super) fn whole(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> anyhow::Result<Response> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).context("no random numbers")?;
    let nonce = format!("{:032x}", u128::from_ne_bytes(random));
    // The policy allows only the style and the script with this nonce, and allows the script to request only the page
    // itself.
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::try_from(policy).context("a header's value")?;
    Ok(respond(document::document(snapshot, selected, events, &nonce), policy))
}

/// The changing sections of the page, which the page's script requests.
pub(super) fn numbers(snapshot: &Snapshot, selected: Option<&str>, events: &[EventView]) -> Response {
    respond(document::fragment(snapshot, selected, events), HeaderValue::from_static("default-src 'none'"))
}

fn respond(markup: Markup, policy: HeaderValue) -> Response {
    (HEADERS, [(header::CONTENT_SECURITY_POLICY, policy)], markup.into_string()).into_response()
}
