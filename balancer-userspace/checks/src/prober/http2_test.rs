//! Tests of checks over HTTP/2 and gRPC, and of checks with a client certificate, with correct and with faulty servers.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use balancer_config::{
    config::{
        BodyTest, CheckConfig, CheckKind, ClientFiles, GrpcCheck, Header, HeaderText, HttpCheck, Secret, StatusRanges,
        Tls,
    },
    fixture,
};
use balancer_control::io::CheckOutcome;
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use hyper::{HeaderMap, Request, Response, http::request::Parts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use super::{
    body::BODY,
    check::{Check, CheckedBackend},
};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

fn config(kind: CheckKind, timeout: Duration) -> CheckConfig {
    CheckConfig { kind, interval: timeout, timeout, fast_interval: timeout, fall: 1, rise: 1, ..fixture::check() }
}

async fn check(target: SocketAddr, kind: CheckKind, timeout: Duration) -> io::Result<CheckOutcome> {
    Check::new(&CheckedBackend::at(target), &config(kind, timeout)).await?.run().await
}

async fn outcome(target: SocketAddr, kind: impl Into<CheckKind>, timeout: Duration) -> CheckOutcome {
    check(target, kind.into(), timeout).await.unwrap()
}

fn hard(reason: &str) -> CheckOutcome {
    CheckOutcome::Hard(reason.to_owned())
}

fn soft(reason: &str) -> CheckOutcome {
    CheckOutcome::Soft(reason.to_owned())
}

/// Types with which tests write the kinds of checks briefly.
struct Http(HttpCheck);
struct Grpc(GrpcCheck);

impl From<Http> for CheckKind {
    fn from(Http(check): Http) -> Self {
        Self::Http(check)
    }
}

impl From<Grpc> for CheckKind {
    fn from(Grpc(check): Grpc) -> Self {
        Self::Grpc(check)
    }
}

fn page(tls: Option<Tls>) -> HttpCheck {
    HttpCheck {
        port: None,
        tls,
        http2: true,
        method: "GET".to_owned(),
        path: "/healthz?deep".to_owned(),
        host: Some("www.example.com:8443".to_owned()),
        headers: Vec::new(),
        expect_status: StatusRanges(vec![(200, 399)]),
        expect_body: None,
    }
}

fn health(tls: Option<Tls>, service: &str) -> Grpc {
    Grpc(GrpcCheck { port: None, tls, service: service.to_owned(), host: None, headers: Vec::new() })
}

fn any_certificate() -> Tls {
    Tls { verify: false, ca_file: None, sni: None, client: None }
}

/// The answer of a test server.
enum Answer {
    Page(Response<&'static str>),
    /// An answer with headers, a message, and trailers.
    Message(Response<Bytes>, Option<HeaderMap>),
    Reset(Reason),
}

fn status(code: u16, body: &'static str) -> Answer {
    Answer::Page(Response::builder().status(code).body(body).unwrap())
}

/// Serves HTTP/2 requests on one connection until the connection ends.
async fn serve<F: Fn(&Parts, &[u8]) -> Answer + Clone + Send + 'static>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: F,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(serve_one(request, respond, answer.clone()));
    }
}

async fn serve_one<F: Fn(&Parts, &[u8]) -> Answer>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answer: F,
) {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        message.extend_from_slice(&data);
    }
    // Sending may fail, because a check closes the connection as soon as it has received enough.
    let _ = match answer(&head, &message) {
        Answer::Page(page) => {
            let (head, text) = page.into_parts();
            let sending = respond.send_response(Response::from_parts(head, ()), false);
            sending.and_then(|mut sending| sending.send_data(text.into(), true))
        }
        Answer::Message(message, trailers) => {
            let (head, data) = message.into_parts();
            let ends = trailers.is_none() && data.is_empty();
            let sending = respond.send_response(Response::from_parts(head, ()), ends);
            sending.and_then(|mut sending| {
                if !data.is_empty() {
                    sending.send_data(data, trailers.is_none())?;
                }
                trailers.map_or(Ok(()), |trailers| sending.send_trailers(trailers))
            })
        }
        Answer::Reset(reason) => {
            respond.send_reset(reason);
            Ok(())
        }
    };
}

