//! The metrics listener, which serves `/metrics` for Prometheus, and a page for browsers.

mod backends;
mod fleet;
mod host;
mod page;
mod render;
#[cfg(test)]
mod render_test;
mod services;
mod text;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::anyhow;
use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use balancer_api::events::EventView;
use balancer_control::{io::Refused, snapshot::Snapshot};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use super::{
    call::{Call, Calls},
    listener::{self, Limits, holding},
    pieces::Pieces,
};
use balancer_runtime::events::Since;
pub use render::render;

/// The maximum length of a text that the listener sends as a whole, because not every scraper supports chunked
/// encoding.
const WHOLE: usize = 16 << 20;
/// The content type of the text that [`render()`] writes.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The time that a scrape waits for the controller, which is shorter than Prometheus' default timeout of 10 s.
const PATIENCE: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits {
    connections: 64,
    ask: Duration::from_secs(5),
    answer: Duration::from_secs(20),
    lifetime: Duration::from_secs(60),
    farewell: Duration::from_secs(1),
};
/// The maximum number of concurrent answers: each answer keeps a snapshot in memory until the kernel has taken all
/// bytes of the answer.
const ANSWERS: usize = 4;

/// Opens a TCP listener at the address `listen`.
///
/// # Errors
/// Fails if the address does not belong to this machine, is in use, or needs privileges.
pub async fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|error| {
        let advice = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => "another program listens there",
            Some(libc::EADDRNOTAVAIL) => "this machine does not have that address",
            _ => "it cannot be used",
        };
        anyhow!("metrics on {listen}: {advice} ({error}); set [metrics] listen to a free address and port")
    })
}

/// The channel to the owner, and the permits for concurrent answers.
#[derive(Clone, Debug)]
struct Pages {
    calls: Calls,
    answers: Arc<Semaphore>,
}

