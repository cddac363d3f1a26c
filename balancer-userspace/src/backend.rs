//! The commands `balancer backend …`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use balancer_api::{
    client::Client,
    model::{AddBackend, PlanRequest, ServiceView, SetAdmin, SetLimits},
};
use balancer_config::{names::BackendName, states::Admin, value};
use clap::Subcommand;
use tokio::time::Instant;

use super::{
    Failure, absence, output, print_changed,
    wait::{self, Goal, Reached, Undrained},
};

/// The time that the command waits beyond the longest possible duration of the drain.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the backends of a service, or of all
    List {
        /// The service's name
        #[arg(value_name = "SVC", value_parser = value::name)]
        service: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Change(BackendChange),
}

/// Changes of a backend, which the command makes or only plans.
#[derive(Debug, Subcommand)]
pub(super) enum BackendChange {
    /// Add a backend
    Add {
        #[command(flatten)]
        backend: Subject,
        /// The backend's address; default port: the listener's
        #[arg(value_name = "ADDR[:PORT]", value_parser = address)]
        address: String,
        /// The backend's IPv6 address, if the service has listeners of both families
        #[arg(long, value_name = "ADDR", value_parser = value::ipv6)]
        address6: Option<IpAddr>,
        /// Share of new clients, 0 to 65535 [default: 100]
        #[arg(long, value_name = "N")]
        weight: Option<u16>,
        /// Use the backend only when no other backend is eligible
        #[arg(long)]
        backup: bool,
        #[command(flatten)]
        most: Most,
    },
    /// Remove a backend, draining it first
    Remove {
        #[command(flatten)]
        backend: Subject,
        /// Do not drain the backend first
        #[arg(long)]
        force: bool,
    },
    /// Give a backend no new clients
    Drain {
        #[command(flatten)]
        backend: Subject,
        /// How long the backend keeps its known clients, such as 5m [default: the service's drain timeout]
        #[arg(long, value_name = "D", value_parser = value::duration)]
        timeout: Option<Duration>,
        /// Wait until the backend is drained; Ctrl-C ends the wait, not the drain
        #[arg(long)]
        wait: bool,
        /// With --wait: give up after this long, with exit code 4 [default: 10s after the drain's deadline]
        #[arg(long, value_name = "D", value_parser = value::duration, requires = "wait")]
        wait_timeout: Option<Duration>,
    },
    /// Put a backend into use
    Ready(Subject),
    /// Take a backend out of use at once, and stop its health checks
    Maint(Subject),
    /// Set a backend's share of new clients
    Weight {
        #[command(flatten)]
        backend: Subject,
        /// The weight, 0 to 65535; with 0, the backend takes no new clients
        #[arg(value_name = "N")]
        weight: u16,
    },
    /// Limit the clients or connections of a backend; without an option, remove the limits
    Limit {
        #[command(flatten)]
        backend: Subject,
        #[command(flatten)]
        most: Most,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Most {
    /// Number of known clients at which the backend takes no new clients
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_clients: Option<u32>,
    /// Number of connections at which the backend takes no new connections, with forwarding = "snat"
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
}

impl Most {
    const fn limits(&self) -> SetLimits {
        SetLimits { max_clients: self.max_clients, max_connections: self.max_connections }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Subject {
    /// Service and backend, such as web/web1
    #[arg(value_name = "SVC/NAME", value_parser = value::backend_name)]
    name: BackendName,
}

/// Checks that the text is an address in the notation of the API.
fn address(text: &str) -> Result<String, String> {
    value::address(text).map(|address| match address {
        (ip, Some(port)) => SocketAddr::new(ip, port).to_string(),
        (ip, None) => ip.to_string(),
    })
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { service, json } => list(client, service.as_deref(), json).await,
        Verb::Change(change) => make(client, change).await,
    }
}

async fn make(client: &Client, change: BackendChange) -> Result<(), Failure> {
    match change {
        BackendChange::Add { backend: Subject { name }, address, address6, weight, backup, most } => {
            let address6 = address6.map(|address| address.to_string());
            let Most { max_clients, max_connections } = most;
            let name_there = name.backend;
            let backend =
                AddBackend { name: name_there, address, address6, weight, backup, max_clients, max_connections };
            print_changed(&client.add_backend(&name.service, &backend).await?)
        }
        BackendChange::Remove { backend, force } => print_changed(&client.remove_backend(&backend.name, force).await?),
        BackendChange::Drain { backend: Subject { name }, timeout, wait, wait_timeout } => {
            let changed = print_changed(&client.set_admin(&name, &drain(timeout)).await?);
            if wait {
                drained(client, &name, wait_timeout).await?;
            }
            changed
        }
        BackendChange::Ready(backend) => set(client, &backend.name, Admin::Ready).await,
        BackendChange::Maint(backend) => set(client, &backend.name, Admin::Maint).await,
        BackendChange::Weight { backend, weight } => print_changed(&client.set_weight(&backend.name, weight).await?),
        BackendChange::Limit { backend, most } => {
            print_changed(&client.set_limits(&backend.name, &most.limits()).await?)
        }
    }
}

impl BackendChange {
    pub(super) fn plan(self) -> PlanRequest {
        let admin = |backend: Subject, admin| PlanRequest::Admin {
            service: backend.name.service,
            name: backend.name.backend,
            admin,
        };
        match self {
            Self::Add { backend: Subject { name }, address, address6, weight, backup, most } => PlanRequest::Add {
                service: name.service,
                backend: AddBackend {
                    name: name.backend,
                    address,
                    address6: address6.map(|address| address.to_string()),
                    weight,
                    backup,
                    max_clients: most.max_clients,
                    max_connections: most.max_connections,
                },
            },
            Self::Remove { backend: Subject { name }, force } => {
                PlanRequest::Remove { service: name.service, name: name.backend, force }
            }
            Self::Drain { backend, timeout, .. } => admin(backend, drain(timeout)),
            Self::Ready(backend) => admin(backend, SetAdmin { admin: Admin::Ready, timeout: None }),
            Self::Maint(backend) => admin(backend, SetAdmin { admin: Admin::Maint, timeout: None }),
            Self::Weight { backend: Subject { name }, weight } => {
                PlanRequest::Weight { service: name.service, name: name.backend, weight }
            }
            Self::Limit { backend: Subject { name }, most } => {
                PlanRequest::Limit { service: name.service, name: name.backend, limits: most.limits() }
            }
        }
    }
}

fn drain(timeout: Option<Duration>) -> SetAdmin {
    SetAdmin { admin: Admin::Drain, timeout: timeout.map(|timeout| humantime::format_duration(timeout).to_string()) }
}

async fn set(client: &Client, name: &BackendName, admin: Admin) -> Result<(), Failure> {
    print_changed(&client.set_admin(name, &SetAdmin { admin, timeout: None }).await?)
}

async fn list(client: &Client, service: Option<&str>, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::print_json(&client.backends(service).await?)?);
    }
    let services = match service {
        Some(service) => vec![client.service(service).await?],
        None => client.services().await?,
    };
    let counts_active = services.iter().any(ServiceView::counts_active);
    let mut table = output::backend_table("BACKEND", counts_active);
    for service in &services {
        for backend in &service.backends {
            let name = format!("{}/{}", service.name, backend.name);
            output::add_backend(&mut table, name, backend, service.table_size, counts_active);
        }
    }
    Ok(output::print(&table.render())?)
}

/// Waits until the backend has no clients. The function waits at most `limit`, or, without a limit, slightly longer
/// than the drain may take.
async fn drained(client: &Client, name: &BackendName, limit: Option<Duration>) -> Result<(), Failure> {
    let limit = match limit {
        Some(limit) => limit,
        None => {
            let left = wait::present(client, name, Some(absence::RESTART))
                .await?
                .and_then(|backend| backend.drain_seconds_left);
            Duration::from_secs(left.unwrap_or(0)) + GRACE
        }
    };
    match wait::reach(client, name, Goal::Drained, Some(Instant::now() + limit), Undrained::Refuse).await? {
        Reached::Yes | Reached::Removed => Ok(output::print(&format!("backend {name} drained\n"))?),
        Reached::NotYet(shown) => {
            let limit = humantime::format_duration(limit);
            Err(Failure::WaitTimedOut(format!(
                "backend {name} is not drained after {limit}; it is {shown}, and goes on draining"
            )))
        }
    }
}
