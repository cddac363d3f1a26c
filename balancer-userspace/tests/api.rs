//! Tests of the control socket with a real server, a real client and real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use balancer_api::{
    client::{Client, ClientError},
    events::MAX_WAIT,
    model::{AddBackend, ApiError, ClientQuery, Force, SetAdmin, StatusView},
};
use balancer_config::{
    limits::Limits,
    names::BackendName,
    states::{Admin, BackendState, Forced},
};
use balancer_control::io::Change;
use balancer_listeners::{
    api_server::{Answering, ControlSocket, serve},
    audit::Audit,
    configuration::Configurations,
};
use balancer_runtime::supervisor::Supervisor;
use hyper::StatusCode;
use support::{Fake, snapshot};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
};

fn name(backend: &str) -> BackendName {
    BackendName { service: "web".to_owned(), backend: backend.to_owned() }
}

/// Whether the file of a socket exists.
fn exists(socket: &Path) -> bool {
    socket.symlink_metadata().is_ok()
}

/// Sends raw bytes to the socket, and returns the status and the error in the answer.
async fn raw(socket: &Path, request: impl AsRef<[u8]>) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_ref()).await.unwrap();
    answer(stream).await
}

async fn answer(mut stream: UnixStream) -> (u16, String) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str::<ApiError>(body).unwrap_or_else(|error| panic!("{error}: {answer}")).error)
}

fn request(method: &str, path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

#[tokio::test]
async fn when_a_client_reads_then_it_gets_what_the_controller_shows() {
    let fake = Fake::start().await;
    let client = Client::new(&fake.socket());
    let expected = StatusView::from(snapshot(Admin::Ready, BackendState::Up));

    assert_eq!(client.status().await.unwrap(), expected);
    assert_eq!(client.services().await.unwrap(), expected.services);
    assert_eq!(client.service("web").await.unwrap(), expected.services[0]);
    let backends = client.backends(None).await.unwrap();
    assert_eq!(backends, client.backends(Some("web")).await.unwrap());
    assert_eq!(backends[1].service, "web");
    assert_eq!(backends[1].backend, expected.services[0].backends[1]);
    let health = client.health(Some("web")).await.unwrap();
    assert_eq!(health, client.health(None).await.unwrap());
    assert_eq!((health.len(), health[1].backend.as_str(), health[1].passes), (2, "web2", 10));
    assert_eq!((health[0].last_result.as_deref(), health[0].last_reason.as_str()), (Some("passed"), ""));

    let query = ClientQuery { address: "192.0.2.7".parse().unwrap(), service: None };
    assert_eq!(client.client(&query).await.unwrap().len(), 2);
    let query = ClientQuery { service: Some("web".to_owned()), ..query };
    assert_eq!(client.client(&query).await.unwrap()[0].backend.as_deref(), Some("web1"));
    assert_eq!(fake.changes(), []);
}

#[tokio::test]
async fn when_a_client_asks_for_changes_then_they_arrive_with_the_uid_of_the_peer() {
    let fake = Fake::start().await;
    let client = Client::new(&fake.socket());
    let add = AddBackend {
        name: "web4".to_owned(),
        address: "[2001:db8::4]:8080".to_owned(),
        address6: None,
        weight: Some(7),
        backup: true,
        max_clients: Some(1000),
        max_connections: None,
    };
    client.add_backend("web", &add).await.unwrap();
    client.remove_backend(&name("web2"), true).await.unwrap();
    client.remove_backend(&name("web2"), false).await.unwrap();
    let drain = SetAdmin { admin: Admin::Drain, timeout: Some("1m 30s".to_owned()) };
    client.set_admin(&name("web1"), &drain).await.unwrap();
    client.set_weight(&name("web1"), 65_535).await.unwrap();
    client.force_health(&name("web1"), Force::Down).await.unwrap();
    client.force_health(&name("web1"), Force::Auto).await.unwrap();

    assert_eq!(
        fake.changes(),
        [
            Change::Add {
                name: name("web4"),
                address: "2001:db8::4".parse().unwrap(),
                address6: None,
                port: Some(8080),
                weight: Some(7),
                backup: true,
                limits: Limits { clients: Some(1000), connections: None },
            },
            Change::Remove { name: name("web2"), force: true },
            Change::Remove { name: name("web2"), force: false },
            Change::SetAdmin { name: name("web1"), admin: Admin::Drain, timeout: Some(Duration::from_secs(90)) },
            Change::SetWeight { name: name("web1"), weight: 65_535 },
            Change::ForceHealth { name: name("web1"), forced: Some(Forced::Down) },
            Change::ForceHealth { name: name("web1"), forced: None },
        ]
    );
    let uid = nix::unistd::getuid().as_raw();
    assert!(fake.seen.lock().unwrap().iter().all(|&(_, peer)| peer == Some(uid)));
}

#[tokio::test]
async fn when_the_controller_refuses_then_the_client_gets_its_kind_and_words() {
    let fake = Fake::start().await;
    let client = Client::new(&fake.socket());
    let add = AddBackend {
        name: "web1".to_owned(),
        address: "10.0.0.1".to_owned(),
        address6: None,
        weight: None,
        backup: false,
        max_clients: None,
        max_connections: None,
    };
    for (answer, expected, words) in [
        (client.add_backend("web", &add).await, StatusCode::CONFLICT, "exists already"),
        (client.set_weight(&name("web9"), 1).await, StatusCode::NOT_FOUND, "did you mean"),
        (client.set_weight(&name("web1"), 13).await, StatusCode::BAD_REQUEST, "unlucky"),
    ] {
        let Err(ClientError::Refused { status, message }) = answer else { panic!("{answer:?}") };
        assert_eq!(status, expected);
        assert!(message.contains(words), "{message}");
    }
    let error = client.service("wbe").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no service \"wbe\"; did you mean \"web\"?");
}

