//! CPU-bound web servers. Each server answers one request at a time, and every answer takes the same processor time.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::Result;
use balancer_bench::http_server::Server;
use balancer_demo::answer::BACKEND_HEADER;
use balancer_testkit::namespace::Namespace;
use nix::time::{ClockId, clock_gettime};

/// Starts a server on all addresses of the host `host`. Every answer of the server, even to a health check, takes the
/// processor time `time`.
pub(crate) fn start(host: &Namespace, name: String, port: u16, time: Duration) -> Result<Server> {
    Server::start(host, port, 1, move |connection| {
        work(time)?;
        write!(
            connection,
            "HTTP/1.1 200 OK\r\n{BACKEND_HEADER}: {name}\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n"
        )
    })
}

/// Computes until the thread has used the processor time `time`.
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
