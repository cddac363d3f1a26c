//! The balancer: its services, and the drop-in in which this program keeps its own services.

use std::{cell::Cell, path::Path};

use balancer_api::{
    client::{Client, ClientError},
    model::{ServiceView, SetAdmin, SetDropIn},
    server::Server,
};
use http::StatusCode;

use crate::{changes::Change, drop_in};

/// A handle for a balancer, or for the members of a fleet, each of which can make every change.
#[derive(Debug)]
pub struct Balancer {
    clients: Vec<Client>,
    /// The index of the client that is in use.
    current: Cell<usize>,
}

impl Balancer {
    /// Makes a handle for the balancer on this machine, or for the `servers` if there are any. All servers must be
    /// members of one fleet.
    #[must_use]
    pub fn new(socket: &Path, servers: Vec<Server>) -> Self {
        let clients = match servers.is_empty() {
            true => vec![Client::new(socket)],
            false => servers.into_iter().map(Client::remote).collect(),
        };
        Self { clients, current: Cell::new(0) }
    }

    fn client(&self) -> Client {
        self.clients[self.current.get() % self.clients.len()].clone()
    }

    /// Uses the next member of the fleet from now on.
    pub fn use_next(&self) {
        self.current.set(self.current.get().wrapping_add(1));
    }

    /// Returns the text of this program's drop-in; empty if there is none.
    ///
    /// # Errors
    /// Fails if the balancer does not answer.
    pub async fn read(&self) -> Result<String, ClientError> {
        match self.client().drop_in(drop_in::NAME).await {
            Ok(drop_in) => Ok(drop_in.text),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    /// Replaces this program's drop-in; an empty text removes it. With `dry_run`, the balancer only checks the text.
    /// The function returns the balancer's answer.
    ///
    /// # Errors
    /// Fails if the balancer refuses the drop-in, or does not answer.
    pub async fn apply(&self, text: String, dry_run: bool) -> Result<String, ClientError> {
        if text.is_empty() {
            return self.client().remove_drop_in(drop_in::NAME).await.map(|changed| changed.message);
        }
        let drop_in = SetDropIn { file: drop_in::NAME.to_owned(), text, dry_run };
        self.client().set_drop_in(drop_in::NAME, &drop_in).await.map(|applied| applied.message)
    }

    /// Returns the services that the balancer has.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub async fn services(&self) -> Result<Vec<ServiceView>, ClientError> {
        self.client().services().await
    }

    /// Makes a change of a backend, and returns the balancer's answer.
    ///
    /// # Errors
    /// See [`apply`](Self::apply).
    pub async fn change(&self, change: &Change) -> Result<String, ClientError> {
        let changed = match change {
            Change::SetAdmin(name, admin) => {
                self.client().set_admin(name, &SetAdmin { admin: *admin, timeout: None }).await?
            }
            Change::Add(service, backend) => self.client().add_backend(service, backend).await?,
        };
        Ok(changed.message)
    }
}
