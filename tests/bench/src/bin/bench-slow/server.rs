//! CPU-bound web servers: each answers one request at a time, and every answer takes the same processor time.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use balancer_demo::answer::BACKEND_HEADER;
use balancer_testkit::namespace::Namespace;
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(1);

/// A web server. Dropping the value ends it.
pub(crate) struct Server {
    listener: Arc<Socket>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on all addresses of `host`, whose answers take this processor `time`.
    pub(crate) fn start(host: &Namespace, name: String, port: u16, time: Duration) -> Result<Self> {
        let listener = host.run_in_thread(|| listen(port))?;
        let listener = Arc::new(listener.with_context(|| format!("listening at port {port} of {}", host.name()))?);
        let ended = Arc::new(AtomicBool::new(false));
        let serve = {
            let (listener, ended) = (Arc::clone(&listener), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    // A client that has closed its connection counts itself as failed.
                    let _ = listener.accept().and_then(|(connection, _)| answer(connection.into(), &name, time));
                }
            }
        };
        Ok(Self { listener, ended, thread: Some(thread::spawn(serve)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for a connection.
        if let Err(error) = self.listener.shutdown(Shutdown::Both) {
            eprintln!("a server goes on: {error}");
            return;
        }
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(1024)?;
    Ok(socket)
}

/// Reads a request to the end of its head, works, and answers. Health checks are answered in the same way.
fn answer(mut connection: TcpStream, name: &str, time: Duration) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut length) = ([0; 1024], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        match connection.read(&mut request[length..])? {
            // The connection is closed, or the request is too long.
            0 => return Ok(()),
            count => length += count,
        }
    }
    work(time)?;
    write!(
        connection,
        "HTTP/1.1 200 OK\r\n{BACKEND_HEADER}: {name}\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n"
    )
}

/// Computes until this thread has used that much processor time.
fn work(time: Duration) -> io::Result<()> {
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let end = used()? + time;
    let mut number = 1_u64;
    while used()? < end {
        for _ in 0..1_000 {
            number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17));
        }
    }
    Ok(())
}
