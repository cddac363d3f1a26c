//! A health check, which connects, sends a request, and judges the answer.

use std::{io, net::SocketAddr, time::Duration};

use balancer_config::{
    config::{CheckConfig, CheckKind, Via},
    names::BackendName,
};
use balancer_control::io::{BackendId, CheckOutcome};
use nix::errno::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout, timeout_at},
};

use super::{
    datagram::Datagram,
    exec::Program,
    load::{Hearer, Words},
    question::{Means, Question},
    service_path::Ways,
};

/// The size in bytes of the buffer between an HTTP request and the connection that carries it.
const PIPE: usize = 64 * 1024;
/// The maximum number of characters that a report quotes from a server or a program.
pub(super) const TOLD: usize = 200;

/// The backend that a check tests.
#[derive(Clone)]
pub(super) struct Whom {
    pub(super) backend: BackendId,
    pub(super) name: BackendName,
    pub(super) target: SocketAddr,
    pub(super) ways: Ways,
    pub(super) hearer: Hearer,
}

/// A check, with all data prepared that does not change between runs.
pub(super) struct Check {
    target: SocketAddr,
    timeout: Duration,
    what: What,
    /// The backend and the paths to backends, if the check uses the path of clients' packets.
    through: Option<(BackendId, Ways)>,
}

enum What {
    Connection,
    Answer(Box<Question>),
    Datagram(Box<Datagram>),
    Program(Box<Program>),
}

impl Check {
    /// Prepares the check of a backend.
    ///
    /// # Errors
    /// Fails if this machine lacks the resources for the check.
    pub(super) async fn new(whom: &Whom, config: &CheckConfig) -> io::Result<Self> {
        let Whom { backend, name, target, ways, hearer } = whom;
        let words = || Some(Words::new(name.clone(), hearer.clone()));
        let what = match &config.kind {
            CheckKind::None | CheckKind::Tcp { .. } => What::Connection,
            CheckKind::Http(http) => What::Answer(Box::new(Question::of_page(*target, http, words())?)),
            CheckKind::Grpc(grpc) => What::Answer(Box::new(Question::of_service(*target, grpc)?)),
            CheckKind::Udp(udp) => What::Datagram(Box::new(Datagram::Text(udp.clone()))),
            CheckKind::Dns(dns) => What::Datagram(Box::new(Datagram::Dns(dns.clone()))),
            CheckKind::Exec(exec) => What::Program(Box::new(Program::new(name, *target, exec).await?)),
        };
        let through = (config.via == Via::Service).then(|| (*backend, ways.clone()));
        Ok(Self { target: *target, timeout: config.timeout, what, through })
    }

    /// Runs the check once. A run takes at most the check's timeout, after at most the same time for reading the files
    /// that the check needs.
    ///
    /// # Errors
    /// Fails if this machine lacks a resource: file descriptors, memory, ports, the program or a file. An error about
    /// this machine says nothing about the backend.
    pub(super) async fn run(&self) -> io::Result<CheckOutcome> {
        // Tens of thousands of these futures may exist and wait at the same time, so they do not contain data that only
        // some checks need.
        let deadline = || Instant::now() + self.timeout;
        let asks = match &self.what {
            What::Program(program) => return Box::pin(program.run(deadline(), self.timeout)).await,
            What::Datagram(datagram) => return Box::pin(datagram.ask(self.target, deadline(), self.timeout)).await,
            What::Connection => None,
            What::Answer(question) => Some((&**question, Box::pin(self.means(question)).await?)),
        };
        let deadline = deadline();
        // For a backend on this machine, the check uses an ordinary connection.
        if let Some((backend, ways)) = &self.through
            && !ways.lead_here(*backend)
        {
            return Box::pin(self.run_through(ways, *backend, asks, deadline)).await;
        }
        let stream = match timeout_at(deadline, self.connect(asks.is_some())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_local(&error) => return Err(error),
            Ok(Err(error)) => return Ok(CheckOutcome::Hard(format!("connect: {}", reason(&error)))),
            Err(_) => return Ok(timed_out("connect", self.timeout)),
        };
        let Some((question, means)) = asks else { return Ok(CheckOutcome::Passed) };
        let answered = timeout_at(deadline, Box::pin(question.ask(means, stream))).await;
        Ok(answered.unwrap_or_else(|_| timed_out(question.scheme(), self.timeout)))
    }

