//! Entry points for untrusted data, with one function for each parser: fuzz targets use these functions, and tests
//! replay findings with them.

use std::{io, net::SocketAddr};

use balancer_config::config::CheckKind;
use balancer_control::{io::CheckOutcome, state::SavedState};
use tokio::io::{AsyncRead, AsyncWrite};

use balancer_checks::prober;
use balancer_listeners::{api_server, call::Calls};
pub use balancer_netlink::neighbours::heard as netlink;
use balancer_state::state_file;

/// Parses the bytes of a state file.
///
/// # Errors
/// Fails with one line about the fault in the bytes.
pub fn state_file(bytes: &[u8]) -> Result<SavedState, String> {
    state_file::open_sealed(bytes).map_err(|bad| bad.to_string())
}

/// Applies the bytes of a journal to `state`, which has this checksum.
///
/// # Errors
/// Fails with one line about the fault in the bytes; the function has then applied all records before the fault.
pub fn journal(state: &mut SavedState, checksum: &str, bytes: &[u8]) -> Result<(), String> {
    state_file::replay_lines(state, checksum, bytes)
}

/// Makes a state file of version `version` with this body and the correct checksum.
#[must_use]
pub fn sealed(version: u32, body: &str) -> String {
    state_file::sealed(version, body)
}

/// Runs a check over HTTP or gRPC on `stream`, which is connected to `target`, and returns the outcome.
///
/// # Errors
/// Fails if this machine lacks the resources for the check.
pub async fn answer(
    target: SocketAddr,
    check: &CheckKind,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<CheckOutcome> {
    prober::ask_over(target, check, stream).await
}

/// Serves a connection to the control socket until the connection ends.
pub async fn control(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, calls: Calls) {
    api_server::serve_one(stream, calls).await;
}
