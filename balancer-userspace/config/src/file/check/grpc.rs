//! The keys of checks of the types `grpc` and `grpcs`.

use super::{Keys, http};
use crate::{
    file::{findings::Findings, section::Section},
    value,
};

const MAX_SERVICE: usize = 255;

/// Reads the keys of a gRPC check. The function adds errors to `findings`.
pub(super) fn grpc(section: &mut Section<'_>, keys: &mut Keys, findings: &mut Findings<'_>) {
    let service = section.text("service", findings, service);
    keys.service = service.map(|service| service.value).or(keys.service.take());
    http::request(section, keys, findings);
}

fn service(text: &str) -> Result<String, String> {
    match text.len() {
        _ if text.chars().any(char::is_control) => {
            Err(format!("the service {} has a control character; remove it", value::quoted(text)))
        }
        0..=MAX_SERVICE => Ok(text.to_owned()),
        length => Err(format!("service has {length} bytes; give at most {MAX_SERVICE}")),
    }
}
