//! Listeners whose settings may change while they serve.

mod listening;
mod readers;
mod remote;
mod scrapes;

use std::path::Path;

use tokio::task::spawn_blocking;

pub use self::{
    readers::Readers,
    remote::{Control, Distant},
    scrapes::{Metrics, MetricsSettings, Scrapes},
};
use crate::api_server::socket::{self, SocketUsers};

/// Sets the group of a socket file. Functions of the C library, which may block, resolve the name of the group.
///
/// # Errors
/// Fails if the group does not exist, or if this process cannot change the group of the socket.
pub async fn give(socket: &Path, group: Option<&str>, whose: SocketUsers) -> anyhow::Result<()> {
    let (socket, group) = (socket.to_owned(), group.map(str::to_owned));
    spawn_blocking(move || socket::give(&socket, group.as_deref(), whose)).await?
}