/// Starts a server that handles each connection with `serve`.
async fn listening<F: Future<Output = ()> + Send + 'static>(
    treat: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    address
}

/// Starts a server that speaks HTTP/2 without TLS.
async fn plain<F: Fn(&Parts, &[u8]) -> Answer + Clone + Send + 'static>(answer: F) -> SocketAddr {
    listening(move |stream| serve(stream, answer.clone())).await
}

/// Starts a server that speaks HTTP/2 over TLS.
async fn secure<F: Fn(&Parts, &[u8]) -> Answer + Clone + Send + 'static>(
    settings: ServerConfig,
    answer: F,
) -> SocketAddr {
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    listening(move |stream| {
        let (accepted, answer) = (acceptor.accept(stream), answer.clone());
        async move {
            match accepted.into_fallible().await {
                Ok(stream) => serve(stream, answer).await,
                // The client receives the TLS alert before the connection ends.
                Err((_, mut stream)) => drop(stream.read_to_end(&mut Vec::new()).await),
            }
        }
    })
    .await
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Returns a certificate that the authority has signed, and the key of the certificate, in PEM.
fn signed(authority: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// The TLS settings of a server that offers the protocols `alpn`. With `clients`, the server requests a certificate
/// that the authority `clients` has signed.
fn settings(authority: &Authority, clients: Option<&Authority>, alpn: &[&str]) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match clients {
        None => builder.unwrap().with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.unwrap().with_client_cert_verifier(verifier.unwrap())
        }
    };
    let (cert, key) = signed(authority);
    let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    let mut settings =
        builder.with_single_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
    settings.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    settings
}

fn described(head: &Parts, _: &[u8]) -> Answer {
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
    let text = format!("{} {} {} {}", head.method, head.uri, header("x-probe"), header("accept"));
    Answer::Page(Response::new(text.leak()))
}

fn saying(text: &str) -> Option<BodyTest> {
    Some(BodyTest::Contains(text.to_owned()))
}

#[tokio::test]
async fn when_a_page_is_asked_for_by_http2_then_the_request_and_the_verdict_are_those_of_http1() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "Bearer one\n").unwrap();
    let target = plain(described).await;
    let headers = [("accept", HeaderText::Text(Secret("text/plain".to_owned()))), ("x-probe", HeaderText::File(token))];
    let headers = headers.into_iter().map(|(name, value)| Header { name: name.to_owned(), value }).collect();
    let wanted = "GET http://www.example.com:8443/healthz?deep Bearer one text/plain";
    let asks = HttpCheck { headers, expect_body: saying(wanted), ..page(None) };
    assert_eq!(outcome(target, Http(asks), LONG).await, CheckOutcome::Passed);
    let asks = HttpCheck { host: None, expect_body: saying(&format!("http://{target}/healthz")), ..page(None) };
    assert_eq!(outcome(target, Http(asks.clone()), LONG).await, CheckOutcome::Passed);
    let asks = HttpCheck { expect_body: saying("another"), ..asks };
    assert_eq!(outcome(target, Http(asks), LONG).await, soft("body without \"another\""));

    for (code, wanted) in [(204, CheckOutcome::Passed), (302, CheckOutcome::Passed), (503, soft("status 503"))] {
        let target = plain(move |_, _| status(code, "")).await;
        assert_eq!(outcome(target, Http(page(None)), LONG).await, wanted);
        let head = HttpCheck { method: "HEAD".to_owned(), ..page(None) };
        assert_eq!(outcome(target, Http(head), LONG).await, wanted);
    }
}

#[tokio::test]
async fn when_a_body_over_http2_is_long_then_only_the_first_64_kib_are_searched() {
    let body: &str = [".".repeat(BODY - 2), "ok end".to_owned(), ".".repeat(BODY)].concat().leak();
    let target = plain(move |_, _| status(200, body)).await;
    let wanting = |text: &str| Http(HttpCheck { expect_body: saying(text), ..page(None) });
    assert_eq!(outcome(target, wanting("ok"), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, wanting("ok end"), LONG).await, soft("body without \"ok end\""));
}