/// Serves Prometheus and, with `page`, also browsers, until `shutdown` completes.
///
/// # Errors
/// Fails if the metrics listener can no longer accept connections.
pub async fn serve(listener: TcpListener, calls: Calls, page: bool, shutdown: impl Future) -> anyhow::Result<()> {
    let routes = Router::new().route("/metrics", get(metrics)).route("/ready", get(ready));
    let routes = if page {
        routes.route("/", get(whole_page)).route("/numbers", get(page_numbers))
    } else {
        routes.route("/", get(async || "balancer: metrics are at /metrics\n"))
    };
    let routes = routes.with_state(Pages { calls, answers: Arc::new(Semaphore::new(ANSWERS)) });
    listener::serve(listener, LIMITS, |_| routes.clone(), shutdown).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceQuery {
    /// The service to which the answer is restricted; `None` means all services.
    service: Option<String>,
}

async fn metrics(State(scrapes): State<Pages>, Query(ServiceQuery { service }): Query<ServiceQuery>) -> Response {
    let show = |mut snapshot: Snapshot, service: Option<&str>, reply: Reply| {
        snapshot.services.retain(|of| service.is_none_or(|name| of.name == name));
        let mut pieces =
            Pieces::new(WHOLE, |body| reply.send(Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response())));
        let last = render(&snapshot, &mut |piece| pieces.more(piece));
        pieces.end(last);
    };
    scrapes.answer(service, show).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyQuery {
    /// Whether a balancer with withdrawn VIPs counts as not ready.
    #[serde(default)]
    announced: bool,
}

/// Answers 200 if routers may send clients to this balancer, and otherwise 503. The body contains the state and a line
/// for each reason.
async fn ready(State(scrapes): State<Pages>, Query(ReadyQuery { announced }): Query<ReadyQuery>) -> Response {
    let readiness = async {
        let (reply, readiness) = oneshot::channel();
        scrapes.calls.send(Call::Ready { reply }).await.ok()?;
        Some(readiness.await.ok()?.seen(announced))
    };
    let readiness = match timeout(PATIENCE, readiness).await {
        Ok(Some(readiness)) => readiness,
        Ok(None) => return unavailable("not_ready\nthe balancer is shutting down\n"),
        Err(_) => return unavailable("not_ready\nthe balancer is too busy to answer\n"),
    };
    let status = if readiness.state.serves() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lines = std::iter::once(readiness.state.word()).chain(readiness.reasons.iter().map(String::as_str));
    (status, [(header::CACHE_CONTROL, "no-store")], lines.map(|line| format!("{line}\n")).collect::<String>())
        .into_response()
}

async fn whole_page(State(scrapes): State<Pages>, Query(ServiceQuery { service }): Query<ServiceQuery>) -> Response {
    let events = events(&scrapes.calls).await;
    let show = move |snapshot: Snapshot, service: Option<&str>, reply: Reply| {
        reply.send(page::whole(&snapshot, service, &events));
    };
    scrapes.answer(service, show).await
}

async fn page_numbers(State(scrapes): State<Pages>, Query(ServiceQuery { service }): Query<ServiceQuery>) -> Response {
    let events = events(&scrapes.calls).await;
    let show = move |snapshot: Snapshot, service: Option<&str>, reply: Reply| {
        reply.send(Ok(page::numbers(&snapshot, service, &events)));
    };
    scrapes.answer(service, show).await
}

/// The newest events in chronological order; empty if the owner does not answer.
async fn events(calls: &Calls) -> Vec<EventView> {
    let history = async {
        let (reply, history) = oneshot::channel();
        calls.send(Call::Events { reply }).await.ok()?;
        history.await.ok()
    };
    let Ok(Some(history)) = timeout(PATIENCE, history).await else { return Vec::new() };
    history.read(Since::Last(page::EVENTS), Duration::ZERO).await.map(|view| view.events).unwrap_or_default()
}

fn unavailable(why: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

/// The sending end for an answer.
struct Reply(oneshot::Sender<anyhow::Result<Response>>);

impl Reply {
    fn send(self, answer: anyhow::Result<Response>) {
        // Sending fails if the requester no longer waits.
        let _ = self.0.send(answer);
    }
}

impl Pages {
    /// Answers with a page that `show` makes from a snapshot and the requested service, or with the reason why there is
    /// no such page. `show` runs on a separate thread, which it may block.
    async fn answer(
        &self,
        service: Option<String>,
        show: impl FnOnce(Snapshot, Option<&str>, Reply) + Send + 'static,
    ) -> Response {
        let show = move |snapshot: Snapshot, reply: Reply| match service.as_deref() {
            Some(name) if snapshot.services.iter().all(|service| service.name != name) => {
                let known = snapshot.services.iter().map(|service| service.name.as_str());
                let wrong = Refused::not_found("service", name, known);
                reply.send(Ok((StatusCode::NOT_FOUND, format!("{wrong}\n")).into_response()));
            }
            service => show(snapshot, service, reply),
        };
        match timeout(PATIENCE, Arc::clone(&self.answers).acquire_owned()).await {
            Ok(Ok(permit)) => self.answer_permitted(permit, show).await,
            Ok(Err(_)) | Err(_) => unavailable("too many requests at once, or clients that read too slowly\n"),
        }
    }

    async fn answer_permitted(
        &self,
        permit: OwnedSemaphorePermit,
        show: impl FnOnce(Snapshot, Reply) + Send + 'static,
    ) -> Response {
        let snapshot = async {
            let (reply, snapshot) = oneshot::channel();
            self.calls.send(Call::Snapshot { reply }).await.ok()?;
            snapshot.await.ok()
        };
        let shown = match timeout(PATIENCE, snapshot).await {
            Ok(Some(Ok(snapshot))) => {
                // The permit is released when the last byte of the answer leaves this process.
                let permit = Arc::new(permit);
                let writing = Arc::clone(&permit);
                let (reply, shown) = oneshot::channel();
                // The text for ten thousand backends has several megabytes, so rendering must not block other tasks.
                tokio::task::spawn_blocking(move || {
                    let _writing = writing;
                    show(snapshot.whole(), Reply(reply));
                });
                shown.await.ok().map(|shown| shown.map(|shown| shown.map(|body| holding(body, permit))))
            }
            Ok(Some(Err(error))) => Some(Err(error)),
            Ok(None) => None,
            Err(_) => return unavailable("the balancer is too busy to answer\n"),
        };
        match shown {
            Some(Ok(response)) => response,
            Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
            None => unavailable("the balancer is shutting down\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::mpsc,
    };

    use balancer_control::{
        readiness::{Announcement, Fitness, Readiness},
        snapshot::{MemberSnapshot, ServiceSnapshot},
    };

    use super::{
        render_test::{snapshot, text},
        *,
    };

    /// Starts a metrics listener with a controller that answers with `answer` until shutdown.
    async fn serving(
        answer: fn() -> anyhow::Result<balancer_control::snapshot::Snapshot>,
    ) -> (SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<anyhow::Result<()>>) {
        let (calls, mut asked) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(call) = asked.recv().await {
                if let Call::Snapshot { reply } = call {
                    let _ = reply.send(answer().map(Into::into));
                } else if let Call::Ready { reply } = call {
                    let readiness = answer().map(|snapshot| snapshot.member.readiness).unwrap_or_default();
                    let _ = reply.send(Announcement { readiness, withdrawn: true });
                }
            }
        });
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(serve(listener, calls, true, async {
            let _ = stopped.await;
        }));
        (address, stop, server)
    }

    async fn http(address: SocketAddr, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn when_it_is_scraped_then_it_answers() {
        let (address, stop, server) = serving(|| Ok(snapshot())).await;
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains(&format!("content-type: {CONTENT_TYPE}")), "{head}");
        assert_eq!(body, text(&snapshot()));

        let (head, body) = http(address, "GET", "/").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("/metrics"), "{head} {body}");
        assert!(http(address, "GET", "/other").await.0.starts_with("HTTP/1.1 404 "));
        assert!(http(address, "POST", "/metrics").await.0.starts_with("HTTP/1.1 405 "));

        // An idle connection must not delay the shutdown.
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn when_readiness_is_asked_then_the_status_tells_it() {
        let not_ready = || {
            let reasons = vec!["one".to_owned(), "two".to_owned()];
            let readiness = Readiness { state: Fitness::NotReady, reasons };
            Ok(Snapshot { member: MemberSnapshot { readiness, ..MemberSnapshot::default() }, ..snapshot() })
        };
        let degraded = || Ok(snapshot());
        for (answer, status, text) in
            [(not_ready as fn() -> _, "503", "not_ready\none\ntwo\n"), (degraded, "200", "degraded\neth1\n")]
        {
            let (address, _stop, _server) = serving(answer).await;
            let (head, body) = http(address, "GET", "/ready").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert!(head.contains("content-type: text/plain"), "{head}");
            assert_eq!(body, text);
            let (head, body) = http(address, "GET", "/ready?announced=true").await;
            assert!(head.starts_with("HTTP/1.1 503 ") && body.starts_with("not_ready\nit is withdrawn\n"), "{body}");
            assert!(http(address, "GET", "/ready?announced=perhaps").await.0.starts_with("HTTP/1.1 400 "));
            let page = http(address, "GET", "/").await.1;
            assert!(page.contains(if status == "503" { "Not ready: one; two. " } else { "Degraded: eth1. " }));
        }
    }

    /// A snapshot that is rendered as a text of 46 MB.
    fn large() -> anyhow::Result<Snapshot> {
        let mut large = snapshot();
        let backends = large.services[0].backends.clone();
        large.services[0].backends = backends.into_iter().cycle().take(20_000).collect();
        Ok(large)
    }

    /// Joins the chunks of an HTTP body.
    fn whole(mut chunks: &str) -> String {
        let mut body = String::new();
        loop {
            let (length, rest) = chunks.split_once("\r\n").unwrap();
            let (chunk, rest) = rest.split_at(usize::from_str_radix(length, 16).unwrap());
            if chunk.is_empty() {
                return body;
            }
            body.push_str(chunk);
            chunks = rest.strip_prefix("\r\n").unwrap();
        }
    }

    #[tokio::test]
    async fn when_an_answer_is_long_then_it_comes_in_chunks_and_a_short_one_has_a_length() {
        let (address, _stop, _server) = serving(large).await;
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
        assert!(whole(&body) == text(&large().unwrap()), "{} bytes", body.len());
        let (address, _stop, _server) = serving(|| Ok(snapshot())).await;
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    }

    #[tokio::test]
    async fn when_a_reader_is_slow_then_the_end_does_not_wait_for_it() {
        let (address, stop, server) = serving(large).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        slow.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        // The last chunk is missing, so the reader knows that the answer is incomplete.
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest).await;
        assert!(rest.len() < 32 << 20 && !rest.ends_with(b"0\r\n\r\n"), "{}", rest.len());
    }

    #[tokio::test]
    async fn when_answers_are_not_read_then_their_number_and_time_are_bounded() {
        let (address, _stop, _server) = serving(large).await;
        // The answer is much larger than the socket buffers, and the client does not read the answer.
        let mut stuck = Vec::new();
        for _ in 0..ANSWERS + 8 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            stuck.push(stream);
        }
        let mut heads = Vec::new();
        for stream in &mut stuck {
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.unwrap();
            heads.push(String::from_utf8_lossy(&head).into_owned());
        }
        let given = heads.iter().filter(|head| head.ends_with("200")).count();
        assert_eq!(given, ANSWERS, "{heads:?}");
        assert!(heads.iter().all(|head| head.ends_with("200") || head.ends_with("503")), "{heads:?}");
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("too many requests at once"), "{head} {body}");
        // Requests for small answers still succeed, and requests for large answers succeed after one reader has closed
        // its connection.
        assert!(http(address, "GET", "/other").await.0.starts_with("HTTP/1.1 404 "));
        drop(stuck);
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.len() > 10 << 20, "{head} {}", body.len());
    }

    #[tokio::test]
    async fn when_the_page_is_served_then_only_its_own_script_may_run() {
        let (address, _stop, _server) = serving(|| Ok(snapshot())).await;
        let (head, body) = http(address, "GET", "/").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/html"), "{head}");
        for header in ["cache-control: no-store", "x-content-type-options: nosniff", "referrer-policy: no-referrer"] {
            assert!(head.contains(header), "{head}");
        }
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert!(body.contains("web1") && !body.contains("src=") && !body.contains("http://"), "{body}");
        let (head, numbers) = http(address, "GET", "/numbers").await;
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(numbers.contains("<main") && !numbers.contains("<script"), "{numbers}");
        // Each answer has a different nonce for the script.
        assert!(!http(address, "GET", "/").await.0.contains(policy));

        let (calls, _asked) = mpsc::channel(1);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, calls, false, std::future::pending::<()>()));
        assert!(http(address, "GET", "/").await.1.contains("metrics are at /metrics"));
        assert!(http(address, "GET", "/numbers").await.0.starts_with("HTTP/1.1 404 "));
    }

    /// A snapshot of services with these names; each service is otherwise equal to the service of [`snapshot`].
    fn several<const N: usize>(names: [&str; N]) -> Snapshot {
        let mut several = snapshot();
        let one = several.services.remove(0);
        several.services = names.map(|name| ServiceSnapshot { name: name.to_owned(), ..one.clone() }).into();
        several
    }

    #[tokio::test]
    async fn when_services_are_many_then_there_is_an_overview_and_a_page_each() {
        let (address, _stop, _server) = serving(|| Ok(several(["a", "b", "c"]))).await;
        let (_, body) = http(address, "GET", "/").await;
        assert!(body.contains("id=\"services\"") && body.contains("href=\"/?service=b\""), "{body}");
        assert!(body.contains("id=\"service-a\"") && body.contains("id=\"service-c\""), "few are shown as well");

        let (address, _stop, _server) = serving(|| Ok(several(["a", "b", "c", "d"]))).await;
        let (_, body) = http(address, "GET", "/").await;
        assert!(body.contains("id=\"row-d\"") && !body.contains("id=\"service-d\""), "{body}");
        for path in ["/?service=d", "/numbers?service=d"] {
            let (head, body) = http(address, "GET", path).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert!(body.contains("id=\"service-d\"") && !body.contains("id=\"service-a\""), "{path}: {body}");
            assert!(body.contains("All services") && !body.contains("id=\"row-a\""), "{path}: {body}");
        }
        let (_, body) = http(address, "GET", "/metrics?service=d").await;
        assert!(body.contains("service=\"d\"") && !body.contains("service=\"a\""), "{body}");
        assert!(body.contains("balancer_drops_total"), "what is no service's is there: {body}");
        for path in ["/?service=e", "/numbers?service=e", "/metrics?service=e"] {
            let (head, body) = http(address, "GET", path).await;
            assert!(
                head.starts_with("HTTP/1.1 404 ") && body.starts_with("no service \"e\": "),
                "{path}: {head} {body}"
            );
        }
        assert!(http(address, "GET", "/metrics?servce=d").await.0.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn when_there_is_nothing_to_show_then_the_answer_says_why() {
        let (address, _stop, _server) = serving(|| Err(anyhow!("reading map backends: gone"))).await;
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 500 ") && body.contains("reading map backends"), "{head} {body}");

        let (calls, asked) = mpsc::channel(1);
        drop(asked);
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, calls, true, std::future::pending::<()>()));
        let (head, body) = http(address, "GET", "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("shutting down"), "{head} {body}");
    }

    #[tokio::test]
    async fn when_an_address_is_taken_or_foreign_then_the_error_has_advice() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("[metrics] listen"), "{error}");
        let error = bind("192.0.2.1:9660".parse().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("does not have that address"), "{error}");
    }
}
