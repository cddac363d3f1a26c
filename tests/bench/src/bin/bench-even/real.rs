//! Compares the choices of the real `HAProxy` with the choices of the model.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use socket2::{Domain, Socket, Type};

use super::{
    SERVERS,
    theirs::{Haproxy, WEIGHT},
};

const CONNECTIONS: usize = 600;
const ADDRESSES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(10);
/// A pause in which `HAProxy` certainly notices a closed connection.
const PAUSE: Duration = Duration::from_millis(20);

/// The number of connections for which the model and the real `HAProxy` chose the same server.
pub(crate) struct Agreement {
    pub(crate) connections: usize,
    /// The number of connections that `HAProxy` opened to the server that the model predicted.
    pub(crate) agreed: usize,
    /// The number of connections for which the load factor made `HAProxy` choose another server.
    pub(crate) elsewhere: usize,
}

/// A process that ends when the value is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens and closes connections through `HAProxy` on the loopback interface, as gateways and single clients do.
///
/// # Errors
/// Fails if `HAProxy` is not installed, or does not work.
pub(crate) fn compare(factor: Option<usize>, seed: u64) -> Result<Agreement> {
    let mut rng = Rng::with_seed(seed);
    let servers = (0..SERVERS).map(|number| serve(number as u8)).collect::<Result<Vec<_>>>()?;
    let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("haproxy.cfg");
    fs::write(&file, configuration(front, factor, &servers))?;
    let mut program = Command::new("haproxy");
    program.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _program = Program(program.spawn().context("cannot start haproxy; is it installed?")?);
    let started = Instant::now();
    while TcpStream::connect(front).is_err() {
        anyhow::ensure!(started.elapsed() < PATIENCE, "haproxy does not listen on {front}");
        thread::sleep(PAUSE);
    }
    // During the pause, `HAProxy` closes the test connection that the loop above has opened.
    thread::sleep(10 * PAUSE);
    let of_loopback = |rng: &mut Rng| Ipv4Addr::new(127, rng.u8(1..250), rng.u8(..), rng.u8(1..250));
    let addresses: Vec<Ipv4Addr> = (0..ADDRESSES).map(|_| of_loopback(&mut rng)).collect();
    let (mut model, plain) = (Haproxy::new(factor), Haproxy::new(None));
    let mut open: Vec<(TcpStream, usize)> = Vec::new();
    let mut agreement = Agreement { connections: CONNECTIONS, agreed: 0, elsewhere: 0 };
    for _ in 0..CONNECTIONS {
        if !open.is_empty() && rng.u8(..5) == 0 {
            let (stream, server) = open.swap_remove(rng.usize(..open.len()));
            stream.shutdown(Shutdown::Both)?;
            model.closed(server);
            thread::sleep(PAUSE);
        }
        // A few addresses open most of the connections.
        let address = addresses[(rng.f64().powi(4) * ADDRESSES as f64) as usize];
        let (stream, server) = connect(address, front)?;
        agreement.agreed += usize::from(model.server(address.into()) == server);
        agreement.elsewhere += usize::from(plain.server(address.into()) != server);
        model.opened(server);
        open.push((stream, server));
    }
    Ok(agreement)
}

fn configuration(front: SocketAddr, factor: Option<usize>, servers: &[SocketAddr]) -> String {
    let mut text = format!(
        "global\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n timeout server 10m\n\
         listen web\n bind {front}\n balance source\n hash-type consistent\n"
    );
    if let Some(factor) = factor {
        text += &format!(" hash-balance-factor {factor}\n");
    }
    for (number, server) in servers.iter().enumerate() {
        text += &format!(" server s{number} {server} weight {WEIGHT}\n");
    }
    text
}

/// Starts a server that sends its number to each client, and keeps the connection open until the client closes it.
fn serve(number: u8) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(&[number]);
                let _ = stream.read(&mut [0]);
            });
        }
    });
    Ok(address)
}

/// Connects and returns the number of the server that answers.
fn connect(from: Ipv4Addr, to: SocketAddr) -> Result<(TcpStream, usize)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut number = [0];
    stream.read_exact(&mut number)?;
    Ok((stream, usize::from(number[0])))
}
