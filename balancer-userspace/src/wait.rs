//! The command `balancer wait`, and the waiting of `backend drain --wait`.

use std::time::Duration;

use anyhow::anyhow;
use balancer_api::{
    client::{Client, ClientError},
    model::BackendView,
};
use balancer_config::{
    names::BackendName,
    states::{Admin, BackendState},
    value,
};
use clap::ValueEnum;
use hyper::StatusCode;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Failure, absence, output};

/// The interval at which the command queries the state of the backend.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Service and backend, such as web/web1
    #[arg(value_name = "SVC/NAME", value_parser = value::backend_name)]
    name: BackendName,
    /// The state to wait for
    #[arg(value_enum)]
    state: Goal,
    /// Give up after this long, with exit code 4 [default: never, but with exit code 3 when the controller has been away
    /// for a minute]
    #[arg(long, value_name = "D", value_parser = value::duration)]
    timeout: Option<Duration>,
}

/// A state of a backend for which the command can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Goal {
    /// The backend, which may have no checks, takes clients
    Up,
    /// The operator has drained the backend, and it has no clients left; also if the backend was then removed
    Drained,
    /// The backend has failed
    Down,
    /// The backend is in maintenance
    Maint,
}

impl Goal {
    const fn word(self) -> &'static str {
        match self {
            Self::Up => BackendState::Up,
            Self::Drained => BackendState::Drained,
            Self::Down => BackendState::Down,
            Self::Maint => BackendState::Maint,
        }
        .word()
    }
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let Args { name, state, timeout } = args;
    // If the backend does not exist at the start, the user has made a mistake. If the backend disappears later, it was
    // removed.
    find(client, name).await?;
    let deadline = timeout.map(|limit| Instant::now() + limit);
    // With a time limit, the command waits, because an operator may still begin the drain. Without a time limit, the
    // command refuses, because the wait might never end.
    let unasked = if timeout.is_some() { Undrained::Wait } else { Undrained::Refuse };
    match reach(client, name, *state, deadline, unasked).await? {
        Reached::Yes => Ok(output::print(&format!("backend {name} {}\n", state.word()))?),
        Reached::Removed if *state == Goal::Drained => Ok(output::print(&format!("backend {name} removed\n"))?),
        Reached::Removed => Err(anyhow!("backend {name} was removed while it was waited for").into()),
        Reached::NotYet(shown) => {
            let limit = humantime::format_duration(timeout.unwrap_or_default());
            Err(Failure::WaitTimedOut(format!("backend {name} is not {} after {limit}; it is {shown}", state.word())))
        }
    }
}

/// The behaviour if no operator has begun the drain for which the command waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Undrained {
    Wait,
    Refuse,
}

/// The result of waiting for a state.
pub(super) enum Reached {
    Yes,
    /// The backend no longer exists.
    Removed,
    /// The time limit has passed. The text contains the state of the backend.
    NotYet(String),
}

/// Waits until the backend is in the state `wanted`, at most until `deadline`; the controller may restart during the
/// wait.
pub(super) async fn reach(
    client: &Client,
    name: &BackendName,
    wanted: Goal,
    deadline: Option<Instant>,
    undrained: Undrained,
) -> Result<Reached, Failure> {
    let absence = if deadline.is_some() { None } else { Some(absence::RESTART) };
    let mut shown = "not known yet".to_owned();
    let wait = async {
        loop {
            let Some(backend) = present(client, name, absence).await? else { return Ok(Reached::Removed) };
            if backend.state == wanted.word() {
                return Ok(Reached::Yes);
            }
            shown = describe(&backend);
            if wanted == Goal::Drained && backend.admin == Admin::Ready.word() {
                let cure = format!("drain it with `balancer backend drain {name}`");
                if undrained == Undrained::Refuse {
                    return Err(anyhow!("backend {name} is in use (admin state ready): {cure}").into());
                }
                shown += &format!(": {cure}");
            }
            sleep(POLL).await;
        }
    };
    match deadline {
        None => wait.await,
        Some(deadline) => match timeout_at(deadline, wait).await {
            Ok(reached) => reached,
            Err(_) => Ok(Reached::NotYet(shown)),
        },
    }
}

/// Formats the state of a backend as `draining, 214 clients left` or `down (connect: refused)`.
fn describe(backend: &BackendView) -> String {
    let mut text = backend.state.clone();
    if !backend.reason.is_empty() {
        text += &format!(" ({})", backend.reason);
    }
    if backend.drain_seconds_left.is_some() {
        text += &format!(", {} left", balancer_config::words::counted(backend.known_clients as usize, "known client"));
    }
    text
}

async fn find(client: &Client, name: &BackendName) -> Result<(), Failure> {
    let service = client.service(&name.service).await?;
    if service.backends.iter().any(|backend| backend.name == name.backend) {
        return Ok(());
    }
    let names: Vec<&str> = service.backends.iter().map(|backend| backend.name.as_str()).collect();
    Err(anyhow!("there is no backend {name}; {}", value::hint(&name.backend, &names, "backends")).into())
}

/// Returns the view of a backend, if the backend exists. The function waits for an absent controller, at most for
/// `absence` if the caller sets this limit.
pub(super) async fn present(
    client: &Client,
    name: &BackendName,
    absence: Option<Duration>,
) -> Result<Option<BackendView>, Failure> {
    match absence::answered(absence, async || client.service(&name.service).await).await {
        Ok(service) => Ok(service.backends.into_iter().find(|backend| backend.name == name.backend)),
        Err(Failure::Client(ClientError::Refused { status: StatusCode::NOT_FOUND, .. })) => Ok(None),
        Err(error) => Err(error),
    }
}