#[tokio::test]
async fn when_requests_are_bad_then_nothing_changes() {
    let fake = Fake::start().await;
    let (add, admin, weight) = (
        ("POST", "/v1/services/web/backends"),
        ("PUT", "/v1/services/web/backends/web1/admin"),
        ("PUT", "/v1/services/web/backends/web1/weight"),
    );
    let clients = vec!["{\"client\": \"203.0.113.7\", \"backend\": \"web1\", \"age_seconds\": 40}"; 4097].join(",");
    let too_many = format!("{{\"clients\": [{clients}]}}").into_bytes();
    let cases: &[((&str, &str), &[u8], u16)] = &[
        (("POST", "/v1/services/web/clients"), &too_many, 400),
        (weight, b"", 400),
        (weight, b"{", 400),
        (weight, b"null", 400),
        (weight, b"[5]", 400),
        (weight, b"\"5\"", 400),
        (weight, b"{}", 400),
        (weight, b"{\"weight\": -1}", 400),
        (weight, b"{\"weight\": 65536}", 400),
        (weight, b"{\"weight\": 1.5}", 400),
        (weight, b"{\"weight\": \"5\"}", 400),
        (weight, b"{\"weight\": 5, \"wieght\": 5}", 400),
        (weight, b"{\"weight\": 5, \"weight\": 6}", 400),
        (weight, b"{\"weight\": 5} {\"weight\": 6}", 400),
        (weight, b"\xff\xfe{\"weight\": 5}", 400),
        (admin, b"{\"admin\": \"gone\"}", 400),
        (admin, b"{\"admin\": \"drain\", \"timeout\": \"soon\"}", 400),
        (admin, b"{\"admin\": \"drain\", \"timeout\": 5}", 400),
        (admin, b"{\"admin\": \"ready\", \"timeout\": \"5s\"}", 400),
        (add, b"{\"name\": \"web4\"}", 400),
        (add, b"{\"name\": \"\", \"address\": \"10.0.0.4\"}", 400),
        (add, b"{\"name\": \"a/b\", \"address\": \"10.0.0.4\"}", 400),
        (add, b"{\"name\": \"w\xc3\x28\", \"address\": \"10.0.0.4\"}", 400),
        (add, b"{\"name\": \"web4\", \"address\": \"0.0.0.0\"}", 400),
        (add, b"{\"name\": \"web4\", \"address\": \"web4.example.com\"}", 400),
        (add, b"{\"name\": \"web4\", \"address\": \"10.0.0.4\", \"port\": 80}", 400),
        (("PUT", "/v1/services/web/backends/web1/wieght"), b"{\"weight\": 5}", 404),
        (("PUT", "/v1/services/%ff/backends/web1/weight"), b"{\"weight\": 5}", 400),
        (("POST", weight.1), b"{\"weight\": 5}", 405),
        (("DELETE", "/v1/services/web/backends/web1?force=perhaps"), b"", 400),
        (("DELETE", "/v1/services/web/backends/web1?froce=true"), b"", 400),
        (("DELETE", "/v1/services/web"), b"", 405),
        (("GET", "/v1/backends?servce=web"), b"", 400),
        (("GET", "/v1/clients/not-an-address"), b"", 400),
        (("GET", "/v1/events?since=yesterday"), b"", 400),
        (("GET", "/v1/events?since=1&last=1"), b"", 400),
        (("GET", "/v1/events?wait=1h"), b"", 400),
        (("GET", "/"), b"", 404),
    ];
    for &((method, path), body, expected) in cases {
        let shown = String::from_utf8_lossy(body).into_owned();
        let (status, error) = raw(&fake.socket(), request(method, path, body)).await;
        assert_eq!(status, expected, "{method} {path} {shown}: {error}");
        assert!(!error.is_empty() && !error.contains('\n'), "{method} {path} {shown}: {error}");
    }
    assert_eq!(fake.changes(), []);
}

