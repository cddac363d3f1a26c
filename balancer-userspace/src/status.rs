//! The command `balancer status`.

use std::io::{self, IsTerminal as _};

use balancer_api::{
    client::Client,
    model::{Fitness, StatusView},
};
use balancer_config::words::grouped;
use balancer_control::run_time::summary;

use super::{
    Failure, fleet,
    live::{self, REDRAW},
    output::{self, Table},
    ready,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show again every second until interrupted
    #[arg(long)]
    watch: bool,
    /// Print JSON; with --watch, one line per second
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    if args.watch && !args.json && io::stdout().is_terminal() {
        return live::show(async || Ok(render(&client.status().await?))).await;
    }
    loop {
        let status = client.status().await?;
        match (args.json, args.watch) {
            (true, true) => output::print(&format!("{}\n", serde_json::to_string(&status).map_err(io::Error::from)?))?,
            (true, false) => output::print_json(&status)?,
            (false, _) => output::print(&render(&status))?,
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn render(status: &StatusView) -> String {
    let counts = [">TX", ">REDIRECT", ">HANDED", ">PASS", ">DROP", ">ABORTED"];
    // The column is optional, because only few machines are backends of their own balancer.
    let local: &[&str] = if status.interfaces.iter().any(|one| one.packets_seen.local > 0) { &[">LOCAL"] } else { &[] };
    let mut table = Table::new(&[["INTERFACE", ">INDEX", "XDP MODE"].as_slice(), &counts, local].concat());
    for interface in &status.interfaces {
        let seen = &interface.packets_seen;
        let named = [interface.name.clone(), interface.ifindex.to_string(), interface.xdp_mode.clone()];
        let counted = [seen.tx, seen.redirect, seen.handed, seen.pass, seen.drop, seen.aborted];
        let counted = counted.into_iter().chain(local.iter().map(|_| seen.local)).map(grouped);
        table.cells(named.into_iter().chain(counted));
    }
    let mut text = format!("generation {}\n", status.generation);
    if status.ready.state != Fitness::Ready {
        text.push_str(&format!("{}\n", ready::line(&status.ready)));
    }
    if status.withdrawn {
        text.push_str(
            "withdrawn until `balancer announce`: no VIPs of `assign_vip`, and `balancer ready --announced` fails\n",
        );
    }
    if let Some(changed) = summary(&status.changed_at_run_time) {
        text.push_str(&format!("changed at run time: {changed}\n"));
    }
    text.push_str(&format!("\n{}", table.render()));
    if !status.vips.is_empty() {
        let vips: Vec<String> = status.vips.iter().map(|vip| format!("{} ({})", vip.address, vip.interface)).collect();
        text.push_str(&format!("VIPs on this machine: {}\n", vips.join(", ")));
    }
    if let Some(of) = &status.fleet {
        text.push_str(&format!("{}\n", fleet::line(of)));
    }
    for (interface, &frames) in &status.redirect_errors {
        let frames = grouped(frames);
        text.push_str(&format!("{frames} frames were redirected to {interface}, which did not take them\n"));
    }
    for service in &status.services {
        text.push('\n');
        text.push_str(&output::service(service));
    }
    text
}
