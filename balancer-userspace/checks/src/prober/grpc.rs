//! The `grpc` and `grpcs` checks, which use the health checking protocol `grpc.health.v1`.

use std::net::SocketAddr;

use balancer_config::{config::GrpcCheck, value};
use balancer_control::io::CheckOutcome;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{self, HeaderValue},
};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    fault::told,
    http::{USER_AGENT, host, scheme},
    http2,
};

/// The maximum length in bytes of a gRPC answer.
const ANSWER: usize = 64 * 1024;
/// The length in bytes of a gRPC message's header, which consists of a flag and the length of the message.
const HEAD: usize = 5;

/// The names of gRPC's status codes, starting with code 0.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const OK: u32 = 0;
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;

/// The message type `grpc.health.v1.HealthCheckRequest`.
#[derive(prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// The message type `grpc.health.v1.HealthCheckResponse`.
#[derive(prost::Message)]
struct HealthCheckResponse {
    /// The state of the service, as a `ServingStatus`.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The name of the service whose state the check requests; empty for the server as a whole.
pub(super) struct Service(String);

/// The request that `check` sends to `target`, without the configured metadata.
pub(super) fn request(target: SocketAddr, check: &GrpcCheck) -> Result<Request<()>, hyper::http::Error> {
    let is_secure = check.tls.is_some();
    let host = check.host.clone().unwrap_or_else(|| host(target, is_secure));
    Request::post(format!("{}://{host}/grpc.health.v1.Health/Check", scheme(is_secure)))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(())
}

impl Service {
    pub(super) fn of(check: &GrpcCheck) -> Self {
        Self(check.service.clone())
    }

    /// Requests the state of the service, and judges the answer.
    pub(super) async fn ask(
        &self,
        scheme: &str,
        request: Request<()>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> CheckOutcome {
        let judge = |answer| async move {
            Ok(match self.judge(answer).await? {
                Ok(()) => CheckOutcome::Passed,
                Err(fault) => CheckOutcome::Soft(format!("{scheme}: {fault}")),
            })
        };
        let answered = http2::exchange(stream, request, Some(self.message()), judge).await;
        answered.unwrap_or_else(|error| http2::failure(scheme, &error))
    }

    fn message(&self) -> Bytes {
        let message = HealthCheckRequest { service: self.0.clone() }.encode_to_vec();
        let mut framed = BytesMut::with_capacity(HEAD + message.len());
        framed.put_u8(0);
        // The conversion cannot fail, because the length of a service's name is limited.
        framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        framed.put_slice(&message);
        framed.freeze()
    }

    /// Returns the fault that the whole answer reports; no fault if the service is serving.
    async fn judge(&self, answer: Response<RecvStream>) -> Result<Result<(), String>, h2::Error> {
        let (head, mut body) = answer.into_parts();
        // In an answer without a message, the status is in the headers.
        if let Some(status) = Status::of(&head.headers) {
            return Ok(self.status(&status).and(Err("an answer without a message".to_owned())));
        }
        if head.status != StatusCode::OK {
            return Ok(Err(format!("HTTP status {}", head.status.as_u16())));
        }
        if !is_grpc(head.headers.get(header::CONTENT_TYPE)) {
            return Ok(Err("not a gRPC answer".to_owned()));
        }
        let mut read = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            if read.len() + data.len() > ANSWER {
                return Ok(Err("the answer is too long".to_owned()));
            }
            read.extend_from_slice(&data);
        }
        let Some(status) = body.trailers().await?.as_ref().and_then(Status::of) else {
            return Ok(Err("the answer ends without a grpc-status".to_owned()));
        };
        Ok(self.status(&status).and_then(|()| self.state(message(&read)?)))
    }

    /// Returns the fault that the gRPC status of the request reports.
    fn status(&self, status: &Status) -> Result<(), String> {
        let what = match status.code {
            OK => return Ok(()),
            NOT_FOUND => format!("{} is unknown to it (NOT_FOUND)", self.shown()),
            UNIMPLEMENTED => "it has no health service (UNIMPLEMENTED)".to_owned(),
            code => match usize::try_from(code).ok().and_then(|code| CODES.get(code)) {
                Some(name) => format!("grpc-status {code} ({name})"),
                None => format!("grpc-status {code}"),
            },
        };
        Err(if status.message.is_empty() { what } else { format!("{what}: {}", status.message) })
    }