#[tokio::test]
async fn when_a_body_is_over_64_kib_then_it_is_refused_and_discarded() {
    let fake = Fake::start().await;
    let path = "/v1/services/web/backends/web1/weight";
    let padded = |length: usize| {
        let body = "{\"weight\": 5}";
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let (status, error) = raw(&fake.socket(), request("PUT", path, padded(65_537))).await;
    assert_eq!((status, error.as_str()), (413, "the body is larger than 64 KiB; nothing was changed"));
    assert_eq!(raw(&fake.socket(), request("PUT", path, padded(10 << 20))).await.0, 413);

    let mut chunked =
        format!("PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for _ in 0..160 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b' '; 65_536]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(raw(&fake.socket(), chunked).await.0, 413);

    // The client sends the header `Expect`, so it need not send the body before the server answers.
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 10485760\r\n\r\n"
    );
    assert_eq!(raw(&fake.socket(), head).await.0, 413);
    assert_eq!(fake.changes(), []);

    Client::new(&fake.socket()).set_weight(&name("web1"), 5).await.unwrap();
    let mut stream = UnixStream::connect(fake.socket()).await.unwrap();
    stream.write_all(&request("PUT", path, padded(65_536))).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(fake.changes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_a_body_does_not_come_then_the_server_does_not_wait() {
    let fake = Fake::start().await;
    let head = "PUT /v1/services/web/backends/web1/weight HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Content-Length: 13\r\n\r\n{\"weight\"";
    let mut stream = UnixStream::connect(fake.socket()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(answer(stream).await.0, 408);
    assert_eq!(fake.changes(), []);
}

#[tokio::test(start_paused = true)]
async fn when_connections_are_idle_then_others_are_still_served() {
    let fake = Fake::start().await;
    let mut idle = Vec::new();
    for _ in 0..80 {
        idle.push(UnixStream::connect(fake.socket()).await.unwrap());
    }
    Client::new(&fake.socket()).status().await.unwrap();
    let mut end = [0; 1];
    assert_eq!(idle[0].read(&mut end).await.unwrap(), 0, "the first idle connection was closed");
}

#[tokio::test]
async fn when_no_process_serves_the_socket_then_the_error_differs_from_a_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.sock");
    let missing = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(missing, ClientError::Unreachable { .. }), "{missing:?}");

    // The process that created this socket file has ended.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let stale = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(stale, ClientError::Unreachable { .. }), "{stale:?}");
    assert!(stale.to_string().contains("nobody listens on it"), "{stale}");
}

#[tokio::test]
async fn when_the_server_runs_then_its_socket_is_for_owner_and_group_and_later_removed() {
    let fake = Fake::start().await;
    let path = fake.socket();
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);

    let refused = ControlSocket::bind(&path, None).await.unwrap_err();
    assert!(refused.to_string().starts_with("another controller serves "), "{refused}");
    assert!(Client::new(&path).status().await.is_ok(), "the refused one left the socket alone");

    let _directory = fake.stop().await;
    assert!(!exists(&path));
}

#[tokio::test]
async fn when_a_client_asks_for_later_events_then_it_gets_them_or_waits() {
    let fake = Fake::start().await;
    let client = Client::new(&fake.socket());
    let first = client.events("since=0", Duration::ZERO).await.unwrap();
    assert_eq!((first.events.len(), first.missed, first.next), (1, 0, 1));
    assert_eq!(client.events("since=1", Duration::ZERO).await.unwrap().events, []);

    let waiting = tokio::spawn(async move { client.events("since=1", MAX_WAIT).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.events.change(None, "configuration applied", Some(1000), None);
    let heard = waiting.await.unwrap().unwrap();
    assert_eq!(
        (heard.events[0].message.as_str(), heard.events[0].uid, heard.next),
        ("configuration applied", Some(1000), 2)
    );

    // The server limits the number of requests that wait for events.
    let client = Client::new(&fake.socket());
    let mut waiting = JoinSet::new();
    for _ in 0..30 {
        let client = client.clone();
        waiting.spawn(async move { client.events("since=2", MAX_WAIT).await });
    }
    let refused = waiting.join_next().await.unwrap().unwrap().unwrap_err();
    assert!(refused.to_string().contains("wait for events already; ask without wait"), "{refused}");
    assert!(client.status().await.is_ok(), "and there is room for others");
}

#[tokio::test]
async fn when_a_group_is_configured_then_the_socket_belongs_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.sock");
    let refused = ControlSocket::bind(&path, Some("no-such-group")).await.unwrap_err().to_string();
    assert!(refused.starts_with("there is no group \"no-such-group\" for the control socket; make it ("), "{refused}");
    assert!(!exists(&path));

    // Without privileges, a process may use only its own group, which this test gives by number.
    let own = fs::metadata(directory.path()).unwrap().gid();
    let socket = ControlSocket::bind(&path, Some(&own.to_string())).await.unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o777), (own, 0o660));
    drop(socket);
}

#[tokio::test]
async fn when_a_stale_socket_exists_then_it_is_replaced_and_another_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let socket = ControlSocket::bind(&path, None).await.unwrap();
    UnixStream::connect(&path).await.unwrap();
    drop(socket);
    assert!(!exists(&path));

    fs::write(&path, "precious").unwrap();
    let refused = ControlSocket::bind(&path, None).await.unwrap_err();
    assert!(refused.to_string().contains("is not a socket"), "{refused}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn when_the_controller_is_gone_then_the_answer_is_503() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.sock");
    let socket = ControlSocket::bind(&path, None).await.unwrap();
    let (calls, inbox) = mpsc::channel(1);
    drop(inbox);
    let server = tokio::spawn(serve(
        socket,
        Answering::new(calls, Configurations::default(), Audit::new(&Supervisor::default())),
        std::future::pending::<()>(),
    ));
    let answer = Client::new(&path).set_weight(&name("web1"), 5).await;
    let Err(ClientError::Refused { status, message }) = answer else { panic!("{answer:?}") };
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(message.contains("shutting down"), "{message}");
    server.abort();
}