    async fn means(&self, question: &Question) -> io::Result<Means> {
        let late = |_| io::Error::other(too_late("the files that the check needs", self.timeout));
        timeout(self.timeout, question.means()).await.map_err(late)?
    }

    /// Runs the check on the path of clients' packets.
    async fn run_through(
        &self,
        ways: &Ways,
        backend: BackendId,
        asks: Option<(&Question, Means)>,
        deadline: Instant,
    ) -> io::Result<CheckOutcome> {
        let mut conversation = ways.connect(backend, self.target, deadline).await?;
        let connecting = format!("connect to {}", self.target);
        match timeout_at(deadline, conversation.connect()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_local(&error) => return Err(error),
            Ok(Err(error)) => return Ok(CheckOutcome::Hard(format!("{connecting}: {}", reason(&error)))),
            Err(_) => {
                let why = too_late(&connecting, self.timeout);
                return Ok(CheckOutcome::Late(format!("{why}; does the backend hold that address?")));
            }
        }
        let Some((question, means)) = asks else { return Ok(CheckOutcome::Passed) };
        let (near, far) = tokio::io::duplex(PIPE);
        let answered = async {
            tokio::select! {
                // The check judges the received data before it handles the end of the connection.
                biased;
                outcome = question.ask(means, near) => outcome,
                Err(error) = conversation.carry(far) => {
                    CheckOutcome::Hard(format!("{}: connection {}", question.scheme(), reason(&error)))
                }
            }
        };
        let answered = timeout_at(deadline, answered).await;
        Ok(answered.unwrap_or_else(|_| timed_out(question.scheme(), self.timeout)))
    }

    async fn connect(&self, asks: bool) -> io::Result<TcpStream> {
        let socket = socket(self.target)?;
        if asks {
            // Without quick acknowledgements, the kernel sends the last acknowledgement of the handshake together with
            // the request, as in HAProxy's smart connect.
            SockRef::from(&socket).set_tcp_quickack(false)?;
        }
        socket.connect(self.target).await
    }
}

/// Makes a socket for one connection to `target`. Closing the socket sends a reset; without the reset, the kernel would
/// keep state about each check for a minute.
pub(crate) fn socket(target: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_zero_linger()?;
    Ok(socket)
}

/// The outcome of a check that has exceeded its timeout.
pub(super) fn timed_out(what: &str, timeout: Duration) -> CheckOutcome {
    CheckOutcome::Late(too_late(what, timeout))
}

fn too_late(what: &str, timeout: Duration) -> String {
    format!("{what}: timeout after {}", humantime::format_duration(timeout))
}

/// Whether this machine has caused an error.
pub(super) fn is_local(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code))
}

/// Describes a connection error in one or two words.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused".to_owned(),
        Some(libc::ECONNRESET | libc::EPIPE) => "reset".to_owned(),
        Some(libc::ETIMEDOUT) => "timeout".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        None if error.kind() == io::ErrorKind::ConnectionReset => "reset".to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        None => error.to_string(),
    }
}

/// The beginning of a text that a server or a program has sent, as one line.
pub(super) fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().take(TOLD).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
impl Whom {
    pub(super) fn at(target: SocketAddr) -> Self {
        let (backend, name) = (BackendId(1), balancer_config::fixture::name("web/web1"));
        Self { backend, name, target, ways: Ways::default(), hearer: Hearer::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_this_machine_has_a_problem_then_the_backend_is_not_blamed() {
        assert!(is_local(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_local(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), "no route to host");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }
}
