//! A small blocking HTTP/1.1 client that can choose its source address and opens a connection for each request.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::answer::{Answer, BACKEND_HEADER, SESSION_COOKIE};

/// The maximum size in bytes of an answer that the client reads.
const MAX_ANSWER: u64 = 64 << 20;

/// An HTTP request, and the addresses of the connection for sending it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The source address of the connection; with port 0, the kernel chooses the port.
    pub source: SocketAddr,
    /// The destination address of the connection.
    pub target: SocketAddr,
    /// The HTTP method: `GET`, `POST`, …
    pub method: &'static str,
    /// The path and query of the URL.
    pub path: String,
    pub session: Option<String>,
    /// The time limit for the whole request, including the connection setup.
    pub timeout: Duration,
}

impl Request {
    /// Makes a request `GET /` with a time limit of two seconds and no session.
    #[must_use]
    pub fn new(source: SocketAddr, target: SocketAddr) -> Self {
        Self { source, target, method: "GET", path: "/".to_owned(), session: None, timeout: Duration::from_secs(2) }
    }

    /// Sets the path and query of the request.
    #[must_use]
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    #[must_use]
    pub fn session(self, session: Option<String>) -> Self {
        Self { session, ..self }
    }

    /// Sends the request and reads the whole answer.
    ///
    /// # Errors
    /// Fails with a socket error, with `TimedOut` after the time limit, or with `InvalidData` if the answer is invalid
    /// HTTP.
    pub fn send(&self) -> io::Result<Reply> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = self.connect()?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        let cookie = self.session.as_ref().map_or_else(String::new, |id| format!("cookie: {SESSION_COOKIE}={id}\r\n"));
        let head = format!(
            "{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\naccept: application/json\r\ncontent-length: 0\r\n{cookie}\r\n",
            self.method, self.path, self.target
        );
        stream.write_all(head.as_bytes())?;
        Reply::parse(&read_to_end(stream, deadline)?)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, Some(Protocol::TCP))?;
        if self.source.port() != 0 {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&self.source.into())?;
        socket.connect_timeout(&self.target.into(), self.timeout)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status, such as 200.
    pub status: u16,
    /// The backend that answered; empty if the answer names no backend.
    pub backend: String,
    pub body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> io::Result<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head) = response.parse(bytes).map_err(invalid)? else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ended within its head"));
        };
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| String::from_utf8_lossy(header.value).into_owned())
        };
        let body = whole_body(&bytes[head..], header("transfer-encoding"), header("content-length"))?;
        let status = response.code.ok_or_else(|| invalid("no status"))?;
        Ok(Self { status, backend: header(BACKEND_HEADER).unwrap_or_default(), body })
    }

    /// Parses the body in the format of the demo's web server.
    ///
    /// # Errors
    /// Fails if the body has another format.
    pub fn answer(&self) -> io::Result<Answer> {
        serde_json::from_slice(&self.body).map_err(invalid)
    }
}

/// Returns the body of an answer that ended when the connection was closed, without chunk framing.
///
/// # Errors
/// Fails with `UnexpectedEof` if the body is incomplete.
pub fn whole_body(body: &[u8], transfer_encoding: Option<String>, length: Option<String>) -> io::Result<Vec<u8>> {
    let cut = |what: String| io::Error::new(io::ErrorKind::UnexpectedEof, what);
    if transfer_encoding.is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return joined(body).ok_or_else(|| cut(format!("no last chunk in {} bytes", body.len())));
    }
    match length {
        Some(length) if length.parse() != Ok(body.len()) => {
            Err(cut(format!("{} bytes of a body of {length}", body.len())))
        }
        Some(_) | None => Ok(body.to_vec()),
    }
}

/// Joins the chunks of a complete chunked body.
fn joined(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let httparse::Status::Complete((begin, length)) = httparse::parse_chunk_size(rest).ok()? else { return None };
        if length == 0 {
            // After the last chunk, only an empty line follows, because the client requests no trailers.
            return (rest.get(begin..)? == b"\r\n").then_some(whole);
        }
        let end = begin.checked_add(usize::try_from(length).ok()?)?;
        whole.extend_from_slice(rest.get(begin..end)?);
        rest = rest.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

fn read_to_end(mut stream: TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > MAX_ANSWER {
            return Err(invalid(format!("the answer is longer than {MAX_ANSWER} bytes")));
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(late()) } else { Ok(left) }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no whole answer in time")
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::Reply;

    #[test]
    fn when_an_answer_is_parsed_then_its_parts_are_found() {
        let reply = Reply::parse(b"HTTP/1.1 503 Busy\r\nX-Backend: web1\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!(reply, Reply { status: 503, backend: "web1".to_owned(), body: b"no".to_vec() });
    }

    #[test]
    fn when_an_answer_comes_whole_or_in_chunks_then_it_is_read_and_a_cut_one_is_an_error() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n";
        for answer in [&whole[..], chunks] {
            assert_eq!(Reply::parse(answer).unwrap().body, b"ok");
            for end in 0..answer.len() {
                assert_eq!(Reply::parse(&answer[..end]).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{end} bytes");
            }
        }
        assert_eq!(Reply::parse(b"SSH-2.0-x\r\n").unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
