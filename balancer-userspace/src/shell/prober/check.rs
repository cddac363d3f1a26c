//! One health check: connect, ask, judge the answer.

use std::{io, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{exec::Program, http::Question};
use crate::{
    config::model::{CheckConfig, CheckKind},
    core::io::{BackendName, CheckOutcome},
};

/// A check with everything made ready that is the same each time.
pub(super) struct Check {
    target: SocketAddr,
    timeout: Duration,
    what: What,
}

enum What {
    Connection,
    Answer(Box<Question>),
    Program(Box<Program>),
}

impl Check {
    /// The check of backend `name` at `target`.
    ///
    /// # Errors
    /// When this machine lacks the means for it.
    pub(super) async fn new(name: &BackendName, target: SocketAddr, config: &CheckConfig) -> io::Result<Self> {
        let what = match &config.kind {
            CheckKind::None | CheckKind::Tcp { .. } => What::Connection,
            CheckKind::Http(http) => What::Answer(Box::new(Question::new(target, http)?)),
            CheckKind::Exec(exec) => What::Program(Box::new(Program::new(name, target, exec).await?)),
        };
        Ok(Self { target, timeout: config.timeout, what })
    }

    /// Checks once. Takes at most the check's timeout.
    ///
    /// # Errors
    /// When this machine lacks the means (file descriptors, memory, ports, the program), which says nothing of the
    /// backend.
    pub(super) async fn run(&self) -> io::Result<CheckOutcome> {
        let deadline = Instant::now() + self.timeout;
        let question = match &self.what {
            What::Program(program) => return program.run(deadline, self.timeout).await,
            What::Connection => None,
            What::Answer(question) => Some(question),
        };
        let stream = match timeout_at(deadline, self.connect(question.is_some())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_local(&error) => return Err(error),
            Ok(Err(error)) => return Ok(CheckOutcome::Hard(format!("connect: {}", reason(&error)))),
            Err(_) => return Ok(timed_out("connect", self.timeout)),
        };
        let Some(question) = question else { return Ok(CheckOutcome::Passed) };
        match timeout_at(deadline, question.ask(stream)).await {
            Ok(outcome) => outcome,
            Err(_) => Ok(timed_out(question.scheme(), self.timeout)),
        }
    }

    async fn connect(&self, asks: bool) -> io::Result<TcpStream> {
        let socket = if self.target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Closed by a reset, it leaves nothing behind; else each check would be remembered for a minute.
        socket.set_zero_linger()?;
        if asks {
            // The handshake's last acknowledgement goes with the question, as in HAProxy's smart connect.
            SockRef::from(&socket).set_tcp_quickack(false)?;
        }
        socket.connect(self.target).await
    }
}

/// Nobody answered in time.
pub(super) fn timed_out(what: &str, timeout: Duration) -> CheckOutcome {
    CheckOutcome::Hard(format!("{what}: timeout after {}", humantime::format_duration(timeout)))
}

/// Whether an error is this machine's own trouble.
fn is_local(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code))
}

/// An error of a connection in a word or two.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused".to_owned(),
        Some(libc::ECONNRESET | libc::EPIPE) => "reset".to_owned(),
        Some(libc::ETIMEDOUT) => "timeout".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_trouble_is_not_the_backends() {
        assert!(is_local(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_local(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), "no route to host");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }
}
