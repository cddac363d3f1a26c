//! The `http` and `https` checks. Redirects are not followed.

use std::{io, net::SocketAddr, pin::pin, sync::Arc};

use balancer_core::io::CheckOutcome;
use balancer_model::{
    config::{BodyTest, HeaderText, HttpCheck, StatusRanges},
    file::check::without_port,
    header::sendable,
};
use bytes::Bytes;
use futures_util::future::{self, Either};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    check::reason,
    files::{Shelf, Watched},
    load::Words,
    tls::{self, Trust},
};

/// The number of bytes of a body that are examined.
pub(super) const BODY: usize = 64 * 1024;
/// The maximum total length of status line and headers, in bytes.
const HEADERS: usize = 64 * 1024;

/// A request, and the expected answer.
pub(super) struct Question {
    request: Request<Empty<Bytes>>,
    /// Headers whose values are in files.
    headers: Vec<(HeaderName, Arc<Watched<HeaderValue>>)>,
    tls: Option<(Trust, ServerName<'static>)>,
    expect_status: StatusRanges,
    expect_body: Option<BodyTest>,
    /// The receiver of `X-Load`.
    words: Option<Words>,
}

/// Resources of this machine that a request needs, as of now.
#[derive(Default)]
pub(super) struct Means {
    tls: Option<TlsConnector>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Question {
    /// Makes the request of `check` to `target`.
    ///
    /// # Errors
    /// If the request is invalid, which validation of the configuration prevents.
    pub(super) fn new(target: SocketAddr, check: &HttpCheck) -> io::Result<Self> {
        let default_port = if check.tls.is_some() { 443 } else { 80 };
        let mut request = Request::builder()
            .method(check.method.as_str())
            .uri(check.path.as_str())
            .header(header::HOST, check.host.clone().unwrap_or_else(|| host(target, default_port)))
            .header(header::USER_AGENT, concat!("balancer/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(io::Error::other)?;
        let mut headers = Vec::new();
        for given in &check.headers {
            let name: HeaderName = given.name.parse().map_err(io::Error::other)?;
            match &given.value {
                HeaderText::File(file) => headers.push((name, HEADERS_IN_FILES.file(file))),
                HeaderText::Text(text) => {
                    let value = header_value(text.0.as_bytes()).map_err(io::Error::other)?;
                    request.headers_mut().insert(name, value);
                }
            }
        }
        let tls = match &check.tls {
            None => None,
            Some(settings) => {
                let name = settings.sni.as_deref().or(check.host.as_deref().map(without_port));
                let name = name.map(|name| ServerName::try_from(name.to_owned()));
                let name = name.unwrap_or_else(|| Ok(target.ip().into())).map_err(io::Error::other)?;
                Some((Trust::of(settings), name))
            }
        };
        let (expect_status, expect_body) = (check.expect_status.clone(), check.expect_body.clone());
        Ok(Self { request, headers, tls, expect_status, expect_body, words: None })
    }

    /// Reports the `X-Load` headers of answers to `words`.
    pub(super) fn telling(self, words: Words) -> Self {
        Self { words: Some(words), ..self }
    }

    /// Returns the current contents of the needed files.
    ///
    /// # Errors
    /// The missing or invalid file; or that this machine cannot verify certificates.
    pub(super) async fn means(&self) -> io::Result<Means> {
        let tls = match &self.tls {
            Some((trust, _)) => Some(trust.connector().await?),
            None => None,
        };
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, file) in &self.headers {
            let missing = |error| io::Error::other(format!("the file of the header {name}, {error}"));
            headers.push((name.clone(), file.contents().await.map_err(missing)?));
        }
        Ok(Means { tls, headers })
    }

    /// Returns `http` or `https`.
    pub(super) const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Sends the request over `stream` and judges the answer.
    pub(super) async fn ask(&self, means: Means, stream: impl AsyncRead + AsyncWrite + Unpin) -> CheckOutcome {
        let Means { tls, headers } = means;
        let mut request = self.request.clone();
        for (name, value) in headers {
            request.headers_mut().insert(name, value);
        }
        let answered = match (tls, &self.tls) {
            (Some(tls), Some((_, name))) => match tls.connect(name.clone(), stream).await {
                Ok(stream) => self.converse(request, stream).await,
                Err(error) => return tls::failure(&error),
            },
            _ => self.converse(request, stream).await,
        };
        answered.unwrap_or_else(|error| failure(self.scheme(), &error))
    }

    async fn converse(
        &self,
        request: Request<Empty<Bytes>>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> Result<CheckOutcome, hyper::Error> {
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEADERS).handshake(TokioIo::new(stream)).await?;
        let judged = pin!(async {
            let answer = sender.send_request(request).await?;
            let (head, body) = answer.into_parts();
            let outcome = self.judge(head.status.as_u16(), body).await?;
            if let Some(words) = &self.words {
                words.note(&head.headers, outcome == CheckOutcome::Passed);
            }
            Ok(outcome)
        });
        // The connection moves the bytes; its end also shows in the answer.
        match future::select(judged, pin!(connection)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((_, judged)) => judged.await,
        }
    }

    async fn judge(&self, status: u16, body: Incoming) -> Result<CheckOutcome, hyper::Error> {
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

static HEADERS_IN_FILES: Shelf<HeaderValue> = Shelf::new(in_file);

/// The value in a file, without its line end.
fn in_file(mut bytes: Vec<u8>) -> Result<HeaderValue, String> {
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    if bytes.is_empty() { Err("is empty".to_owned()) } else { header_value(&bytes) }
}

fn header_value(bytes: &[u8]) -> Result<HeaderValue, String> {
    sendable(bytes)?;
    let mut value = HeaderValue::from_bytes(bytes).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The meaning of an incomplete answer: an invalid answer is a soft failure, silence a hard one.
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

/// The `Host` header for an address.
fn host(target: SocketAddr, default_port: u16) -> String {
    match target {
        SocketAddr::V4(target) if target.port() == default_port => target.ip().to_string(),
        SocketAddr::V6(target) if target.port() == default_port => format!("[{}]", target.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => target.to_string(),
    }
}

/// Whether `text` occurs in the first [`BODY`] bytes of `body`.
async fn contains(mut body: Incoming, text: &[u8]) -> Result<bool, hyper::Error> {
    let mut read: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        // The part searched already can only contain the start of a match.
        let from = read.len().saturating_sub(text.len() - 1);
        read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
        if read[from..].windows(text.len()).any(|window| window == text) {
            return Ok(true);
        }
        if read.len() == BODY {
            break;
        }
    }
    Ok(false)
}

/// The first [`BODY`] bytes of `body`.
async fn beginning(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut read: Vec<u8> = Vec::new();
    while read.len() < BODY
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame?.into_data() else { continue };
        read.extend_from_slice(&data[..data.len().min(BODY - read.len())]);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn when_no_host_is_configured_then_it_is_the_backends_address() {
        assert_eq!(host("10.0.0.9:80".parse().unwrap(), 80), "10.0.0.9");
        assert_eq!(host("10.0.0.9:8080".parse().unwrap(), 80), "10.0.0.9:8080");
        assert_eq!(host("[2001:db8::9]:80".parse().unwrap(), 80), "[2001:db8::9]");
        assert_eq!(host("[2001:db8::9]:443".parse().unwrap(), 443), "[2001:db8::9]");
        assert_eq!(host("[2001:db8::9]:443".parse().unwrap(), 80), "[2001:db8::9]:443");
    }
}
