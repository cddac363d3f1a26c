//! The requests `/v1/services/{service}/quic/…`.

use axum::{Json, extract::State, http::StatusCode};
use balancer_api::{model::Changed, quic::QuicServerConfig};
use balancer_config::{quic::QuicKey, value};
use balancer_control::io::Change;

use super::{
    asker::Asker,
    exchange::{Asked, Names, NoQuery, Outcome, change, no_service, snapshot},
    failure::Failure,
};
use crate::call::Calls;

pub(super) async fn server(
    State(calls): State<Calls>,
    Names((service, backend)): Names<(String, String)>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Outcome<QuicServerConfig> {
    let services = snapshot(&calls).await?.services;
    let Some(of) = services.iter().find(|of| of.name == service) else {
        return Err(no_service(&service, services.iter().map(|of| of.name.as_str())));
    };
    let not_found = |text: String| Failure::new(StatusCode::NOT_FOUND, text);
    let quic = of.quic.as_ref().ok_or_else(|| not_found(format!("service {service} has no QUIC listener")))?;
    QuicServerConfig::of(&service, quic, &backend).map(Json).ok_or_else(|| {
        let names: Vec<&str> = quic.servers.iter().map(|(name, ..)| name.as_str()).collect();
        let hint = value::hint(&backend, &names, "backends");
        not_found(format!("service {service} has no backend {}; {hint}", value::quoted(&backend)))
    })
}

pub(super) async fn rotate(
    State(calls): State<Calls>,
    asker: Asker,
    Names(service): Names<String>,
    Asked(NoQuery {}): Asked<NoQuery>,
) -> Outcome<Changed> {
    let mut key = [0; 16];
    getrandom::fill(&mut key)
        .map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, format!("no random numbers: {error}")))?;
    change(&calls, asker, Change::RotateQuicKey { service, key: QuicKey(key) }).await
}
