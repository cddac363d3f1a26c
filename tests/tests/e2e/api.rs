//! Tests of malformed requests to the running controller. The controller refuses each malformed request with a
//! sentence, and changes nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use balancer_api::model::{ApiError, StatusView, Verdicts};
use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};

const BACKENDS: &str = "/v1/services/web/backends";
const ADMIN: &str = "/v1/services/web/backends/web1/admin";
const WEIGHT: &str = "/v1/services/web/backends/web1/weight";

/// The method and the path of a request.
type Target = (&'static str, &'static str);

/// Returns the status without the fields that change with packets or time.
fn settled(mut status: StatusView) -> StatusView {
    for interface in &mut status.interfaces {
        interface.packets_seen = Verdicts::default();
    }
    for service in &mut status.services {
        // The status reports only after some seconds that a service receives no packets.
        (service.rates, service.silence) = (None, None);
        for backend in &mut service.backends {
            (backend.connections, backend.packets, backend.bytes, backend.rates) = (0, 0, 0, None);
            // The controller counts a handshake up to two seconds after its packets.
            backend.handshakes = None;
        }
    }
    status
}

/// Sends raw bytes to the controller, and returns the status code and the body of the answer.
pub(crate) fn exchange(site: &Site, request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(site.files().join("balancer.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(&answer).unwrap().unwrap();
    let code = response.code.unwrap();
    (code, String::from_utf8(answer[head..].to_vec()).unwrap())
}

pub(crate) fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: balancer\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Checks that the controller refuses the request with the status code `code` and one line that contains `words`, and
/// that the balancer's status stays the same.
fn refused(site: &Site, before: &StatusView, (method, path): Target, body: &[u8], code: u16, words: &str) {
    let (answered, text) = exchange(site, &request(method, path, body));
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    let error = serde_json::from_str::<ApiError>(&text).unwrap().error;
    println!("{method} {path} {shown} -> {answered} {error}");
    assert_eq!(answered, code, "{method} {path} {shown}: {error}");
    assert!(error.contains(words) && error.lines().count() == 1, "{method} {path} {shown}: {error}");
    assert_eq!(&settled(site.status().unwrap()), before, "{method} {path} {shown}");
}

#[test]
fn when_a_request_is_nonsense_then_it_is_refused_and_changes_nothing() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let homes = site.homes(Family::V4, 1..=50).unwrap();
    let before = settled(site.status().unwrap());
    let (add, admin, weight, plan) = (("POST", BACKENDS), ("PUT", ADMIN), ("PUT", WEIGHT), ("POST", "/v1/plan"));

    let table: &[(Target, &[u8], u16, &str)] = &[
        // Request fields may be unknown, missing or repeated.
        (add, br#"{"name":"web9","address":"10.0.0.99:8080","wieght":1}"#, 400, "wieght"),
        (add, br#"{"name":"web9"}"#, 400, "address"),
        (add, br#"{"name":"web9","name":"web8","address":"10.0.0.99:8080"}"#, 400, "name"),
        (weight, br#"{"weight":1,"force":true}"#, 400, "force"),
        (weight, b"{}", 400, "weight"),
        (admin, br#"{"admin":"drain","deadline":"1s"}"#, 400, "deadline"),
        // Request fields may have a wrong type or a value out of range.
        (add, br#"{"name":9,"address":"10.0.0.99:8080"}"#, 400, "string"),
        (add, br#"{"name":"web9","address":"10.0.0.99:8080","weight":"1"}"#, 400, "u16"),
        (add, br#"{"name":"web9","address":"10.0.0.99:8080","weight":65536}"#, 400, "65536"),
        (add, br#"{"name":"web9","address":"10.0.0.99:8080","weight":-1}"#, 400, "-1"),
        (add, br#"{"name":"web9","address":"10.0.0.99:8080","backup":1}"#, 400, "boolean"),
        (weight, br#"{"weight":1.5}"#, 400, "1.5"),
        (weight, br#"{"weight":null}"#, 400, "null"),
        (admin, br#"{"admin":"sleepy"}"#, 400, "sleepy"),
        (admin, br#"{"admin":"maint","timeout":"5m"}"#, 400, "timeout"),
        (admin, br#"{"admin":"drain","timeout":"soon"}"#, 400, "soon"),
        // The controller refuses the plan of a change in the same way as the change itself.
        (
            plan,
            br#"{"change":"admin","service":"web","name":"web1","admin":{"admin":"maint","timeout":"5m"}}"#,
            400,
            "timeout",
        ),
        (
            plan,
            br#"{"change":"admin","service":"web","name":"web1","admin":{"admin":"ready","timeout":"5m"}}"#,
            400,
            "timeout",
        ),
        (
            plan,
            br#"{"change":"admin","service":"web","name":"web1","admin":{"admin":"drain","timeout":"soon"}}"#,
            400,
            "soon",
        ),
        (plan, br#"{"change":"add","service":"web","backend":{"name":"a/b","address":"10.0.0.99:8080"}}"#, 400, "a/b"),
        (
            plan,
            br#"{"change":"add","service":"web","backend":{"name":"web9","address":"10.0.0.999"}}"#,
            400,
            "10.0.0.999",
        ),
        (
            plan,
            br#"{"change":"add","service":"web","backend":{"name":"web1","address":"10.0.0.99:8080"}}"#,
            409,
            "exists",
        ),
        (plan, br#"{"change":"weight","service":"web","name":"web9","weight":7}"#, 404, "web9"),
        (plan, br#"{"change":"remove","service":"wbe","name":"web1"}"#, 404, "web"),
        (plan, br#"{"change":"add_listener","service":"web","listener":"192.0.2.9"}"#, 400, "192.0.2.9"),
        (plan, br#"{"change":"add_listener","service":"wbe","listener":"192.0.2.9:80"}"#, 404, "web"),
        (plan, br#"{"change":"remove_listener","service":"web","listener":"192.0.2.9:80"}"#, 404, "192.0.2.9:80"),
        // The body of a request may contain no JSON object.
        (weight, b"", 400, "JSON object"),
        (weight, b"[1]", 400, "JSON object"),
        (weight, b"7", 400, "JSON object"),
        (weight, br#"{"weight":7"#, 400, "EOF"),
        (weight, br#"{"weight":7}{"weight":8}"#, 400, "trailing"),
        (add, b"{\"name\":\"web\xff\xfe\",\"address\":\"10.0.0.99:8080\"}", 400, "unicode"),
        (weight, b"\xff\xfe{\"weight\":7}", 400, "JSON object"),
        // Names and addresses in a request may be invalid.
        (add, br#"{"name":"","address":"10.0.0.99:8080"}"#, 400, "name"),
        (add, br#"{"name":"a/b","address":"10.0.0.99:8080"}"#, 400, "a/b"),
        (add, br#"{"name":"web9","address":"10.0.0.999:8080"}"#, 400, "10.0.0.999"),
        (add, br#"{"name":"web9","address":"10.0.0.99:99999"}"#, 400, "99999"),
        (add, br#"{"name":"web9","address":"[fd00::99]:8080"}"#, 400, "IPv"),
        (add, br#"{"name":"web1","address":"10.0.0.99:8080"}"#, 409, "exists"),
        (("POST", "/v1/services/wbe/backends"), br#"{"name":"web9","address":"10.0.0.99:8080"}"#, 404, "web"),
        (("PUT", "/v1/services/web/backends/web9/weight"), br#"{"weight":7}"#, 404, "web9"),
        (("PUT", "/v1/services/web/backends/web9/admin"), br#"{"admin":"drain"}"#, 404, "web9"),
        (("DELETE", "/v1/services/web/backends/web9"), b"", 404, "web9"),
        (("DELETE", "/v1/services/web/backends/web1?force=perhaps"), b"", 400, "force"),
        (("DELETE", "/v1/services/web/backends/web1?farce=true"), b"", 400, "farce"),
        (("PUT", "/v1/services/web/backends/%ff/weight"), br#"{"weight":7}"#, 400, "UTF-8"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"pin"}"#, 400, "pin needs a backend"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"deny","backend":"web1"}"#, 400, "nothing else"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"allow"}"#, 400, "allow"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"deny","tll":"5m"}"#, 400, "tll"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"deny","ttl":"soon"}"#, 400, "soon"),
        (("PUT", "/v1/services/web/rules/10.1.2.3/24"), br#"{"action":"deny"}"#, 400, "10.1.2.0/24"),
        (("PUT", "/v1/services/web/rules/10.1.2.0/24"), br#"{"action":"pin","backend":"wbe1"}"#, 404, "web1"),
        (("DELETE", "/v1/services/web/rules/10.1.2.0/24"), b"", 404, "no rule"),
        (("GET", "/v1/rules?service=wbe"), b"", 404, "wbe"),
        (("GET", "/v1/clients/10.1.0.256"), b"", 400, "10.1.0.256"),
        (("GET", "/v1/clients/fd00::1"), b"", 404, "IPv6"),
        (("GET", "/v1/clients/10.1.0.1?service=wbe"), b"", 404, "wbe"),
        (("DELETE", "/v1/services/web"), b"", 405, "DELETE"),
        (("GET", "/v2/status"), b"", 404, "/v1/status"),
    ];
    for &(target, body, code, words) in table {
        refused(&site, &before, target, body, code, words);
    }

    let large = format!(r#"{{"weight":7,"padding":"{}"}}"#, "x".repeat(10 << 20));
    refused(&site, &before, weight, large.as_bytes(), 413, "KiB");
    let deep = "[".repeat(60_000);
    refused(&site, &before, weight, format!(r#"{{"weight":{deep}}}"#).as_bytes(), 400, "u16");

    assert_eq!(site.homes(Family::V4, 1..=50).unwrap(), homes);
}

/// A slow client, or a client that stops in the middle of a request, must not delay other clients.
#[test]
fn when_a_request_is_broken_then_other_clients_are_still_served() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let before = settled(site.status().unwrap());
    let whole = request("PUT", WEIGHT, br#"{"weight":7}"#);
    let mut open = Vec::new();
    for end in 0..whole.len() {
        let mut stream = UnixStream::connect(site.files().join("balancer.sock")).unwrap();
        stream.write_all(&whole[..end]).unwrap();
        // Some clients keep their connections open, but too few clients to block others.
        if end % 8 == 0 {
            open.push(stream);
        }
    }
    for garbage in [&b"\x16\x03\x01\x02\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0; 100]] {
        let mut stream = UnixStream::connect(site.files().join("balancer.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            // Instead of an answer, a reset of the connection is acceptable as well.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("no answer to {garbage:?}: {error}"),
        }
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(settled(site.status().unwrap()), before);
    assert_eq!(exchange(&site, &whole).0, 200);
    assert_eq!(site.status().unwrap().services[0].backends[0].weight, 7);
}

/// Tests errors in arguments that the command line itself detects.
#[test]
fn when_arguments_make_no_sense_then_the_command_line_refuses() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |_, _| Ok(())).unwrap();
    let before = settled(site.status().unwrap());
    let binary = balancer_testkit::binaries::balancer().unwrap();
    for (arguments, code, words) in [
        ("backend drain web/web9", 1, "web9"),
        ("backend drain wbe/web1", 1, "web"),
        ("backend drain web1", 2, "web1"),
        ("backend weight web/web1 65536", 2, "65535"),
        ("backend weight web/web1 -1", 2, "-1"),
        ("backend add web/web1 10.0.0.99:8080", 1, "exists"),
        ("backend add web/web9 10.0.0.999", 2, "10.0.0.999"),
        ("backend add web/web9 fd00::9", 1, "IPv"),
        ("backend drian web/web1", 2, "drain"),
        ("service show wbe", 1, "web"),
        ("client where 10.1.0", 2, "10.1.0"),
        ("client where fd00::1", 1, "IPv6"),
        ("backend drain web/web1 --timeout soon", 2, "soon"),
    ] {
        let output = std::process::Command::new(&binary)
            .args(arguments.split(' '))
            .env("BALANCER_SOCKET", site.files().join("balancer.sock"))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        println!("{arguments}: {}", error.trim_end());
        assert_eq!(output.status.code(), Some(code), "{arguments}: {error}");
        assert!(error.contains(words), "{arguments}: {error}");
        assert_eq!(settled(site.status().unwrap()), before, "{arguments}");
    }
}
