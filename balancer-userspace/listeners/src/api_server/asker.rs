//! The peer that sent a request, and the generation that the peer requires for a change.

use axum::{extract::FromRequestParts, http::request::Parts};
use balancer_api::IF_GENERATION;
use balancer_config::value;

use super::{failure::Failure, peer::Peer};
use crate::call::Calls;

/// The peer that requests a change, and the generation that the peer requires.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) uid: Option<u32>,
    /// The generation that the configuration must have; otherwise, the controller refuses the change.
    pub(super) if_generation: Option<u64>,
}

impl FromRequestParts<Calls> for Asker {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Calls) -> Result<Self, Failure> {
        let uid = parts.extensions.get::<Peer>().and_then(Peer::uid);
        let Some(header) = parts.headers.get(IF_GENERATION) else { return Ok(Self { uid, if_generation: None }) };
        let number = header.to_str().ok().and_then(|text| text.parse().ok());
        let Some(number) = number else {
            let shown = value::quoted(&String::from_utf8_lossy(header.as_bytes()));
            return Err(Failure::bad_request(format!("{IF_GENERATION}: {shown} is not a generation; give a number")));
        };
        Ok(Self { uid, if_generation: Some(number) })
    }
}
