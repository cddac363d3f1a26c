//! Checks that send a request over a connection, by HTTP or gRPC.

use std::{io, net::SocketAddr, sync::Arc};

use balancer_config::{
    config::{GrpcCheck, Header, HeaderText, HttpCheck, Tls},
    file::check::without_port,
    header::sendable,
};
use balancer_control::io::CheckOutcome;
use hyper::{
    Request,
    header::{HeaderName, HeaderValue},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    files::{NeededFiles, WatchedFile},
    grpc::{self, Service},
    http::{self, Page},
    http2,
    load::LoadHeaders,
    tls::{self, Security},
};

/// The ALPN name of HTTP/1.1.
const HTTP1: &[u8] = b"http/1.1";

/// The request that a check sends, and the answer that it expects.
pub(super) struct Question {
    request: Request<()>,
    /// The headers whose values are in files.
    headers: Vec<(HeaderName, Arc<WatchedFile<HeaderValue>>)>,
    tls: Option<Security>,
    wanted: Wanted,
}

/// The kind of answer that a check expects.
enum Wanted {
    /// The answer is a page over HTTP/1.1.
    Page(Page),
    /// The answer is a page over HTTP/2.
    Page2(Page),
    /// The answer is the state of a gRPC service.
    Service(Service),
}

/// The current contents of the files that a request needs.
#[derive(Default)]
pub(super) struct RequestFiles {
    tls: Option<TlsConnector>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Question {
    /// Prepares the request that `check` sends to `target`. `words` receives the `X-Load` headers of answers.
    ///
    /// # Errors
    /// Fails if the request is invalid, which the validation of the configuration prevents.
    pub(super) fn of_page(target: SocketAddr, check: &HttpCheck, words: Option<LoadHeaders>) -> io::Result<Self> {
        let page = Page::of(check, words);
        let wanted = if check.http2 { Wanted::Page2(page) } else { Wanted::Page(page) };
        let request = http::request(target, check).map_err(io::Error::other)?;
        Self::new(target, check.host.as_deref(), check.tls.as_ref(), &check.headers, request, wanted)
    }

    /// Prepares the request that `check` sends to `target`.
    ///
    /// # Errors
    /// Fails if the request is invalid, which the validation of the configuration prevents.
    pub(super) fn of_service(target: SocketAddr, check: &GrpcCheck) -> io::Result<Self> {
        let wanted = Wanted::Service(Service::of(check));
        let request = grpc::request(target, check).map_err(io::Error::other)?;
        Self::new(target, check.host.as_deref(), check.tls.as_ref(), &check.headers, request, wanted)
    }

    fn new(
        target: SocketAddr,
        host: Option<&str>,
        tls: Option<&Tls>,
        given: &[Header],
        mut request: Request<()>,
        wanted: Wanted,
    ) -> io::Result<Self> {
        let mut headers = Vec::new();
        for given in given {
            let name: HeaderName = given.name.parse().map_err(io::Error::other)?;
            match &given.value {
                HeaderText::File(file) => headers.push((name, HEADERS_IN_FILES.file(file))),
                HeaderText::Text(text) => {
                    let value = header_value(text.0.as_bytes()).map_err(io::Error::other)?;
                    request.headers_mut().insert(name, value);
                }
            }
        }
        let tls = match tls {
            None => None,
            Some(settings) => {
                let name = settings.sni.as_deref().or(host.map(without_port));
                let name = name.map(|name| ServerName::try_from(name.to_owned()));
                let name = name.unwrap_or_else(|| Ok(target.ip().into())).map_err(io::Error::other)?;
                Some(Security::of(settings, name, wanted.alpn()))
            }
        };
        Ok(Self { request, headers, tls, wanted })
    }

    /// Returns the current contents of the files that the request needs.
    ///
    /// # Errors
    /// Fails if a file is missing or invalid, or if this machine cannot verify certificates.
    pub(super) async fn means(&self) -> io::Result<RequestFiles> {
        let tls = match &self.tls {
            Some(security) => Some(security.connector().await?),
            None => None,
        };
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, file) in &self.headers {
            let missing = |error| io::Error::other(format!("the file of the header {name}, {error}"));
            headers.push((name.clone(), file.contents().await.map_err(missing)?));
        }
        Ok(RequestFiles { tls, headers })
    }

    /// Returns the type of the check: `http`, `https`, `grpc` or `grpcs`.
    pub(super) const fn scheme(&self) -> &'static str {
        match (&self.wanted, self.tls.is_some()) {
            (Wanted::Page(_) | Wanted::Page2(_), is_secure) => http::scheme(is_secure),
            (Wanted::Service(_), false) => "grpc",
            (Wanted::Service(_), true) => "grpcs",
        }
    }

    /// Sends the request over `stream` and judges the answer.
    pub(super) async fn ask(&self, means: RequestFiles, stream: impl AsyncRead + AsyncWrite + Unpin) -> CheckOutcome {
        let RequestFiles { tls, headers } = means;
        let mut request = self.request.clone();
        for (name, value) in headers {
            request.headers_mut().insert(name, value);
        }
        let (Some(tls), Some(security)) = (tls, &self.tls) else { return self.converse(request, stream).await };
        match tls.connect(security.server(), stream).await {
            Ok(stream) if !self.wanted.is_understood(stream.get_ref().1.alpn_protocol()) => self.no_http2(),
            Ok(stream) => self.converse(request, stream).await,
            Err(error) if tls::knows_no_protocol(&error) => self.no_http2(),
            Err(error) => tls::failure(&error),
        }
    }

    fn no_http2(&self) -> CheckOutcome {
        CheckOutcome::Soft(format!("{}: the server does not offer HTTP/2 in TLS (ALPN)", self.scheme()))
    }

    async fn converse(&self, request: Request<()>, stream: impl AsyncRead + AsyncWrite + Unpin) -> CheckOutcome {
        match &self.wanted {
            Wanted::Page(page) => page.ask(self.scheme(), request, stream).await,
            Wanted::Page2(page) => page.ask_http2(self.scheme(), request, stream).await,
            Wanted::Service(service) => service.ask(self.scheme(), request, stream).await,
        }
    }
}

impl Wanted {
    const fn alpn(&self) -> &'static [u8] {
        match self {
            Self::Page(_) => HTTP1,
            Self::Page2(_) | Self::Service(_) => http2::ALPN,
        }
    }

    /// Whether a server that chose the protocol `chosen` understands the request. A server that chose no protocol
    /// understands HTTP/1.1.
    fn is_understood(&self, chosen: Option<&[u8]>) -> bool {
        matches!(self, Self::Page(_)) || chosen == Some(http2::ALPN)
    }
}

static HEADERS_IN_FILES: NeededFiles<HeaderValue> = NeededFiles::new(in_file);

/// Makes a header value from the bytes of a file, without the line end.
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
