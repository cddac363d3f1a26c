//! Tests of `tcp` and `http` checks, with correct and with faulty servers.

use std::{fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use balancer_config::config::{
    BodyTest, CheckConfig, CheckKind, Header, HeaderText, HttpCheck, Secret, StatusRanges, Tls, Via,
};
use balancer_control::io::CheckOutcome;
use regex::bytes::Regex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

use super::{
    body::BODY,
    check::{Check, CheckedBackend},
};

async fn check(target: SocketAddr, config: &CheckConfig) -> io::Result<CheckOutcome> {
    Check::new(&CheckedBackend::at(target), config).await?.run().await
}

/// Starts a server that reads a request and then calls a handler.
async fn server<F: Future<Output = ()> + Send>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            serve(stream).await;
        }
    });
    (address, task)
}

async fn answering(answer: &'static str) -> SocketAddr {
    server(move |mut stream| async move { stream.write_all(answer.as_bytes()).await.unwrap() }).await.0
}

fn http() -> HttpCheck {
    HttpCheck {
        port: None,
        tls: None,
        http2: false,
        method: "GET".to_owned(),
        path: "/healthz".to_owned(),
        host: None,
        headers: Vec::new(),
        expect_status: StatusRanges(vec![(200, 399)]),
        expect_body: None,
    }
}

fn config(kind: CheckKind, timeout: Duration) -> CheckConfig {
    CheckConfig {
        kind,
        via: Via::Backend,
        interval: timeout,
        timeout,
        fast_interval: timeout,
        passive: true,
        fall: 1,
        rise: 1,
    }
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);

async fn outcome(target: SocketAddr, http: HttpCheck, timeout: Duration) -> CheckOutcome {
    check(target, &config(CheckKind::Http(http), timeout)).await.unwrap()
}

fn hard(reason: &str) -> CheckOutcome {
    CheckOutcome::Hard(reason.to_owned())
}

fn late(reason: &str) -> CheckOutcome {
    CheckOutcome::Late(reason.to_owned())
}

fn soft(reason: &str) -> CheckOutcome {
    CheckOutcome::Soft(reason.to_owned())
}

fn wanting(text: &str) -> HttpCheck {
    HttpCheck { expect_body: Some(BodyTest::Contains(text.to_owned())), ..http() }
}

/// Returns an address that refuses connections.
async fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn when_a_connection_is_accepted_then_tcp_passes_and_refused_it_fails_hard() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let tcp = config(CheckKind::Tcp { port: None, talk: None }, LONG);
    assert_eq!(check(listener.local_addr().unwrap(), &tcp).await.unwrap(), CheckOutcome::Passed);
    assert_eq!(check(refusing().await, &tcp).await.unwrap(), CheckOutcome::Shut("connect: refused".to_owned()));
}

#[tokio::test]
async fn when_a_backlog_is_full_then_the_check_times_out() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let target = listener.local_addr().unwrap();
    let _occupied = TcpStream::connect(target).await.unwrap();
    let tcp = config(CheckKind::Tcp { port: None, talk: None }, SHORT);
    assert_eq!(check(target, &tcp).await.unwrap(), late("connect: timeout after 200ms"));
}

#[tokio::test]
async fn when_the_server_answers_then_the_status_decides() {
    let ok = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(outcome(ok, http(), LONG).await, CheckOutcome::Passed);
    let unavailable = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(outcome(unavailable, http(), LONG).await, soft("status 503"));
    let old = answering("HTTP/1.0 404 Not Found\r\n\r\ngone").await;
    assert_eq!(outcome(old, http(), LONG).await, soft("status 404"));
    let informed = answering("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(outcome(informed, http(), LONG).await, CheckOutcome::Passed);
}

#[tokio::test]
async fn when_a_body_is_expected_then_it_decides() {
    let target = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is ok").await;
    assert_eq!(outcome(target, wanting("ok"), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, wanting("OK"), LONG).await, soft("body without \"OK\""));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n";
    assert_eq!(outcome(answering(chunked).await, wanting("ok"), LONG).await, CheckOutcome::Passed);
}

#[tokio::test]
async fn when_a_request_is_configured_then_it_is_sent_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let request = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let check = HttpCheck {
        method: "HEAD".to_owned(),
        host: Some("web.example".to_owned()),
        path: "/a?b".to_owned(),
        ..http()
    };
    assert_eq!(outcome(target, check, LONG).await, CheckOutcome::Passed);
    let request = request.await.unwrap();
    assert!(request.starts_with("HEAD /a?b HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: web.example\r\n"), "{request}");
}