#[tokio::test]
async fn when_there_is_no_answer_by_http2_then_the_failure_tells_if_the_server_answered() {
    let http1 = listening(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let closing = listening(async |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let resetting = listening(async |stream: TcpStream| stream.set_zero_linger().unwrap()).await;
    let silent = listening(async |_stream: TcpStream| std::future::pending().await).await;
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (target, words) in [(closing, ": connection closed"), (resetting, ": connection reset")] {
        assert_eq!(outcome(target, Http(page(None)), LONG).await, hard(&format!("http{words}")));
        assert_eq!(outcome(target, health(None, ""), LONG).await, hard(&format!("grpc{words}")));
    }
    let late = |scheme: &str| CheckOutcome::Late(format!("{scheme}: timeout after 300ms"));
    assert_eq!(outcome(silent, Http(page(None)), SHORT).await, late("http"));
    assert_eq!(outcome(silent, health(None, ""), SHORT).await, late("grpc"));
    assert_eq!(outcome(refusing, Http(page(None)), LONG).await, CheckOutcome::Shut("connect: refused".to_owned()));
    assert_eq!(outcome(http1, Http(page(None)), LONG).await, soft("http: not an HTTP/2 answer"));
    assert_eq!(outcome(http1, health(None, ""), LONG).await, soft("grpc: not an HTTP/2 answer"));
    let unwilling = plain(|_, _| Answer::Reset(Reason::REFUSED_STREAM)).await;
    let ended = "the server ended the request (REFUSED_STREAM)";
    assert_eq!(outcome(unwilling, Http(page(None)), LONG).await, soft(&format!("http: {ended}")));
    assert_eq!(outcome(unwilling, health(None, ""), LONG).await, soft(&format!("grpc: {ended}")));
    let leaving = listening(async |stream: TcpStream| {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        while connection.accept().await.is_some() {}
    })
    .await;
    let ended = "http: the server ended the connection (ENHANCE_YOUR_CALM)";
    assert_eq!(outcome(leaving, Http(page(None)), LONG).await, soft(ended));
}

#[tokio::test]
async fn when_a_server_does_not_offer_http2_in_tls_then_the_reason_says_so() {
    let authority = authority("servers");
    let answers = |_: &Parts, _: &[u8]| status(200, "");
    let tls = || Some(any_certificate());
    let both = secure(settings(&authority, None, &["http/1.1", "h2"]), answers).await;
    assert_eq!(outcome(both, Http(page(tls())), LONG).await, CheckOutcome::Passed);
    for alpn in [&[][..], &["http/1.1"]] {
        let target = secure(settings(&authority, None, alpn), answers).await;
        let why = "the server does not offer HTTP/2 in TLS (ALPN)";
        assert_eq!(outcome(target, Http(page(tls())), LONG).await, soft(&format!("https: {why}")), "{alpn:?}");
        assert_eq!(outcome(target, health(tls(), ""), LONG).await, soft(&format!("grpcs: {why}")), "{alpn:?}");
    }
    let plain = plain(answers).await;
    assert_eq!(outcome(plain, Http(page(tls())), LONG).await, soft("tls: not a TLS answer"));
}

fn trailers(code: &str, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    if !message.is_empty() {
        trailers.insert("grpc-message", message.parse().unwrap());
    }
    trailers
}

fn grpc(message: &'static [u8], trailers: Option<HeaderMap>) -> Answer {
    let head = Response::builder().header("content-type", "application/grpc");
    Answer::Message(head.body(Bytes::from_static(message)).unwrap(), trailers)
}

/// An answer that contains only a status.
fn refusal(code: &str, message: &str) -> Answer {
    let mut answer = Response::builder().header("content-type", "application/grpc").body(Bytes::new()).unwrap();
    answer.headers_mut().extend(trailers(code, message));
    Answer::Message(answer, None)
}

const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
const NOT_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x02";

/// A health service that reports the state of the server as a whole and of some services.
fn health_service(head: &Parts, message: &[u8]) -> Answer {
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/grpc.health.v1.Health/Check"));
    assert_eq!((header("content-type"), header("te")), (Some("application/grpc"), Some("trailers")));
    let ok = || Some(trailers("0", ""));
    match message {
        b"\0\0\0\0\0" | b"\0\0\0\0\x0b\x0a\x09shop.Cart" => grpc(SERVING, ok()),
        b"\0\0\0\0\x06\x0a\x04sick" => grpc(NOT_SERVING, ok()),
        b"\0\0\0\0\x06\x0a\x04late" => grpc(SERVING, Some(trailers("14", "moving%20away%0a"))),
        b"\0\0\0\0\x06\x0a\x04mute" => grpc(SERVING, None),
        b"\0\0\0\0\x07\x0a\x05empty" => grpc(b"", ok()),
        b"\0\0\0\0\x06\x0a\x04odd!" => refusal("99", ""),
        _ => refusal("5", "unknown service"),
    }
}

#[tokio::test]
async fn when_the_health_service_answers_then_only_serving_passes_and_the_reason_is_in_words() {
    let authority = authority("servers");
    let over_tls = secure(settings(&authority, None, &["h2"]), health_service).await;
    for (target, scheme, tls) in
        [(plain(health_service).await, "grpc", None), (over_tls, "grpcs", Some(any_certificate()))]
    {
        for service in ["", "shop.Cart"] {
            assert_eq!(outcome(target, health(tls.clone(), service), LONG).await, CheckOutcome::Passed);
        }
        for (service, why) in [
            ("sick", "the service \"sick\" is not serving (NOT_SERVING)"),
            ("gone", "the service \"gone\" is unknown to it (NOT_FOUND): unknown service"),
            ("late", "grpc-status 14 (UNAVAILABLE): moving away"),
            ("mute", "the answer ends without a grpc-status"),
            ("empty", "an answer without a message"),
            ("odd!", "grpc-status 99"),
        ] {
            let found = outcome(target, health(tls.clone(), service), LONG).await;
            assert_eq!(found, soft(&format!("{scheme}: {why}")));
        }
    }
}

#[tokio::test]
async fn when_a_server_has_no_health_service_then_the_reason_is_its_answer() {
    let long: &[u8] = vec![0; 65 * 1024].leak();
    let message = |text: &'static [u8]| move |_: &Parts, _: &[u8]| grpc(text, Some(trailers("0", "")));
    for (target, why) in [
        (plain(|_, _| refusal("12", "")).await, "it has no health service (UNIMPLEMENTED)"),
        (plain(|_, _| status(404, "gone")).await, "HTTP status 404"),
        (plain(|_, _| status(200, "<html>")).await, "not a gRPC answer"),
        (plain(message(b"\x01\0\0\0\x02\x08\x01")).await, "the message is compressed, which was not asked for"),
        (plain(message(b"\0\0\0\0\x09\x08\x01")).await, "the message is cut off"),
        (plain(message(long)).await, "the answer is too long"),
    ] {
        assert_eq!(outcome(target, health(None, ""), LONG).await, soft(&format!("grpc: {why}")));
    }
}

/// A server that requests client certificates, with the files of a valid client certificate.
struct Asking {
    directory: tempfile::TempDir,
    clients: Authority,
    target: SocketAddr,
}

impl Asking {
    async fn start() -> Self {
        let (servers, clients) = (authority("servers"), authority("clients"));
        // The server answers with HTTP/1.1 if the client has chosen this protocol.
        let acceptor = TlsAcceptor::from(Arc::new(settings(&servers, Some(&clients), &["h2", "http/1.1"])));
        let target = listening(move |stream| {
            let accepted = acceptor.accept(stream);
            async move {
                match accepted.into_fallible().await {
                    Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        serve(stream, health_service_or_page).await;
                    }
                    Ok(mut stream) => {
                        let _ = stream.read(&mut [0; 4096]).await;
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                    Err((_, mut stream)) => drop(stream.read_to_end(&mut Vec::new()).await),
                }
            }
        })
        .await;
        Self { directory: tempfile::tempdir().unwrap(), clients, target }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Checks of all kinds that present the certificate in the files `client`.
    fn checks(client: Option<ClientFiles>) -> [CheckKind; 3] {
        let tls = Some(Tls { client, ..any_certificate() });
        let http1 = HttpCheck { http2: false, ..page(tls.clone()) };
        [Http(http1).into(), Http(page(tls.clone())).into(), health(tls, "").into()]
    }
}

fn health_service_or_page(head: &Parts, message: &[u8]) -> Answer {
    if head.method == "GET" { status(200, "") } else { health_service(head, message) }
}

fn files(cert: &Path, key: Option<&Path>) -> Option<ClientFiles> {
    Some(ClientFiles { cert: cert.to_owned(), key: key.map(Path::to_owned) })
}

#[tokio::test]
async fn when_a_server_asks_for_a_certificate_then_the_checks_own_one_decides() {
    let server = Asking::start().await;
    let (cert, key) = signed(&server.clients);
    let (foreign, foreign_key) = signed(&authority("others"));
    let cert_file = server.file("cert.pem", &cert);
    let key_file = server.file("key.pem", &key);
    let whole = server.file("whole.pem", &format!("{key}{cert}"));
    let foreign = server.file("foreign.pem", &format!("{foreign}{foreign_key}"));
    for right in [files(&cert_file, Some(&key_file)), files(&whole, None)] {
        for kind in Asking::checks(right) {
            assert_eq!(outcome(server.target, kind.clone(), LONG).await, CheckOutcome::Passed, "{kind}");
        }
    }
    for (wrong, alert) in [(None, "CertificateRequired"), (files(&foreign, None), "UnknownCA")] {
        for kind in Asking::checks(wrong) {
            let found = outcome(server.target, kind.clone(), LONG).await;
            assert_eq!(found, soft(&format!("tls: received fatal alert: {alert}")), "{kind}");
        }
    }
}

#[tokio::test]
async fn when_the_files_of_a_certificate_cannot_be_used_then_the_check_cannot_run_and_names_them() {
    let server = Asking::start().await;
    let (cert, key) = signed(&server.clients);
    let cert_file = server.file("cert.pem", &cert);
    let key_file = server.file("key.pem", &key);
    let other_key = server.file("other.pem", &signed(&server.clients).1);
    let empty = server.file("empty.pem", "");
    let cut = server.file("cut.pem", &cert[..cert.len() / 2]);
    let gone = server.directory.path().join("gone.pem");
    let shown = |path: &Path| path.display().to_string();
    for (wrong, why) in [
        (files(&gone, None), format!("the client_cert {} cannot be read: No such file", shown(&gone))),
        (files(&cert_file, Some(&gone)), format!("the client_key {} cannot be read: No such file", shown(&gone))),
        (files(&empty, Some(&key_file)), format!("the client_cert {} holds no certificate in PEM", shown(&empty))),
        (files(&cut, Some(&key_file)), format!("the client_cert {} is not PEM", shown(&cut))),
        (files(&cert_file, None), format!("the client_cert {} holds no private key in PEM", shown(&cert_file))),
        (files(&cert_file, Some(&cut)), format!("the client_key {} holds no private key in PEM", shown(&cut))),
        (
            files(&cert_file, Some(&other_key)),
            format!("the client_cert {} with the client_key {} cannot be used", shown(&cert_file), shown(&other_key)),
        ),
    ] {
        for kind in Asking::checks(wrong) {
            let found = check(server.target, kind, LONG).await.unwrap_err().to_string();
            assert!(found.starts_with(&why), "{found}, not {why}");
        }
    }
}

#[tokio::test]
async fn when_a_certificate_is_replaced_then_the_same_check_shows_the_new_one() {
    let server = Asking::start().await;
    let pair = |authority: &Authority| {
        let (cert, key) = signed(authority);
        format!("{cert}{key}")
    };
    let whole = server.file("whole.pem", &pair(&server.clients));
    for kind in Asking::checks(files(&whole, None)) {
        let check = Check::new(&CheckedBackend::at(server.target), &config(kind, LONG)).await.unwrap();
        let until = async |wanted: &str| {
            while !format!("{:?}", check.run().await).contains(wanted) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        until("Ok(Passed)").await;
        for (text, wanted) in [
            (pair(&authority("others")), "UnknownCA"),
            (pair(&server.clients), "Ok(Passed)"),
            (signed(&server.clients).0, "holds no private key"),
            (pair(&server.clients), "Ok(Passed)"),
        ] {
            let new = server.file("new.pem", &text);
            fs::rename(new, &whole).unwrap();
            until(wanted).await;
        }
    }
}
