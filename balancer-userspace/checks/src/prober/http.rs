//! The pages that `http` and `https` checks request. The checks do not follow redirects.

use std::{io, net::SocketAddr, pin::pin};

use balancer_config::config::{BodyTest, HttpCheck, StatusRanges};
use balancer_control::io::CheckOutcome;
use bytes::Bytes;
use futures_util::future::{self, Either};
use http_body_util::Empty;
use hyper::{Request, Response, body::Body, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::{beginning, contains},
    fault::reason,
    http2::{self, Received},
    load::LoadHeaders,
    tls,
};

/// The maximum total length in bytes of status line and headers.
const HEADERS: usize = 64 * 1024;

/// The name and version of this program.
pub(super) const USER_AGENT: &str = concat!("balancer/", env!("CARGO_PKG_VERSION"));

/// The expected answer to a request.
pub(super) struct Page {
    expect_status: StatusRanges,
    expect_body: Option<BodyTest>,
    /// The receiver of `X-Load` headers in answers.
    words: Option<LoadHeaders>,
}

/// The request that `check` sends to `target`, without the configured headers.
pub(super) fn request(target: SocketAddr, check: &HttpCheck) -> Result<Request<()>, hyper::http::Error> {
    let is_secure = check.tls.is_some();
    let host = check.host.clone().unwrap_or_else(|| host(target, is_secure));
    let request = Request::builder().method(check.method.as_str());
    let request = if check.http2 {
        request.uri(format!("{}://{host}{}", scheme(is_secure), check.path))
    } else {
        request.uri(check.path.as_str()).header(header::HOST, host).header(header::CONNECTION, "close")
    };
    request.header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*").body(())
}

/// The URL scheme of a page.
pub(super) const fn scheme(is_secure: bool) -> &'static str {
    if is_secure { "https" } else { "http" }
}

impl Page {
    pub(super) fn of(check: &HttpCheck, words: Option<LoadHeaders>) -> Self {
        Self { expect_status: check.expect_status.clone(), expect_body: check.expect_body.clone(), words }
    }

    /// Requests the page over HTTP/1.1, and judges the answer.
    pub(super) async fn ask(
        &self,
        scheme: &str,
        request: Request<()>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> CheckOutcome {
        let answered = self.converse(request.map(|()| Empty::new()), stream).await;
        answered.unwrap_or_else(|error| failure(scheme, &error))
    }

    async fn converse(
        &self,
        request: Request<Empty<Bytes>>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> Result<CheckOutcome, hyper::Error> {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEADERS).handshake(TokioIo::new(stream)).await?;
        let judged = pin!(async { self.judge(sender.send_request(request).await?).await });
        // The bytes of the answer arrive only while the connection is polled. If the connection ends, the answer fails
        // as well.
        match future::select(judged, pin!(connection)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((_, judged)) => judged.await,
        }
    }

    /// Requests the page over HTTP/2, and judges the answer.
    pub(super) async fn ask_http2(
        &self,
        scheme: &str,
        request: Request<()>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> CheckOutcome {
        let judge = |answer: Response<_>| self.judge(answer.map(Received));
        let answered = http2::exchange(stream, request, None, judge).await;
        answered.unwrap_or_else(|error| http2::failure(scheme, &error))
    }

    async fn judge<B: Body<Data = Bytes> + Unpin>(&self, answer: Response<B>) -> Result<CheckOutcome, B::Error> {
        let (head, body) = answer.into_parts();
        let outcome = self.judged(head.status.as_u16(), body).await?;
        if let Some(words) = &self.words {
            words.note(&head.headers, outcome == CheckOutcome::Passed);
        }
        Ok(outcome)
    }

    async fn judged<B: Body<Data = Bytes> + Unpin>(&self, status: u16, body: B) -> Result<CheckOutcome, B::Error> {
        if !self.expect_status.contains(status) {
            return Ok(CheckOutcome::Soft(format!("status {status}")));
        }
        Ok(match &self.expect_body {
            None => CheckOutcome::Passed,
            Some(BodyTest::Contains(text)) => match contains(body, text.as_bytes()).await? {
                true => CheckOutcome::Passed,
                false => CheckOutcome::Soft(format!("body without {text:?}")),
            },
            Some(BodyTest::Matches(pattern)) => match pattern.is_match(&beginning(body).await?) {
                true => CheckOutcome::Passed,
                false => CheckOutcome::Soft(format!("body does not match {:?}", pattern.as_str())),
            },
        })
    }
}

/// The outcome of a check whose answer is incomplete: an invalid answer is a soft failure, and no answer is a hard
/// failure.
fn failure(scheme: &str, error: &hyper::Error) -> CheckOutcome {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_parse_too_large() {
        CheckOutcome::Soft(format!("{scheme}: headers too large"))
    } else if error.is_parse() {
        CheckOutcome::Soft(format!("{scheme}: not an HTTP/1.1 answer"))
    } else if let Some(error) = io {
        if tls::is_refusal(error) {
            tls::failure(error)
        } else {
            CheckOutcome::Hard(format!("{scheme}: connection {}", reason(error)))
        }
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        CheckOutcome::Hard(format!("{scheme}: connection closed"))
    } else {
        CheckOutcome::Hard(format!("{scheme}: {error}"))
    }
}

/// The host of an address, in the format for a header or URL.
pub(super) fn host(target: SocketAddr, is_secure: bool) -> String {
    let default_port = if is_secure { 443 } else { 80 };
    match target {
        SocketAddr::V4(target) if target.port() == default_port => target.ip().to_string(),
        SocketAddr::V6(target) if target.port() == default_port => format!("[{}]", target.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => target.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn when_no_host_is_configured_then_it_is_the_backends_address() {
        assert_eq!(host("10.0.0.9:80".parse().unwrap(), false), "10.0.0.9");
        assert_eq!(host("10.0.0.9:8080".parse().unwrap(), false), "10.0.0.9:8080");
        assert_eq!(host("[2001:db8::9]:80".parse().unwrap(), false), "[2001:db8::9]");
        assert_eq!(host("[2001:db8::9]:443".parse().unwrap(), true), "[2001:db8::9]");
        assert_eq!(host("[2001:db8::9]:443".parse().unwrap(), false), "[2001:db8::9]:443");
    }
}
