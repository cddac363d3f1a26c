//! Web servers with minimal cost: threads that answer every request with the same bytes.

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
use balancer_testkit::namespace::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

/// The number of threads of each server, so that a late request does not delay others.
const THREADS: usize = 2;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(1);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";

/// A web server. Dropping the value ends it.
pub(crate) struct Server {
    listener: Arc<Socket>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on all addresses of `host`.
    pub(crate) fn start(host: &Namespace, port: u16) -> Result<Self> {
        let listener = host.run_in_thread(|| listen(port))?;
        let listener = Arc::new(listener.with_context(|| format!("listening at port {port} of {}", host.name()))?);
        let ended = Arc::new(AtomicBool::new(false));
        let serve = || {
            let (listener, ended) = (Arc::clone(&listener), Arc::clone(&ended));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    // A client that has closed its connection counts itself as failed.
                    let _ = listener.accept().and_then(|(connection, _)| answer(connection.into()));
                }
            })
        };
        let threads = (0..THREADS).map(|_| serve()).collect();
        Ok(Self { listener, ended, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the threads that wait for a connection.
        if let Err(error) = self.listener.shutdown(Shutdown::Both) {
            eprintln!("a server goes on: {error}");
            return;
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(1024)?;
    Ok(socket)
}

/// Reads a request to the end of its head, and answers it.
fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut length) = ([0; 1024], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        match connection.read(&mut request[length..])? {
            // The connection is closed, or the request is too long.
            0 => return Ok(()),
            count => length += count,
        }
    }
    connection.write_all(ANSWER)
}
