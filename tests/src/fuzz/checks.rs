//! Fuzzes the answers of backends to health checks.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use balancer_config::config::{BodyTest, CheckKind, GrpcCheck, HttpCheck, StatusRanges, Tls};
use balancer_control::io::CheckOutcome;
use balancer_daemon::untrusted;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::runtime;

/// Uses `bytes` as the answer to a health check. The bits of the first byte select the properties of the check: bit 0
/// TLS, bit 1 a connection that stays open after the answer, bit 2 an expected text in the body, bit 3 `HEAD`, bit 4
/// HTTP/2, bit 5 gRPC.
pub fn checks(bytes: &[u8]) {
    let Some((&kind, answer)) = bytes.split_first() else { return };
    let host = Some("backend.example".to_owned());
    let tls = (kind & 1 != 0).then_some(Tls { verify: false, ca_file: None, sni: None, client: None });
    let http = HttpCheck {
        tls: tls.clone(),
        http2: kind & 16 != 0,
        method: if kind & 8 != 0 { "HEAD" } else { "GET" }.to_owned(),
        path: "/health".to_owned(),
        host: host.clone(),
        headers: Vec::new(),
        port: None,
        expect_status: StatusRanges(vec![(200, 399)]),
        expect_body: (kind & 4 != 0).then(|| BodyTest::Contains("in order".to_owned())),
    };
    let grpc = GrpcCheck { tls, service: "shop.Cart".to_owned(), host, headers: Vec::new(), port: None };
    let is_http1 = kind & 48 == 0;
    let check = if kind & 32 == 0 { CheckKind::Http(http) } else { CheckKind::Grpc(grpc) };
    let outcome = runtime().block_on(converse(&check, answer, kind & 2 != 0));
    match outcome {
        Some(CheckOutcome::Passed) => {
            let says = |text: &[u8]| answer.windows(text.len()).any(|window| window == text);
            assert!(kind & 1 == 0 && (!is_http1 || says(b"HTTP/1.")), "an answer that is none has passed");
        }
        Some(
            CheckOutcome::Soft(why)
            | CheckOutcome::Hard(why)
            | CheckOutcome::Shut(why)
            | CheckOutcome::Late(why)
            | CheckOutcome::Hindered(why),
        ) => {
            assert!(!why.is_empty(), "no reason");
        }
        None => assert!(kind & 2 != 0, "it goes on after the connection's end"),
    }
}

/// Runs the health check `check` against a server that sends `answer`. Returns `None` if the check has no outcome
/// within a second.
async fn converse(check: &CheckKind, answer: &[u8], silent: bool) -> Option<CheckOutcome> {
    let target = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 9), 80));
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut asked, mut answers) = tokio::io::split(far);
    let backend = async {
        // The check closes the connection once the check has an outcome, so writing may fail.
        let _ = answers.write_all(answer).await;
        if !silent {
            let _ = answers.shutdown().await;
        }
        let _ = asked.read_to_end(&mut Vec::new()).await;
        std::future::pending::<()>().await;
    };
    let judged = timeout(Duration::from_secs(1), untrusted::answer(target, check, near));
    tokio::select! {
        judged = judged => judged.ok().and_then(Result::ok),
        () = backend => None,
    }
}
