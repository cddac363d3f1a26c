//! The check of type `tcp` that sends bytes and reads an answer.

use std::time::Duration;

use balancer_config::config::{BodyTest, Talk};
use balancer_control::io::CheckOutcome;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};

use super::{
    body::BODY,
    fault::{reason, timed_out, told},
};

const SCHEME: &str = "tcp";

/// Sends the bytes of a check over `stream`, and judges what arrives until `deadline`.
pub(super) async fn ask(
    talk: &Talk,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    deadline: Instant,
    timeout: Duration,
) -> CheckOutcome {
    let mut answer = Vec::new();
    let heard = timeout_at(deadline, async {
        stream.write_all(&talk.send.0).await?;
        while !is_expected(talk, &answer) && answer.len() < BODY {
            let room = (BODY - answer.len()) as u64;
            if (&mut stream).take(room).read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        Ok(())
    });
    match heard.await {
        _ if is_expected(talk, &answer) => CheckOutcome::Passed,
        Ok(Err(error)) => {
            let error: std::io::Error = error;
            CheckOutcome::Hard(format!("{SCHEME}: connection {}", reason(&error)))
        }
        Ok(Ok(())) if answer.is_empty() => CheckOutcome::Hard(format!("{SCHEME}: connection closed")),
        Err(_) if answer.is_empty() => timed_out(SCHEME, timeout),
        Ok(Ok(())) | Err(_) => {
            CheckOutcome::Soft(format!("{SCHEME}: answer without {}: {}", wanted(talk), told(&answer)))
        }
    }
}

fn is_expected(talk: &Talk, answer: &[u8]) -> bool {
    match &talk.expect {
        None => !answer.is_empty(),
        Some(BodyTest::Contains(text)) => answer.windows(text.len().max(1)).any(|window| window == text.as_bytes()),
        Some(BodyTest::Matches(pattern)) => pattern.is_match(answer),
    }
}

fn wanted(talk: &Talk) -> String {
    match &talk.expect {
        None => "bytes".to_owned(),
        Some(BodyTest::Contains(text)) => format!("{text:?}"),
        Some(BodyTest::Matches(pattern)) => format!("a match of {:?}", pattern.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::config::Payload;
    use regex::bytes::Regex;
    use tokio::io::duplex;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Asks a server that waits for `request` and then sends the parts of its answer, each after the one before was
    /// read, and closes the connection.
    async fn outcome(send: &str, expect: Option<BodyTest>, parts: &'static [&'static str]) -> CheckOutcome {
        let (near, mut far) = duplex(64);
        let talk = Talk { send: Payload(send.as_bytes().to_vec()), expect };
        let request = send.len();
        let server = async move {
            let mut heard = vec![0; request];
            far.read_exact(&mut heard).await.unwrap();
            for part in parts {
                far.write_all(part.as_bytes()).await.unwrap();
            }
        };
        let (outcome, ()) = tokio::join!(ask(&talk, near, Instant::now() + LONG, LONG), server);
        outcome
    }

    fn text(text: &str) -> Option<BodyTest> {
        Some(BodyTest::Contains(text.to_owned()))
    }

    #[tokio::test]
    async fn when_a_server_answers_then_the_bytes_decide() {
        assert_eq!(outcome("PING\r\n", text("+PONG"), &["+PO", "NG\r\n"]).await, CheckOutcome::Passed);
        assert_eq!(outcome("", text("220"), &["220 mail\r\n"]).await, CheckOutcome::Passed);
        assert_eq!(outcome("x", None, &["y"]).await, CheckOutcome::Passed);
        let master = Some(BodyTest::Matches(Regex::new("(?s)\\+OK.*role:master").unwrap()));
        assert_eq!(outcome("i", master.clone(), &["+OK\r\n", "role:master\r\n"]).await, CheckOutcome::Passed);
        let CheckOutcome::Soft(why) = outcome("i", master, &["+OK\r\n", "role:slave\r\n"]).await else {
            panic!("a replica passed")
        };
        assert!(why.starts_with("tcp: answer without a match of ") && why.contains("role:slave"), "{why}");
    }

    #[tokio::test]
    async fn when_a_server_says_nothing_then_the_check_fails_hard_or_late() {
        assert_eq!(outcome("x", None, &[]).await, CheckOutcome::Hard("tcp: connection closed".to_owned()));
        let (near, _far) = duplex(64);
        let talk = Talk { send: Payload(b"x".to_vec()), expect: None };
        let waited = ask(&talk, near, Instant::now(), Duration::from_secs(1)).await;
        assert_eq!(waited, CheckOutcome::Late("tcp: timeout after 1s".to_owned()));
    }
}
