//! Tests of the demo's web server over real connections.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, time::Duration};

use balancer_testkit::{backend::Backend, binaries, http_client::Request, namespace::Namespace};

const LISTEN: &str = "127.0.0.1:8080";

fn request() -> Request {
    Request::new("127.0.0.1:0".parse().unwrap(), LISTEN.parse().unwrap())
}

fn health() -> Request {
    Request { timeout: Duration::from_millis(500), ..request().path("/healthz") }
}

fn start(namespace: &Namespace, name: &str, listen: &[&str], logs: &tempfile::TempDir) -> anyhow::Result<Backend> {
    let listen: Vec<SocketAddr> = listen.iter().map(|address| address.parse().unwrap()).collect();
    Backend::start(&binaries::balancer()?, namespace, name, &listen, logs.path())
}

#[test]
fn when_a_session_reaches_another_backend_then_its_count_starts_again() {
    let logs = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("demo").unwrap();
    let _one = start(&namespace, "web1", &[LISTEN, "[::1]:8080"], &logs).unwrap();
    let _two = start(&namespace, "web2", &["127.0.0.1:8081"], &logs).unwrap();
    namespace
        .run_in_thread(|| {
            let first = request().send().unwrap();
            assert_eq!((first.status, first.backend.as_str()), (200, "web1"));
            let first = first.answer().unwrap();
            assert_eq!((first.backend.as_str(), first.requests, first.client.as_str()), ("web1", 1, "127.0.0.1"));

            let session = Some(first.session.clone());
            let again = request().session(session.clone());
            assert_eq!(again.send().unwrap().answer().unwrap().requests, 2);
            let over_v6 =
                Request { source: "[::1]:0".parse().unwrap(), target: "[::1]:8080".parse().unwrap(), ..again };
            assert_eq!(over_v6.send().unwrap().answer().unwrap().requests, 3, "one memory for all addresses");

            let moved = Request { target: "127.0.0.1:8081".parse().unwrap(), ..request().session(session) };
            let moved = moved.send().unwrap().answer().unwrap();
            assert_eq!((moved.backend.as_str(), moved.requests), ("web2", 1));
            assert_ne!(request().send().unwrap().answer().unwrap().session, first.session);
        })
        .unwrap();
}

#[test]
fn when_a_failure_is_requested_then_the_health_check_fails_that_way() {
    let logs = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("demo").unwrap();
    let backend = start(&namespace, "web1", &[LISTEN], &logs).unwrap();
    let status = || namespace.run_in_thread(|| health().send()).unwrap();
    assert_eq!(status().unwrap().status, 200);
    backend.fail(&namespace, "503").unwrap();
    assert_eq!(status().unwrap().status, 503);
    backend.fail(&namespace, "hang").unwrap();
    assert_eq!(status().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(namespace.run_in_thread(|| request().send()).unwrap().unwrap().status, 200, "the rest goes on");
    assert!(backend.fail(&namespace, "sideways").is_err());
    backend.fail(&namespace, "ok").unwrap();
    assert_eq!(status().unwrap().status, 200);
}

#[test]
fn when_the_server_cannot_start_then_it_says_why_and_it_ends_on_request() {
    let logs = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("demo").unwrap();
    let mut first = start(&namespace, "web1", &[LISTEN], &logs).unwrap();
    let error = start(&namespace, "web2", &[LISTEN], &logs).unwrap_err();
    assert!(format!("{error:#}").contains("cannot listen on 127.0.0.1:8080"), "{error:#}");
    assert!(first.process().stop().unwrap().success());
    start(&namespace, "web3", &[LISTEN], &logs).unwrap();
}

#[test]
fn when_a_source_port_is_chosen_then_the_request_uses_it() {
    let logs = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("demo").unwrap();
    let _backend = start(&namespace, "web1", &[LISTEN], &logs).unwrap();
    let chosen = Request { source: "127.9.8.7:4711".parse().unwrap(), ..request() };
    let answer = namespace.run_in_thread(|| chosen.send()).unwrap().unwrap().answer().unwrap();
    assert_eq!(answer.client, "127.9.8.7");
}
