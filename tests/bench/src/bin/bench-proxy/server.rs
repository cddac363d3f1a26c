//! Web servers with minimal cost, whose threads answer every request with the same bytes.

use std::io::Write as _;

use anyhow::Result;
use balancer_bench::http_server::Server;
use balancer_testkit::namespace::Namespace;

/// The number of threads of each server. With several threads, a slow request does not delay other requests.
const THREADS: usize = 2;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";

/// Starts a server on all addresses of the host `host`.
pub(crate) fn start(host: &Namespace, port: u16) -> Result<Server> {
    Server::start(host, port, THREADS, |connection| connection.write_all(ANSWER))
}
