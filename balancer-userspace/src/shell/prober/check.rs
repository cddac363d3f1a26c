//! One health check: connect, ask, judge the answer.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::future::{self, Either};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    config::model::{CheckConfig, CheckKind, HttpCheck},
    core::io::CheckOutcome,
};

/// How much of a body is searched, in bytes.
const BODY: usize = 64 * 1024;
/// How long an answer's status line and headers may be together, in bytes.
const HEADERS: usize = 64 * 1024;

/// Checks `target` once. Takes at most `check.timeout`.
///
/// # Errors
/// When this machine lacks the means for a check (file descriptors, memory, ports), which says nothing of the target.
pub(super) async fn check(target: SocketAddr, check: &CheckConfig) -> io::Result<CheckOutcome> {
    let deadline = Instant::now() + check.timeout;
    let stream = match timeout_at(deadline, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if is_local(&error) => return Err(error),
        Ok(Err(error)) => return Ok(CheckOutcome::Hard(format!("connect: {}", reason(&error)))),
        Err(_) => return Ok(timed_out("connect", check.timeout)),
    };
    let CheckKind::Http(http) = &check.kind else { return Ok(CheckOutcome::Passed) };
    Ok(match timeout_at(deadline, ask(stream, target, http)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => CheckOutcome::Hard(format!("http: {error}")),
        Err(_) => timed_out("http", check.timeout),
    })
}

fn timed_out(what: &str, timeout: Duration) -> CheckOutcome {
    CheckOutcome::Hard(format!("{what}: timeout after {}", humantime::format_duration(timeout)))
}

/// Whether an error is this machine's own trouble.
fn is_local(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code))
}

fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused".to_owned(),
        Some(libc::ECONNRESET | libc::EPIPE) => "reset".to_owned(),
        Some(libc::ETIMEDOUT) => "timeout".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("{0}")]
    Unbuildable(#[from] hyper::http::Error),
    #[error("{}", describe(.0))]
    Http(#[from] hyper::Error),
}

fn describe(error: &hyper::Error) -> String {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let cut_short = io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    if error.is_parse_too_large() {
        "headers too large".to_owned()
    } else if error.is_parse() {
        "not an HTTP/1.1 answer".to_owned()
    } else if cut_short || error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        "connection closed".to_owned()
    } else if let Some(error) = io {
        format!("connection {}", reason(error))
    } else {
        error.to_string()
    }
}

async fn ask(stream: TcpStream, target: SocketAddr, check: &HttpCheck) -> Result<CheckOutcome, NoAnswer> {
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(check.path.as_str())
        .header(hyper::header::HOST, check.host.clone().unwrap_or_else(|| host(target)))
        .header(hyper::header::USER_AGENT, concat!("balancer/", env!("CARGO_PKG_VERSION")))
        .header(hyper::header::ACCEPT, "*/*")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::Builder::new().max_buf_size(HEADERS).handshake(TokioIo::new(stream)).await?;
    let judged = pin!(async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        if !check.expect_status.contains(status) {
            return Ok(CheckOutcome::Soft(format!("status {status}")));
        }
        match &check.expect_body {
            Some(text) if !contains(answer.into_body(), text.as_bytes()).await? => {
                Ok(CheckOutcome::Soft(format!("body without {text:?}")))
            }
            _ => Ok(CheckOutcome::Passed),
        }
    });
    // The connection moves the bytes; how it ends is seen in the answer too.
    match future::select(judged, pin!(connection)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right((_, judged)) => judged.await,
    }
}

