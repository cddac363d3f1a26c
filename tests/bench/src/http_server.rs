//! Web servers of benchmarks: threads that read a request to the end of its head, and answer it.

use std::{
    io::{self, Read as _},
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

/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(1);

/// A web server. Dropping the value ends it.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Socket>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server on all IPv4 addresses of `host`, with this number of threads, each of which handles one request
    /// at a time. `answer` writes the answer to a request.
    ///
    /// # Errors
    /// If the port cannot be listened at.
    pub fn start(
        host: &Namespace,
        port: u16,
        threads: usize,
        answer: impl Fn(&mut TcpStream) -> io::Result<()> + Clone + Send + 'static,
    ) -> Result<Self> {
        let listener = host.run_in_thread(|| listen(port))?;
        let listener = Arc::new(listener.with_context(|| format!("listening at port {port} of {}", host.name()))?);
        let ended = Arc::new(AtomicBool::new(false));
        let begin = || {
            let (listener, ended, answer) = (Arc::clone(&listener), Arc::clone(&ended), answer.clone());
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    // A client that has closed its connection counts itself as failed.
                    let _ = listener.accept().and_then(|(connection, _)| serve(connection.into(), &answer));
                }
            })
        };
        let threads = (0..threads).map(|_| begin()).collect();
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

fn serve(mut connection: TcpStream, answer: impl Fn(&mut TcpStream) -> io::Result<()>) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut length) = ([0; 1024], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        match connection.read(&mut request[length..])? {
            // The connection is closed, or the request is too long.
            0 => return Ok(()),
            count => length += count,
        }
    }
    answer(&mut connection)
}
