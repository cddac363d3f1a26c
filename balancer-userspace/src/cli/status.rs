//! `balancer status`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use super::{
    Failure,
    output::{self, Table},
};
use crate::{
    api::{client::Client, model::StatusView},
    words::grouped,
};

const REDRAW: Duration = Duration::from_secs(1);
/// ANSI: cursor home, erase the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show again every second until interrupted
    #[arg(long)]
    watch: bool,
    /// Print JSON; with --watch, one line a second
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let clear = if args.watch && io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        let status = client.status().await?;
        match (args.json, args.watch) {
            (true, true) => output::print(&format!("{}\n", serde_json::to_string(&status).map_err(io::Error::from)?))?,
            (true, false) => output::print_json(&status)?,
            (false, _) => output::print(&format!("{clear}{}", render(&status)))?,
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn render(status: &StatusView) -> String {
    let mut table = Table::new(&["INTERFACE", ">INDEX", "XDP MODE", ">TX", ">REDIRECT", ">PASS", ">DROP", ">ABORTED"]);
    for interface in &status.interfaces {
        let seen = &interface.packets_seen;
        table.row([
            interface.name.clone(),
            interface.ifindex.to_string(),
            interface.xdp_mode.clone(),
            grouped(seen.tx),
            grouped(seen.redirect),
            grouped(seen.pass),
            grouped(seen.drop),
            grouped(seen.aborted),
        ]);
    }
    let mut text = format!("generation {}\n\n{}", status.generation, table.render());
    for service in &status.services {
        text.push('\n');
        text.push_str(&output::service(service));
    }
    text
}
