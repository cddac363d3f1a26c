//! The `udp` and `dns` checks: each check sends a datagram and waits for the answer.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use balancer_config::config::{DnsCheck, UdpCheck};
use balancer_control::io::CheckOutcome;
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    dns::{Answer, Query},
    fault::{is_local, timed_out, unanswered},
};

/// The maximum length of a datagram in bytes.
const LONGEST: usize = 64 * 1024;

/// The datagram that a check sends, and the answer that it expects.
pub(super) enum Datagram {
    Text(UdpCheck),
    Dns(DnsCheck),
}

impl Datagram {
    /// Sends the datagram to `target` once, and judges the answers.
    ///
    /// # Errors
    /// Fails if this machine lacks the resources for the check.
    pub(super) async fn ask(
        &self,
        target: SocketAddr,
        deadline: Instant,
        timeout: Duration,
    ) -> io::Result<CheckOutcome> {
        let query = match self {
            Self::Text(_) => None,
            Self::Dns(check) => Some(Query::new(fastrand::u16(..), check)),
        };
        let what = self.scheme();
        let failed = |error: io::Error| match error {
            error if is_own(&error) => Err(error),
            error => Ok(unanswered(what, &error)),
        };
        let question = match (self, &query) {
            (_, Some(query)) => query.message(),
            (Self::Text(check), None) => &check.send.0,
            (Self::Dns(_), None) => &[],
        };
        let socket = match connect(target, question).await {
            Ok(socket) => socket,
            Err(error) => return failed(error),
        };
        // The reason why none of the answers so far was the expected answer.
        let mut other = None;
        loop {
            let answer = match timeout_at(deadline, receive(&socket)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return failed(error),
                Err(_) => {
                    return Ok(match other {
                        Some(why) => CheckOutcome::Soft(format!("{what}: {why}")),
                        None => timed_out(what, timeout),
                    });
                }
            };
            match self.judge(query.as_ref(), &answer) {
                Judged::Answered(outcome) => return Ok(outcome),
                Judged::Other(why) => other = Some(why),
            }
        }
    }

    fn judge(&self, query: Option<&Query>, answer: &[u8]) -> Judged {
        match (self, query) {
            (Self::Dns(check), Some(query)) => judge_dns(check, query.read(answer)),
            (Self::Text(check), _) => Judged::Answered(judge_text(check, answer)),
            (Self::Dns(_), None) => Judged::Other("no question"),
        }
    }

    const fn scheme(&self) -> &'static str {
        match self {
            Self::Text(_) => "udp",
            Self::Dns(_) => "dns",
        }
    }
}

enum Judged {
    Answered(CheckOutcome),
    /// The datagram answers another query, because it is late or forged; the expected answer may still arrive.
    Other(&'static str),
}

fn judge_text(check: &UdpCheck, answer: &[u8]) -> CheckOutcome {
    let wanted = check.expect.as_ref().filter(|wanted| !wanted.0.is_empty());
    match wanted {
        Some(wanted) if !answer.windows(wanted.0.len()).any(|window| window == wanted.0) => {
            CheckOutcome::Soft(format!("udp: answer without {:?}", wanted.to_string()))
        }
        Some(_) | None => CheckOutcome::Passed,
    }
}

fn judge_dns(check: &DnsCheck, answer: Answer) -> Judged {
    match answer {
        Answer::Code(_, Some(code)) if check.expect_rcode.contains(&code) => Judged::Answered(CheckOutcome::Passed),
        Answer::Code(_, Some(code)) => Judged::Answered(CheckOutcome::Soft(format!("dns: rcode {code}"))),
        Answer::Code(number, None) => Judged::Answered(CheckOutcome::Soft(format!("dns: rcode {number}"))),
        Answer::Other => Judged::Other("an answer to another question"),
        Answer::Malformed => Judged::Other("not a DNS answer"),
    }
}

/// Opens a socket that receives only from `target`, and sends the datagram.
async fn connect(target: SocketAddr, question: &[u8]) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // Without this socket option, the kernel does not report unreachable hosts and networks.
    match target {
        SocketAddr::V4(_) => setsockopt(&socket, Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvErr, &true)?,
    }
    socket.connect(target).await?;
    socket.send(question).await?;
    Ok(socket)
}

/// Receives the next datagram, or returns the ICMP error that arrives instead.
async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    loop {
        socket.ready(Interest::READABLE | Interest::ERROR).await?;
        // The check allocates the buffer only after a datagram has arrived, because checks spend most of their time
        // waiting.
        let mut buffer = vec![0; LONGEST];
        match socket.try_recv(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether this machine has caused an error, for example because a firewall blocks outgoing packets.
fn is_own(error: &io::Error) -> bool {
    is_local(error) || error.raw_os_error() == Some(libc::EPERM)
}
