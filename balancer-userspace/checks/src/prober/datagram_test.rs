//! Tests of `udp` and `dns` checks, with correct and with faulty servers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use balancer_common::verdict::Signal;
use balancer_config::{
    config::{CheckConfig, CheckKind, DnsCheck, DnsName, Rcode, Record, UdpCheck},
    fixture,
};
use balancer_control::io::{BackendId, CheckOutcome, Event};
use balancer_runtime::supervisor::Supervisor;
use tokio::{net::UdpSocket, sync::mpsc, time::timeout};

use super::{
    Prober,
    check::{Check, CheckedBackend},
    rounds::tests::spec,
};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

fn config(kind: CheckKind, timeout: Duration) -> CheckConfig {
    CheckConfig { kind, interval: timeout, timeout, fast_interval: timeout, fall: 1, rise: 1, ..fixture::check() }
}

async fn outcome(target: SocketAddr, kind: CheckKind, timeout: Duration) -> CheckOutcome {
    Check::new(&CheckedBackend::at(target), &config(kind, timeout)).await.unwrap().run().await.unwrap()
}

fn udp(send: &str, expect: Option<&str>) -> CheckKind {
    let expect = expect.map(|expect| expect.parse().unwrap());
    CheckKind::Udp(UdpCheck { port: None, send: send.parse().unwrap(), expect })
}

fn dns(expect_rcode: &[Rcode]) -> CheckKind {
    let (name, expect_rcode) = ("www.example.com".parse().unwrap(), expect_rcode.to_vec());
    CheckKind::Dns(DnsCheck { port: None, name, record: Record::A, expect_rcode })
}

fn soft(reason: &str) -> CheckOutcome {
    CheckOutcome::Soft(reason.to_owned())
}

fn hard(reason: &str) -> CheckOutcome {
    CheckOutcome::Hard(reason.to_owned())
}

fn shut(reason: &str) -> CheckOutcome {
    CheckOutcome::Shut(reason.to_owned())
}

fn late(reason: &str) -> CheckOutcome {
    CheckOutcome::Late(reason.to_owned())
}

/// Starts a server that answers each datagram with the datagrams that `answer` makes from it.
async fn server_at(address: &str, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind(address).await.unwrap();
    let target = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut question = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut question).await {
            for answer in answer(&question[..length]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    target
}

async fn server(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    server_at("127.0.0.1:0", answer).await
}

fn answered(question: &[u8], code: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | code;
    answer
}

async fn closed(address: &str) -> SocketAddr {
    UdpSocket::bind(address).await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn when_a_datagram_is_answered_then_the_answer_decides() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let echo = server_at(address, |question| vec![[question, b" pong \xff\x00"].concat()]).await;
        assert_eq!(outcome(echo, udp("ping", None), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(echo, udp("", None), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(echo, udp("ping", Some("ping pong")), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(echo, udp("hex:00", Some("hex:ff 00")), LONG).await, CheckOutcome::Passed);
        assert_eq!(outcome(echo, udp("ping", Some("gnop")), LONG).await, soft("udp: answer without \"gnop\""));
        let longer = "x".repeat(100);
        assert!(matches!(outcome(echo, udp("ping", Some(&longer)), LONG).await, CheckOutcome::Soft(_)));
    }
}

#[tokio::test]
async fn when_an_answer_is_empty_then_it_is_an_answer() {
    let empty = server(|_| vec![vec![]]).await;
    assert_eq!(outcome(empty, udp("ping", None), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(empty, udp("ping", Some("x")), LONG).await, soft("udp: answer without \"x\""));
    assert_eq!(outcome(empty, dns(&[Rcode::NoError]), SHORT).await, soft("dns: not a DNS answer"));
}

#[tokio::test]
async fn when_the_port_is_closed_then_the_check_says_at_once_that_the_server_may_be_restarting() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let refusing = closed(address).await;
        assert_eq!(outcome(refusing, udp("ping", None), LONG).await, shut("udp: refused"));
        assert_eq!(outcome(refusing, dns(&[Rcode::NoError]), LONG).await, shut("dns: refused"));
    }
}

#[tokio::test]
async fn when_nothing_answers_then_the_failure_is_hard() {
    let silent = server(|_| vec![]).await;
    assert_eq!(outcome(silent, udp("ping", None), SHORT).await, late("udp: timeout after 300ms"));
    assert_eq!(outcome(silent, dns(&[Rcode::NoError]), SHORT).await, late("dns: timeout after 300ms"));
}

#[tokio::test]
async fn when_a_query_is_answered_then_the_response_code_decides() {
    let missing = server(|question| vec![answered(question, 3)]).await;
    assert_eq!(outcome(missing, dns(&[Rcode::NoError]), LONG).await, soft("dns: rcode NXDOMAIN"));
    assert_eq!(outcome(missing, dns(&[Rcode::NoError, Rcode::NxDomain]), LONG).await, CheckOutcome::Passed);
    let fine = server(|question| vec![answered(question, 0)]).await;
    assert_eq!(outcome(fine, dns(&[Rcode::NoError]), LONG).await, CheckOutcome::Passed);
    assert_eq!(outcome(fine, dns(&[Rcode::Refused]), LONG).await, soft("dns: rcode NOERROR"));
    let root = DnsCheck { port: None, name: DnsName::root(), record: Record::Soa, expect_rcode: vec![Rcode::NoError] };
    assert_eq!(outcome(fine, CheckKind::Dns(root), LONG).await, CheckOutcome::Passed);
    let odd = server(|question| vec![answered(question, 12)]).await;
    assert_eq!(outcome(odd, dns(&[Rcode::NoError]), LONG).await, soft("dns: rcode 12"));
}

#[tokio::test]
async fn when_other_answers_come_first_then_the_right_one_counts() {
    let other = |question: &[u8]| {
        let mut other = answered(question, 2);
        other[0] ^= 1;
        other
    };
    let late = server(move |question| vec![other(question), b"?".to_vec(), answered(question, 0)]).await;
    assert_eq!(outcome(late, dns(&[Rcode::NoError]), LONG).await, CheckOutcome::Passed);
    let wrong = server(move |question| vec![other(question)]).await;
    assert_eq!(outcome(wrong, dns(&[Rcode::NoError]), SHORT).await, soft("dns: an answer to another question"));
}

#[tokio::test]
async fn when_packets_suspect_a_server_then_it_is_asked_at_once() {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let target = socket.local_addr().unwrap();
    let (sender, mut told) = mpsc::channel(8);
    let mut prober = Prober::new(sender, &Supervisor::default()).unwrap();
    let hour = Duration::from_secs(3600);
    let check = CheckConfig { fall: 3, timeout: LONG, fast_interval: hour, ..config(udp("ping", None), hour) };
    prober.start(spec(1, target, check));
    let mut question = [0; 16];
    let (length, from) = timeout(LONG, socket.recv_from(&mut question)).await.unwrap().unwrap();
    socket.send_to(&question[..length], from).await.unwrap();
    let mut next = async || timeout(LONG, told.recv()).await.unwrap();
    assert!(matches!(next().await, Some(Event::Checked { outcome: CheckOutcome::Passed, .. })));
    drop(socket);
    prober.suspect(BackendId(1), Signal::Unreachable);
    for _ in 0..3 {
        let event = next().await;
        let Some(Event::Checked { outcome, asked, .. }) = event else { panic!("{event:?}") };
        assert_eq!((outcome, asked), (hard("udp: refused"), true));
    }
}
