//! Web servers for benchmarks, whose threads read a request up to the end of the request's head and then answer.

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

/// The time limit for receiving a request.
const PATIENCE: Duration = Duration::from_secs(1);

/// A running web server; dropping the value ends the server.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Socket>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts a server with `threads` threads on all IPv4 addresses of `host`. Each thread handles one request at a
    /// time. The function `answer` writes the answer to a request.
    ///
    /// # Errors
    /// Fails if the server cannot listen on the port.
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
                    // The client counts the request as failed, so the server ignores errors of connections.
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
        // Shutting the socket down wakes the threads that wait for connections.
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
            // The client has closed the connection, or the request is longer than the buffer.
            0 => return Ok(()),
            count => length += count,
        }
    }
    answer(&mut connection)
}
