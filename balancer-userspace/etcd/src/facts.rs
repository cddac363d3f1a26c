//! Facts about the engine, which monitoring shows.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The state of the engine from the point of view of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the driver is connected to a server that knows a leader.
    pub reachable: bool,
    /// The endpoint that the driver uses, or that it used last.
    pub endpoint: Option<String>,
    /// The local address of the driver's connection. Because of NAT, the server may see another address.
    pub local: Option<IpAddr>,
    /// The version of the server, such as `3.4.23`.
    pub version: String,
    /// The id of the server in its cluster.
    pub member: u64,
    /// The id of the cluster's leader; 0 if the server knows no leader.
    pub leader: u64,
    /// The size of the server's database on disk, in bytes.
    pub database_bytes: u64,
    /// The number of bytes of `database_bytes` that contain data. Defragmentation frees the other bytes.
    pub database_bytes_used: u64,
    /// The limit on the size of the database, if the server reports the limit (etcd 3.6 and newer).
    pub database_quota: Option<u64>,
    /// Errors that the server reports about itself, in the server's own words.
    pub errors: Vec<String>,
    /// The reason why the server refuses all writes, in the server's words.
    pub denial: Option<String>,
    /// Whether etcd still keeps changes from long ago, because nothing compacts the history.
    pub keeps_history: bool,
    /// The last failure of the driver; `None` while a session exists.
    pub trouble: Option<String>,
    /// The number of keys and values that the driver has not passed on since the start, because the key is not UTF-8 or
    /// the value is too long.
    pub skipped: u64,
}

/// The default limit on the size of an etcd server's database.
const DEFAULT_QUOTA: u64 = 2 << 30;
/// The percentage of the database's limit above which the driver warns.
const NEARLY_FULL: u64 = 80;

impl Facts {
    /// Returns the measures that an operator should take before the engine fails, as one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self.errors.iter().map(|error| explained(error)).collect();
        warnings.dedup();
        let quota = self.database_quota.unwrap_or(DEFAULT_QUOTA);
        let is_full = self.errors.iter().any(|error| error.contains(NO_SPACE));
        if !is_full && self.database_bytes.saturating_mul(100) >= quota.saturating_mul(NEARLY_FULL) {
            let which =
                if self.database_quota.is_some() { "the" } else { "etcd's default, as this version does not tell its" };
            warnings.push(format!(
                "etcd's database takes {} of {} MiB ({which} quota), {} MiB of it in use: compact its history and \
                 defragment it (`etcdctl defrag`), or it will take no writes",
                self.database_bytes >> 20,
                quota >> 20,
                self.database_bytes_used >> 20
            ));
        }
        if self.keeps_history {
            warnings.push(format!(
                "etcd keeps the history of its keys for more than {HISTORY} changes: start it with \
                 --auto-compaction-retention=5m, or its database grows until it is full"
            ));
        }
        warnings
    }
}

/// The number of changes in etcd's history above which the driver warns. With a retention of five minutes, etcd keeps
/// this number of changes only if there are more than 300 changes per second.
pub(crate) const HISTORY: i64 = 100_000;

const NO_SPACE: &str = "alarm:NOSPACE";

/// Returns an error that etcd reports about itself, with an explanation.
fn explained(error: &str) -> String {
    let error = error.trim();
    if error.contains(NO_SPACE) {
        "etcd's database has reached its quota (alarm NOSPACE), so that etcd takes no writes: compact its history, \
         defragment it (`etcdctl defrag`), and then `etcdctl alarm disarm`"
            .to_owned()
    } else if error.contains("alarm:CORRUPT") {
        "etcd finds its data corrupt (alarm CORRUPT), so that etcd takes no writes: replace the member whose data differ"
            .to_owned()
    } else {
        format!("etcd reports: {}", error.trim_start_matches("etcdserver: "))
    }
}

/// The numbers of bytes sent to the engine and received from the engine since the start, including TLS overhead.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// The number of bytes sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The number of bytes received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// A connection that counts the bytes sent and received.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: TcpStream,
    traffic: Arc<Traffic>,
}

impl Counted {
    pub(crate) fn new(stream: TcpStream, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }

    fn sent(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = result {
            self.traffic.sent.fetch_add(bytes as u64, Relaxed);
        }
        result
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.traffic.received.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.sent(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.sent(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
