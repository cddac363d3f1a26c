//! Describes errors in words for users.

use std::{error::Error, iter};

use tonic::{Code, Status};

/// Formats an error and its sources, without repetitions.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let errors = iter::successors(Some(error), |&error| error.source());
    let mut words: Vec<String> = Vec::new();
    // These error texts say only that the connection failed, and not why.
    let empty = ["transport error", "connection error"];
    for error in errors.map(ToString::to_string).filter(|error| !empty.contains(&error.as_str())) {
        if words.iter().all(|earlier| !earlier.contains(&error)) {
            words.push(error);
        }
    }
    if words
        .iter()
        .any(|word| word.contains("peer closed connection") || word.contains("closed before message completed"))
    {
        return "the server has ended the connection".to_owned();
    }
    if words.is_empty() { error.to_string() } else { explained(words.join(": ")) }
}

/// Describes the status with which a call ended.
pub(crate) fn status(status: &Status) -> String {
    match status.source() {
        // The status contains no message of the server, because the connection failed.
        Some(source) => chain(source),
        None if status.message().is_empty() => format!("etcd answers: {}", status.code()),
        None => format!("etcd answers: {}", status.message().trim_start_matches("etcdserver: ")),
    }
}

/// Whether the status means that the connection failed, and not that the server refused the call.
pub(crate) fn is_broken(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Cancelled)
}

/// Whether the server states that it will never carry out the request.
pub(crate) fn is_denial(status: &Status) -> bool {
    !is_broken(status)
        && matches!(
            status.code(),
            Code::ResourceExhausted
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::InvalidArgument
                | Code::FailedPrecondition
        )
}

/// Whether the server refuses all writes, and not only this write because it is malformed.
pub(crate) fn concerns_all_writes(status: &Status) -> bool {
    matches!(status.code(), Code::ResourceExhausted | Code::PermissionDenied | Code::Unauthenticated)
}

/// Adds an explanation if the TLS library's message does not say whose certificate is faulty.
fn explained(words: String) -> String {
    let refused =
        ["received fatal alert: BadCertificate", "CertificateRequired", "alert: UnknownCA", "alert: Certificate"];
    let meaning = if words.contains("UnknownIssuer") || words.contains("invalid peer certificate: BadSignature") {
        "etcd's certificate is not signed by a certificate of `ca`"
    } else if words.contains("certificate not valid for name") {
        "etcd's certificate is for another name than the endpoint's"
    } else if refused.iter().any(|alert| words.contains(alert)) {
        "etcd refuses this member's certificate, or the lack of one: see `cert` and `key`"
    } else if words.contains("InvalidContentType") {
        "what is there does not speak TLS: is it http://?"
    } else {
        return words;
    };
    format!("{meaning} ({words})")
}