#[tokio::test]
async fn when_there_is_no_answer_then_it_is_a_hard_failure() {
    assert_eq!(outcome(refusing().await, http(), LONG).await, CheckOutcome::Shut("connect: refused".to_owned()));
    let (closing, _) = server(async |_| ()).await;
    assert_eq!(outcome(closing, http(), LONG).await, hard("http: connection closed"));
    let (resetting, _) = server(async |stream| stream.set_zero_linger().unwrap()).await;
    assert_eq!(outcome(resetting, http(), LONG).await, hard("http: connection reset"));
    let cut = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall").await;
    assert_eq!(outcome(cut, wanting("ok"), LONG).await, hard("http: connection closed"));
}

#[tokio::test]
async fn when_an_answer_takes_too_long_then_it_is_a_hard_failure() {
    let late = late("http: timeout after 200ms");
    let (silent, _) = server(async |_stream| std::future::pending().await).await;
    assert_eq!(outcome(silent, http(), SHORT).await, late);
    let (dripping, _) = server(async |mut stream| {
        for byte in "HTTP/1.1 200 OK\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'a')) {
            if stream.write_u8(byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(outcome(dripping, http(), SHORT).await, late);
    let (stalling, _) = server(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall").await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!(outcome(stalling, wanting("ok"), SHORT).await, late);
}

async fn endless(head: &'static str, rest: &'static str) -> SocketAddr {
    let serve = move |mut stream: TcpStream| async move {
        let _ = stream.write_all(head.as_bytes()).await;
        while stream.write_all(rest.repeat(100).as_bytes()).await.is_ok() {}
    };
    server(serve).await.0
}

#[tokio::test]
async fn when_an_answer_never_ends_then_the_check_ends() {
    let head = "HTTP/1.1 200 OK\r\n";
    let headers = endless(head, "X-More: and more\r\n").await;
    assert_eq!(outcome(headers, http(), LONG).await, soft("http: headers too large"));
    let one_header = endless("HTTP/1.1 200 OK\r\nX-More: ", "and more").await;
    assert_eq!(outcome(one_header, http(), LONG).await, soft("http: headers too large"));
    let body = endless("HTTP/1.1 200 OK\r\n\r\n", "and more").await;
    assert_eq!(outcome(body, http(), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(body, wanting("no more"), LONG).await, soft("body without \"no more\""));
}

#[tokio::test]
async fn when_a_body_is_long_then_only_the_first_64_kib_are_searched() {
    let (target, _) = server(async |mut stream| {
        let body = [vec![b'.'; BODY - 2], b"ok end".to_vec()].concat();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        let _ = stream.write_all(&body).await;
    })
    .await;
    assert_eq!(outcome(target, wanting("ok"), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, wanting("ok end"), LONG).await, soft("body without \"ok end\""));
}

#[tokio::test]
async fn when_an_answer_is_not_http_then_it_is_a_soft_failure() {
    let garbage = answering("SSH-2.0-OpenSSH_9.2p1\r\n").await;
    assert_eq!(outcome(garbage, http(), LONG).await, soft("http: not an HTTP/1.1 answer"));
}

#[tokio::test]
async fn when_an_answer_is_cut_off_then_it_does_not_count() {
    let (reset, _) = server(async |mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-Half: ").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    assert_eq!(outcome(reset, http(), LONG).await, hard("http: connection reset"));
    let closed = answering("HTTP/1.1 200 OK\r\nX-Half: ").await;
    assert_eq!(outcome(closed, http(), LONG).await, hard("http: connection closed"));
}

#[tokio::test]
async fn when_a_server_redirects_then_that_is_its_answer() {
    let redirect = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(outcome(answering(redirect).await, http(), LONG).await, CheckOutcome::Passed);
}

#[tokio::test]
async fn when_an_expression_is_given_then_the_whole_beginning_is_matched() {
    let matching =
        |pattern: &str| HttpCheck { expect_body: Some(BodyTest::Matches(Regex::new(pattern).unwrap())), ..http() };
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\nay \r\n0\r\n\r\n";
    let target = answering(chunked).await;
    assert_eq!(outcome(target, matching("^ok"), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, matching("^ok$"), LONG).await, soft("body does not match \"^ok$\""));
    let body = endless("HTTP/1.1 200 OK\r\n\r\n", "and more").await;
    assert_eq!(outcome(body, matching("more$|never"), LONG).await, CheckOutcome::Passed);
}

/// Starts a TLS server with a self-signed certificate.
async fn secure(answer: &'static str) -> SocketAddr {
    secure_with_certificate(answer).await.0
}

/// Starts a TLS server, and returns its address and its certificate in PEM.
async fn secure_with_certificate(answer: &'static str) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let asked = name.is_none_or(|name| request.contains(&format!("host: {name}:8443\r\n")));
            let answer = if asked { answer } else { "HTTP/1.1 421 Misdirected Request\r\n\r\n" };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, certificate)
}

fn https(verify: bool) -> HttpCheck {
    HttpCheck {
        tls: Some(Tls { verify, ca_file: None, sni: None, client: None }),
        host: Some("www.example.com:8443".to_owned()),
        ..http()
    }
}

#[tokio::test]
async fn when_https_is_checked_then_any_certificate_will_do_unless_verification_is_on() {
    let target = secure(OK).await;
    assert_eq!(outcome(target, https(false), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, HttpCheck { host: None, ..https(false) }, LONG).await, CheckOutcome::Passed);
    let body = HttpCheck { expect_body: Some(BodyTest::Contains("ok".to_owned())), ..https(false) };
    assert_eq!(outcome(target, body, LONG).await, CheckOutcome::Passed);
    let unavailable = secure("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(outcome(unavailable, https(false), LONG).await, soft("status 503"));
    match check(target, &config(CheckKind::Http(https(true)), LONG)).await {
        Ok(CheckOutcome::Soft(reason)) => assert!(reason.starts_with("tls: invalid peer certificate"), "{reason}"),
        // On a machine without root certificates, the check reports this error, which says nothing about the backend.
        Err(error) => assert!(error.to_string().contains("no root certificates"), "{error}"),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn when_a_server_does_not_speak_tls_then_the_failure_tells_if_it_answered() {
    let plain = answering("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(outcome(plain, https(false), LONG).await, soft("tls: not a TLS answer"));
    let (closing, _) = server(async |_| ()).await;
    assert_eq!(outcome(closing, https(false), LONG).await, hard("tls: connection closed"));
    let (resetting, _) = server(async |stream| stream.set_zero_linger().unwrap()).await;
    assert_eq!(outcome(resetting, https(false), LONG).await, hard("tls: connection reset"));
    let (silent, _) = server(async |_stream| std::future::pending().await).await;
    assert_eq!(outcome(silent, https(false), SHORT).await, late("https: timeout after 200ms"));
    assert_eq!(outcome(refusing().await, https(false), LONG).await, CheckOutcome::Shut("connect: refused".to_owned()));
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Makes a check that trusts the root certificates in a file.
fn trusting(ca_file: &Path) -> HttpCheck {
    let tls = Tls { verify: true, ca_file: Some(ca_file.to_owned()), sni: None, client: None };
    HttpCheck { tls: Some(tls), ..https(true) }
}

async fn hindered(target: SocketAddr, http: HttpCheck) -> String {
    check(target, &config(CheckKind::Http(http), LONG)).await.unwrap_err().to_string()
}

#[tokio::test]
async fn when_there_is_a_ca_file_then_its_roots_alone_are_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (target, certificate) = secure_with_certificate(OK).await;
    let (other, _) = secure_with_certificate(OK).await;
    let own = file("own.pem", &format!("some words\n{certificate}"));
    assert_eq!(outcome(target, trusting(&own), LONG).await, CheckOutcome::Passed);
    let distrusted = outcome(other, trusting(&own), LONG).await;
    assert!(
        matches!(&distrusted, CheckOutcome::Soft(reason) if reason.starts_with("tls: invalid peer certificate")),
        "{distrusted:?}"
    );
    for (path, words) in [
        (directory.path().join("missing.pem"), "missing.pem cannot be read: No such file or directory"),
        (file("empty.pem", ""), "empty.pem holds no root certificate in PEM"),
        (file("cut.pem", &certificate[..certificate.len() / 2]), "cut.pem is not PEM"),
    ] {
        let why = hindered(target, trusting(&path)).await;
        assert!(why.starts_with("the ca_file /") && why.contains(words), "{why}");
        assert_eq!(hindered(refusing().await, trusting(&path)).await, why, "nobody is asked");
    }
}

#[tokio::test]
async fn when_a_ca_file_changes_then_the_same_check_follows_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let (target, certificate) = secure_with_certificate(OK).await;
    fs::write(&path, &certificate).unwrap();
    let check = Check::new(&CheckedBackend::at(target), &config(CheckKind::Http(trusting(&path)), LONG)).await.unwrap();
    assert_eq!(check.run().await.unwrap(), CheckOutcome::Passed);
    let until = async |wanted: &str| loop {
        let found = format!("{:?}", check.run().await);
        if found.contains(wanted) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    fs::write(&path, rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap().cert.pem()).unwrap();
    until("invalid peer certificate").await;
    fs::remove_file(&path).unwrap();
    until("ca.pem cannot be read").await;
    fs::write(&path, &certificate).unwrap();
    until("Ok(Passed)").await;
}

#[tokio::test]
async fn when_there_is_a_server_name_then_tls_has_it_and_the_header_has_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let (target, certificate) = secure_with_certificate(OK).await;
    fs::write(&path, certificate).unwrap();
    let named = |sni: &str, host: &str| {
        let tls = Tls { verify: true, ca_file: Some(path.clone()), sni: Some(sni.to_owned()), client: None };
        HttpCheck { tls: Some(tls), host: Some(host.to_owned()), ..http() }
    };
    // The server checks the server name in TLS and the name in the request's `host` header.
    assert_eq!(outcome(target, named("www.example.com", "www.example.com:8443"), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(target, named("www.example.com", "web.example"), LONG).await, soft("status 421"));
    let misnamed = outcome(target, named("other.example.com", "www.example.com:8443"), LONG).await;
    assert!(matches!(&misnamed, CheckOutcome::Soft(reason) if reason.contains("not valid for name")), "{misnamed:?}");
}

/// Starts a server that accepts every request, and passes the requests to the test.
async fn listening() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (taken, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            taken.send(String::from_utf8(request).unwrap()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        }
    });
    (address, requests)
}

#[tokio::test]
async fn when_there_are_headers_then_they_are_sent_as_text_and_files_say_at_the_time() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    let (target, mut requests) = listening().await;
    let text = |text: &str| HeaderText::Text(Secret(text.to_owned()));
    let headers = [
        ("accept", text("text/plain")),
        ("authorization", HeaderText::File(token.clone())),
        ("user-agent", HeaderText::File(token.clone())),
        ("x-probe", text("hidden words")),
    ];
    let headers = headers.into_iter().map(|(name, value)| Header { name: name.to_owned(), value }).collect();
    let check = HttpCheck { headers, ..http() };
    let check = Check::new(&CheckedBackend::at(target), &config(CheckKind::Http(check), LONG)).await.unwrap();
    let fails = async |words: &str| loop {
        match check.run().await {
            Err(error) if error.to_string().contains(words) => break error.to_string(),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let why = fails("cannot be read: No such file").await;
    assert!(why.starts_with(&format!("the file of the header authorization, {}", token.display())), "{why}");
    for value in ["Bearer one", "Bearer other"] {
        fs::write(&token, format!("{value}\r\n")).unwrap();
        let asked = loop {
            if let Ok(outcome) = check.run().await {
                assert_eq!(outcome, CheckOutcome::Passed);
                let asked = requests.recv().await.unwrap();
                if asked.contains(value) {
                    break asked;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        for wanted in ["accept: text/plain", "x-probe: hidden words", "host: 127.0.0.1"] {
            assert!(asked.contains(&format!("\r\n{wanted}")), "{asked}");
        }
        for name in ["authorization", "user-agent"] {
            assert!(asked.contains(&format!("\r\n{name}: {value}\r\n")), "{asked}");
            assert_eq!(asked.matches(&format!("\r\n{name}: ")).count(), 1, "{asked}");
        }
    }
    fs::write(&token, "hidden\nwords").unwrap();
    assert!(!fails("has a control character").await.contains("hidden"));
    fs::write(&token, "\n").unwrap();
    fails("token is empty").await;
}
