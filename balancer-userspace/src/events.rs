//! The command `balancer events`.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use balancer_api::{
    client::Client,
    events::{EventView, EventsView, MAX_WAIT},
};
use balancer_config::value;

use super::{Failure, absence, fleet, output};

/// The number of past events that `--follow` shows first.
const TAIL: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Continue with new events until interrupted, even across restarts of the controller
    #[arg(long, short)]
    follow: bool,
    /// Only events of this maximum age, such as 10m [default: all stored events; with --follow, the last 10]
    #[arg(long, value_name = "D", value_parser = value::duration)]
    since: Option<Duration>,
    /// Print JSON: a list; with --follow, one object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let begin = match args.since {
        Some(age) => format!("since={}ms", age.as_millis()),
        None if args.follow => format!("last={TAIL}"),
        None => "since=0".to_owned(),
    };
    let mut found = client.events(&begin, Duration::ZERO).await?;
    if !args.json
        && let Some(fleet) = fleet::found(client).await?
    {
        output::print(&format!("{}\n", fleet::line(&fleet)))?;
    }
    if !args.follow {
        return all(client, found, args.json).await;
    }
    loop {
        show(&found, args.json)?;
        let reached = format!("since={}", found.next);
        found = absence::answered(None, async || client.events(&reached, MAX_WAIT).await).await?;
    }
}

/// Shows all stored events, up to the present.
async fn all(client: &Client, mut found: EventsView, json: bool) -> Result<(), Failure> {
    let mut events = Vec::new();
    loop {
        let more = !found.events.is_empty();
        events.append(&mut found.events);
        if !more {
            break;
        }
        found = client.events(&format!("since={}", found.next), Duration::ZERO).await?;
    }
    if json {
        return Ok(output::print_json(&events)?);
    }
    Ok(output::print(&events.iter().map(line).collect::<String>())?)
}

fn show(found: &EventsView, json: bool) -> Result<(), Failure> {
    if found.missed > 0 {
        writeln!(io::stderr(), "balancer: {} events are no longer kept", found.missed)?;
    }
    for event in &found.events {
        if json {
            output::print(&format!("{}\n", serde_json::to_string(event).map_err(io::Error::from)?))?;
        } else {
            output::print(&line(event))?;
        }
    }
    Ok(())
}

fn line(event: &EventView) -> String {
    let uid = event.uid.map(|uid| format!(" (by uid {uid})")).unwrap_or_default();
    format!("{} {:<4} {}{uid}\n", event.time, event.level.to_uppercase(), event.message)
}
