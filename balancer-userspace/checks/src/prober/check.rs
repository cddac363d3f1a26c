//! A health check, which connects, sends a request, and judges the answer.

use std::{io, net::SocketAddr, time::Duration};

use balancer_config::{
    config::{CheckConfig, CheckKind, Talk, Via},
    names::BackendName,
};
use balancer_control::io::{BackendId, CheckOutcome};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout, timeout_at},
};

use super::{
    datagram::Datagram,
    exec::Program,
    fault::{is_local, reason, timed_out, too_late, unanswered},
    load::{LoadHeaders, LoadReceiver},
    question::{Question, RequestFiles},
    service_path::BackendPaths,
    talk,
};

/// The size in bytes of the buffer between an HTTP request and the connection that carries it.
const PIPE: usize = 64 * 1024;

/// The backend that a check tests.
#[derive(Clone)]
pub(super) struct CheckedBackend {
    pub(super) backend: BackendId,
    pub(super) name: BackendName,
    pub(super) target: SocketAddr,
    pub(super) ways: BackendPaths,
    pub(super) hearer: LoadReceiver,
}

/// A check, with all data prepared that does not change between runs.
pub(super) struct Check {
    target: SocketAddr,
    timeout: Duration,
    what: What,
    /// The backend and the paths to backends, if the check uses the path of clients' packets.
    through: Option<(BackendId, BackendPaths)>,
}

enum What {
    Connection,
    Talk(Box<Talk>),
    Answer(Box<Question>),
    Datagram(Box<Datagram>),
    Program(Box<Program>),
}

/// The exchange of a check after the check has connected.
enum Asks<'a> {
    Nothing,
    Talk(&'a Talk),
    Question(&'a Question, RequestFiles),
}

impl Asks<'_> {
    /// Whether the check sends bytes as soon as it is connected.
    const fn sends_first(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Talk(talk) => !talk.send.0.is_empty(),
            Self::Question(..) => true,
        }
    }
}

impl Check {
    /// Prepares the check of a backend.
    ///
    /// # Errors
    /// Fails if this machine lacks the resources for the check.
    pub(super) async fn new(whom: &CheckedBackend, config: &CheckConfig) -> io::Result<Self> {
        let CheckedBackend { backend, name, target, ways, hearer } = whom;
        let words = || Some(LoadHeaders::new(name.clone(), hearer.clone()));
        let what = match &config.kind {
            CheckKind::None | CheckKind::Tcp { talk: None, .. } => What::Connection,
            CheckKind::Tcp { talk: Some(talk), .. } => What::Talk(Box::new(talk.clone())),
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
            What::Connection => Asks::Nothing,
            What::Talk(talk) => Asks::Talk(talk),
            What::Answer(question) => Asks::Question(question, Box::pin(self.means(question)).await?),
        };
        let deadline = deadline();
        // For a backend on this machine, the check uses an ordinary connection.
        if let Some((backend, ways)) = &self.through
            && !ways.lead_here(*backend)
        {
            return Box::pin(self.run_through(ways, *backend, asks, deadline)).await;
        }
        let stream = match timeout_at(deadline, self.connect(asks.sends_first())).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if is_local(&error) => return Err(error),
            Ok(Err(error)) => return Ok(unanswered("connect", &error)),
            Err(_) => return Ok(timed_out("connect", self.timeout)),
        };
        Ok(Box::pin(self.ask(asks, stream, deadline)).await)
    }

    /// Asks over a stream that is connected to the backend, and judges the answer.
    async fn ask(
        &self,
        asks: Asks<'_>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        deadline: Instant,
    ) -> CheckOutcome {
        match asks {
            Asks::Nothing => CheckOutcome::Passed,
            Asks::Talk(talk) => talk::ask(talk, stream, deadline, self.timeout).await,
            Asks::Question(question, means) => {
                let answered = timeout_at(deadline, question.ask(means, stream)).await;
                answered.unwrap_or_else(|_| timed_out(question.scheme(), self.timeout))
            }
        }
    }

    async fn means(&self, question: &Question) -> io::Result<RequestFiles> {
        let late = |_| io::Error::other(too_late("the files that the check needs", self.timeout));
        timeout(self.timeout, question.means()).await.map_err(late)?
    }

    /// Runs the check on the path of clients' packets.
    async fn run_through(
        &self,
        ways: &BackendPaths,
        backend: BackendId,
        asks: Asks<'_>,
        deadline: Instant,
    ) -> io::Result<CheckOutcome> {
        let mut conversation = ways.connect(backend, self.target, deadline).await?;
        let connecting = format!("connect to {}", self.target);
        match timeout_at(deadline, conversation.connect()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_local(&error) => return Err(error),
            Ok(Err(error)) => return Ok(unanswered(&connecting, &error)),
            Err(_) => {
                let why = too_late(&connecting, self.timeout);
                return Ok(CheckOutcome::Late(format!("{why}; does the backend hold that address?")));
            }
        }
        let scheme = match &asks {
            Asks::Nothing => return Ok(CheckOutcome::Passed),
            Asks::Talk(_) => "tcp",
            Asks::Question(question, _) => question.scheme(),
        };
        let (near, far) = tokio::io::duplex(PIPE);
        Ok(tokio::select! {
            // The check judges the received data before it handles the end of the connection.
            biased;
            outcome = self.ask(asks, near, deadline) => outcome,
            Err(error) = conversation.carry(far) => {
                CheckOutcome::Hard(format!("{scheme}: connection {}", reason(&error)))
            }
        })
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

#[cfg(test)]
impl CheckedBackend {
    pub(super) fn at(target: SocketAddr) -> Self {
        let (backend, name) = (BackendId(1), balancer_config::fixture::name("web/web1"));
        Self { backend, name, target, ways: BackendPaths::default(), hearer: LoadReceiver::default() }
    }
}