    /// Returns the fault that the state of the service reports.
    fn state(&self, message: &[u8]) -> Result<(), String> {
        let shown = self.shown();
        match HealthCheckResponse::decode(message).map(|answer| answer.status) {
            Ok(1) => Ok(()),
            Ok(0) => Err(format!("the state of {shown} is unknown to it (UNKNOWN)")),
            Ok(2) => Err(format!("{shown} is not serving (NOT_SERVING)")),
            Ok(3) => Err(format!("{shown} is unknown to it (SERVICE_UNKNOWN)")),
            Ok(other) => Err(format!("{shown} has the state {other}, which the protocol does not have")),
            Err(_) => Err("a message that is not of the health service".to_owned()),
        }
    }

    fn shown(&self) -> String {
        if self.0.is_empty() { "the server".to_owned() } else { format!("the service {}", value::quoted(&self.0)) }
    }
}

/// Whether a content type belongs to gRPC, for example `application/grpc+proto`.
fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    let rest = content_type.and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Returns the message in an answer with exactly one message.
fn message(read: &[u8]) -> Result<&[u8], String> {
    match read.split_first_chunk() {
        None if read.is_empty() => Err("an answer without a message".to_owned()),
        None => Err("the message is cut off".to_owned()),
        Some(([1..=u8::MAX, _, _, _, _], _)) => Err("the message is compressed, which was not asked for".to_owned()),
        Some((&[0, a, b, c, d], message)) => {
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok();
            length.and_then(|length| message.get(..length)).ok_or_else(|| "the message is cut off".to_owned())
        }
    }
}

/// The gRPC status of a request.
struct Status {
    code: u32,
    /// The explanation of the status in a printable form.
    message: String,
}

impl Status {
    fn of(headers: &HeaderMap) -> Option<Self> {
        // A status that is not a number counts as the code UNKNOWN.
        let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2);
        let message = headers.get("grpc-message").map(|message| told(&decoded(message.as_bytes())));
        Some(Self { code, message: message.unwrap_or_default() })
    }
}

/// Decodes a text with percent-encoded bytes.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let escaped = match after {
            [high, low, ..] if *byte == b'%' => hexadecimal(*high).zip(hexadecimal(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    bytes
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_message_is_percent_encoded_then_it_is_decoded_and_what_is_no_code_stays() {
        for (text, wanted) in [("%C3%a9t%C3%A9 %25", "été %"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("", "")] {
            assert_eq!(String::from_utf8(decoded(text.as_bytes())).unwrap(), wanted);
        }
    }

    #[test]
    fn when_a_message_is_not_whole_then_it_is_none() {
        assert_eq!(message(b"\0\0\0\0\x02\x08\x01"), Ok(&b"\x08\x01"[..]));
        assert_eq!(message(b"\0\0\0\0\0"), Ok(&b""[..]));
        for (read, why) in [
            (&b""[..], "an answer without a message"),
            (b"\0\0\0", "the message is cut off"),
            (b"\0\0\0\0\x02\x08", "the message is cut off"),
            (b"\0\xff\xff\xff\xff\x08", "the message is cut off"),
            (b"\x01\0\0\0\x02\x08\x01", "the message is compressed, which was not asked for"),
        ] {
            assert_eq!(message(read), Err(why.to_owned()), "{read:?}");
        }
    }

    #[test]
    fn when_the_state_is_not_serving_then_the_reason_names_it() {
        let cart = Service("shop.\"Cart\"".to_owned());
        assert_eq!(cart.state(b"\x08\x01"), Ok(()));
        assert_eq!(cart.state(b"\x12\x03new\x08\x01"), Ok(()), "a field of a later version");
        for (message, why) in [
            (&b"\x08\x02"[..], "the service \"shop.\\\"Cart\\\"\" is not serving (NOT_SERVING)"),
            (b"", "the state of the service \"shop.\\\"Cart\\\"\" is unknown to it (UNKNOWN)"),
            (b"\x08\x03", "the service \"shop.\\\"Cart\\\"\" is unknown to it (SERVICE_UNKNOWN)"),
            (b"\x08\x09", "the service \"shop.\\\"Cart\\\"\" has the state 9, which the protocol does not have"),
            (b"\x08", "a message that is not of the health service"),
        ] {
            assert_eq!(cart.state(message), Err(why.to_owned()));
        }
    }

    #[test]
    fn when_a_content_type_is_of_grpc_then_it_is_known_by_its_whole_name() {
        for (kind, wanted) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("text/html", false),
        ] {
            assert_eq!(is_grpc(Some(&HeaderValue::from_static(kind))), wanted, "{kind}");
        }
        assert!(!is_grpc(None));
    }
}
