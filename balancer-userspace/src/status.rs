//! The command `balancer status`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use balancer_api::{
    client::Client,
    model::{Fitness, StatusView},
};
use balancer_config::words::grouped;
use balancer_control::run_time::summary;
use ratatui::crossterm::terminal;

use super::{
    Failure, fleet,
    output::{self, Table},
    ready,
};

const REDRAW: Duration = Duration::from_secs(1);
/// The ANSI sequences to erase the screen, to move the cursor home, to erase the rest of the line, and to erase
/// everything below.
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K";
const BELOW: &str = "\x1b[J";

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
        return watch(client).await;
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

/// Updates the screen until interrupted, even while the controller is absent.
async fn watch(client: &Client) -> Result<(), Failure> {
    let mut text = render(&client.status().await?);
    let mut trouble = None;
    output::print(CLEAR)?;
    loop {
        let (columns, rows) = terminal::size()?;
        output::print(&screen(&text, trouble.as_deref(), columns.into(), rows.into()))?;
        tokio::time::sleep(REDRAW).await;
        match client.status().await {
            Ok(status) => (text, trouble) = (render(&status), None),
            Err(error) => trouble = Some(error.to_string()),
        }
    }
}

/// Returns the beginning of `text` that fits a terminal of this size, for drawing over the previous contents. The last
/// line shows `trouble`, which is therefore always visible.
fn screen(text: &str, trouble: Option<&str>, columns: usize, rows: usize) -> String {
    // The last line stays free, because the cursor is there.
    let rows = rows.saturating_sub(1);
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() + usize::from(trouble.is_some()) <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1 + usize::from(trouble.is_some())) };
    let more = format!("… {} more lines; a larger terminal shows them", lines.len() - shown);
    let all = lines[..shown].iter().copied().chain((!fits).then_some(more.as_str())).chain(trouble);
    let cut: String = all.map(|line| line.chars().take(columns).collect::<String>() + END_OF_LINE + "\n").collect();
    format!("{HOME}{cut}{BELOW}")
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

#[cfg(test)]
mod tests {
    use super::screen;

    fn lines(text: &str, trouble: Option<&str>, columns: usize, rows: usize) -> Vec<String> {
        let screen = screen(text, trouble, columns, rows);
        let lines = screen.strip_prefix("\x1b[H").and_then(|screen| screen.strip_suffix("\x1b[J")).unwrap();
        lines.lines().map(|line| line.strip_suffix("\x1b[K").unwrap().to_owned()).collect()
    }

    #[test]
    fn when_a_text_is_larger_than_the_terminal_then_it_is_cut() {
        let text = "one\ntwo and more\nthree\n";
        assert_eq!(lines(text, None, 7, 4), ["one", "two and", "three"]);
        assert_eq!(lines(text, None, 80, 3), ["one", "… 2 more lines; a larger terminal shows them"]);
        assert_eq!(lines(text, Some("gone"), 80, 5), ["one", "two and more", "three", "gone"]);
        assert_eq!(lines(text, Some("gone"), 12, 4), ["one", "… 2 more lin", "gone"]);
        for rows in 3..8 {
            assert!(lines(text, Some("gone"), 80, rows).len() < rows);
        }
    }
}