/// The `Host` header for an address.
fn host(target: SocketAddr) -> String {
    match target {
        SocketAddr::V4(target) if target.port() == 80 => target.ip().to_string(),
        SocketAddr::V6(target) if target.port() == 80 => format!("[{}]", target.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => target.to_string(),
    }
}

/// Whether `text` occurs in the first [`BODY`] bytes of `body`.
async fn contains(mut body: Incoming, text: &[u8]) -> Result<bool, hyper::Error> {
    if text.is_empty() {
        return Ok(true);
    }
    let mut read: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        // What was searched already can only hold the start of a match.
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::config::model::StatusRanges;

    /// A server that reads a request and then does as told.
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
            method: "GET".to_owned(),
            path: "/healthz".to_owned(),
            host: None,
            expect_status: StatusRanges(vec![(200, 399)]),
            expect_body: None,
        }
    }

    fn config(kind: CheckKind, timeout: Duration) -> CheckConfig {
        CheckConfig { kind, interval: timeout, timeout, fall: 1, rise: 1 }
    }

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(200);

    async fn outcome(target: SocketAddr, http: HttpCheck, timeout: Duration) -> CheckOutcome {
        check(target, &config(CheckKind::Http(http), timeout)).await.unwrap()
    }

    fn hard(reason: &str) -> CheckOutcome {
        CheckOutcome::Hard(reason.to_owned())
    }

    fn soft(reason: &str) -> CheckOutcome {
        CheckOutcome::Soft(reason.to_owned())
    }

    fn wanting(text: &str) -> HttpCheck {
        HttpCheck { expect_body: Some(text.to_owned()), ..http() }
    }

    /// An address that refuses connections.
    async fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn tcp_passes_when_accepted_and_fails_hard_when_refused() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let tcp = config(CheckKind::Tcp { port: None }, LONG);
        assert_eq!(check(listener.local_addr().unwrap(), &tcp).await.unwrap(), CheckOutcome::Passed);
        assert_eq!(check(refusing().await, &tcp).await.unwrap(), hard("connect: refused"));
    }

    #[tokio::test]
    async fn a_full_backlog_is_a_connect_timeout() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let target = listener.local_addr().unwrap();
        let _occupied = TcpStream::connect(target).await.unwrap();
        let tcp = config(CheckKind::Tcp { port: None }, SHORT);
        assert_eq!(check(target, &tcp).await.unwrap(), hard("connect: timeout after 200ms"));
    }

    #[tokio::test]
    async fn the_status_decides() {
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
    async fn the_body_decides_where_it_is_asked_for() {
        let target = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is ok").await;
        assert_eq!(outcome(target, wanting("ok"), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(target, wanting("OK"), LONG).await, soft("body without \"OK\""));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n";
        assert_eq!(outcome(answering(chunked).await, wanting("ok"), LONG).await, CheckOutcome::Passed);
    }

    #[tokio::test]
    async fn the_request_is_what_was_configured() {
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

    #[test]
    fn the_host_is_the_backends_address_by_default() {
        assert_eq!(host("10.0.0.9:80".parse().unwrap()), "10.0.0.9");
        assert_eq!(host("10.0.0.9:8080".parse().unwrap()), "10.0.0.9:8080");
        assert_eq!(host("[2001:db8::9]:80".parse().unwrap()), "[2001:db8::9]");
        assert_eq!(host("[2001:db8::9]:443".parse().unwrap()), "[2001:db8::9]:443");
    }

    #[tokio::test]
    async fn no_answer_is_a_hard_failure() {
        assert_eq!(outcome(refusing().await, http(), LONG).await, hard("connect: refused"));
        let (closing, _) = server(async |_| ()).await;
        assert_eq!(outcome(closing, http(), LONG).await, hard("http: connection closed"));
        let garbage = answering("SSH-2.0-OpenSSH_9.2p1\r\n").await;
        assert_eq!(outcome(garbage, http(), LONG).await, hard("http: not an HTTP/1.1 answer"));
        let (resetting, _) = server(async |stream| stream.set_zero_linger().unwrap()).await;
        assert_eq!(outcome(resetting, http(), LONG).await, hard("http: connection reset"));
        let cut = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall").await;
        assert_eq!(outcome(cut, wanting("ok"), LONG).await, hard("http: connection closed"));
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_a_hard_failure() {
        let late = hard("http: timeout after 200ms");
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
    async fn endless_answers_end_the_check() {
        let head = "HTTP/1.1 200 OK\r\n";
        let headers = endless(head, "X-More: and more\r\n").await;
        assert_eq!(outcome(headers, http(), LONG).await, hard("http: headers too large"));
        let one_header = endless("HTTP/1.1 200 OK\r\nX-More: ", "and more").await;
        assert_eq!(outcome(one_header, http(), LONG).await, hard("http: headers too large"));
        let body = endless("HTTP/1.1 200 OK\r\n\r\n", "and more").await;
        assert_eq!(outcome(body, http(), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(body, wanting("no more"), LONG).await, soft("body without \"no more\""));
    }

    #[tokio::test]
    async fn only_the_first_64_kib_are_searched() {
        let (target, _) = server(async |mut stream| {
            let body = [vec![b'.'; BODY - 2], b"ok end".to_vec()].concat();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let _ = stream.write_all(&body).await;
        })
        .await;
        assert_eq!(outcome(target, wanting("ok"), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(target, wanting("ok end"), LONG).await, soft("body without \"ok end\""));
    }

    #[test]
    fn own_trouble_is_not_the_backends() {
        assert!(is_local(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_local(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), "no route to host");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }
}
