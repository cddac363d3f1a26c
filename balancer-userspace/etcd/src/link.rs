//! Connections to one endpoint of etcd.

use std::{io, net::IpAddr, sync::Arc, sync::Mutex, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    Settings,
    calls::Calls,
    facts::{Counted, Traffic},
    message::StatusResponse,
    tls, words,
};

/// The default port of etcd, for endpoints without a port.
const PORT: u16 = 2379;

/// The reason why the driver does not use a server that knows no leader.
pub(crate) const NO_LEADER: &str = "it knows no leader";

/// The flow control windows in bytes of a stream and of a connection.
const WINDOWS: (u32, u32) = (2 << 20, 4 << 20);

/// A connected endpoint of etcd.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The number that distinguishes this link from all other links.
    pub(crate) number: u64,
    pub(crate) endpoint: String,
    /// The connection for the watch and the lease. Large answers on the other connection do not delay the watch and the
    /// lease.
    pub(crate) watching: Calls,
    /// The connection for all other calls.
    pub(crate) working: Calls,
    /// The id of the cluster to which the endpoint belongs.
    pub(crate) cluster: u64,
    /// The local address of the connections.
    pub(crate) local: Option<IpAddr>,
}

/// Connects to an endpoint, and requests the server's status.
pub(crate) async fn connect(
    settings: &Settings,
    endpoint: &str,
    number: u64,
    traffic: &Arc<Traffic>,
) -> Result<(Link, StatusResponse), String> {
    let limit = settings.patience();
    let connecting = async {
        let ((watching, local), (working, _)) =
            tokio::try_join!(channel(settings, endpoint, traffic), channel(settings, endpoint, traffic))?;
        let working = Calls::new(working);
        let status = working.status().await.map_err(|status| first_words(endpoint, &status))?;
        if status.leader == 0 {
            return Err(NO_LEADER.to_owned());
        }
        let cluster = status.header.as_ref().map_or(0, |header| header.cluster_id);
        let link =
            Link { number, endpoint: endpoint.to_owned(), watching: Calls::new(watching), working, cluster, local };
        Ok((link, status))
    };
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(no_answer(limit)))
}

/// Opens a connection that does not reconnect: after it has ended, calls fail.
async fn channel(
    settings: &Settings,
    endpoint: &str,
    traffic: &Arc<Traffic>,
) -> Result<(Channel, Option<IpAddr>), String> {
    let uri: Uri = endpoint.parse().map_err(|error| format!("not a URL: {error}"))?;
    let host = uri.host().ok_or("a URL without a host")?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(PORT);
    let mut connection =
        Endpoint::from(uri.clone()).initial_stream_window_size(WINDOWS.0).initial_connection_window_size(WINDOWS.1);
    if uri.scheme_str() == Some("https") {
        let config = tls::config(settings, &host)?;
        connection = connection.tls_config(config).map_err(|error| words::chain(&error))?;
    }
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let local = stream.local_addr().ok().map(|local| local.ip());
    let once = Mutex::new(Some(Counted::new(stream, Arc::clone(traffic))));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection has ended")) }
    });
    let channel = connection.connect_with_connector(connector).await.map_err(|error| words::chain(&error))?;
    Ok((channel, local))
}

/// Explains why the first call on a connection failed. A server that expects TLS closes a connection without TLS and
/// sends no answer.
fn first_words(endpoint: &str, status: &Status) -> String {
    let why = words::status(status);
    if words::is_broken(status) && endpoint.starts_with("http:") {
        format!("{why}; if etcd speaks TLS, the endpoint is https://")
    } else {
        why
    }
}

/// Describes that no answer has arrived within this time.
pub(crate) fn no_answer(limit: Duration) -> String {
    format!("no answer within {} ms", limit.as_millis())
}
