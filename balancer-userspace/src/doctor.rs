//! The command `balancer doctor`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use balancer_api::{client::Client, model::HealthView};
use balancer_config::words::counted;
use balancer_doctor::{
    cure,
    finding::{Finding, Kind, Report, Tried},
    judge::judge,
    look::{Clients, look},
};
use tokio::time::{Instant, sleep};

use super::{Failure, output};

/// The longest time to wait for checks after a repair.
const CHECKS: Duration = Duration::from_secs(20);
const BETWEEN: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Examine only this service [default: all]
    #[arg(value_name = "SVC")]
    service: Option<String>,
    /// Also try each backend before clients come: send it a request to connect from a client's address, and say by which
    /// interface the answer comes. [default: an address of another network that no client has]
    #[arg(long = "try", value_name = "CLIENT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "", value_parser = clients)]
    clients: Option<Clients>,
    /// Print JSON, with all subjects that were examined and all that could not be examined
    #[arg(long)]
    json: bool,
    /// Carry out the cures on this machine that can be undone; prints each step first
    #[arg(long)]
    fix: bool,
}

fn clients(text: &str) -> Result<Clients, String> {
    if text.is_empty() {
        return Ok(Clients::Chosen);
    }
    let address = text.parse().map_err(|_| format!("{text:?} is no IP address; give the address of a client"))?;
    Ok(Clients::Named(address))
}

/// Runs the doctor, with these exit codes: 0 if all is well; 1 if there are findings, among them a controller that does
/// not answer; 3 if there is no controller, even if there are findings.
pub(super) async fn run(client: &Client, args: &Args) -> Result<(), Failure> {
    let Some(socket) = client.socket() else {
        let text = "doctor looks at the machine that it runs on: run it there, without --server";
        return Err(Failure::Usage(text.to_owned()));
    };
    let mut report = examine(client, socket, args).await?;
    if args.fix && mend(socket, &report)? {
        checked_since(client, Instant::now()).await;
        report = examine(client, socket, args).await?;
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&render(&report))?;
    }
    let hangs = report.findings.iter().any(|finding| finding.kind == Kind::Controller);
    if !report.controller && !hangs {
        // Without a controller, this call fails with the reason why it is not reachable.
        client.status().await?;
    }
    if report.findings.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

async fn examine(client: &Client, socket: &Path, args: &Args) -> Result<Report, Failure> {
    Ok(judge(&look(client, socket, args.service.as_deref(), args.clients).await?))
}

/// Waits until no verdict of a health check is based on results from before `repair`, at most [`CHECKS`]. Without a
/// controller, no health checks run.
async fn checked_since(client: &Client, repair: Instant) {
    while repair.elapsed() < CHECKS {
        let since = repair.elapsed().as_secs_f64();
        let is_old = |view: &HealthView| {
            let passes = view.last_result.as_deref() == Some("passed");
            view.verdict == "down" && (passes || view.last_seconds_ago.is_none_or(|ago| ago > since))
        };
        if !client.health(None).await.is_ok_and(|checks| checks.iter().any(is_old)) {
            return;
        }
        sleep(BETWEEN).await;
    }
}

/// Carries out the cures that can be undone. Returns whether there were any.
fn mend(socket: &Path, report: &Report) -> Result<bool, Failure> {
    let steps = cure::steps(&report.findings);
    let mut err = io::stderr();
    if steps.is_empty() {
        if !report.findings.is_empty() {
            writeln!(err, "--fix has nothing to do: no cure is both on this machine and one that can be taken back")?;
        }
        return Ok(false);
    }
    writeln!(err, "--fix runs, on this machine:")?;
    for step in &steps {
        writeln!(err, "  {}    (taken back by: {})", step.run.join(" "), step.undo)?;
    }
    for step in &steps {
        if let Err(error) = cure::run(step, socket) {
            writeln!(err, "balancer: {error}")?;
        }
    }
    writeln!(err)?;
    Ok(true)
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for (number, finding) in report.findings.iter().enumerate() {
        paragraph(&mut text, number + 1, finding);
    }
    let looked = counted(report.looked_at.len(), "thing");
    let without = if report.controller { "" } else { ", without a controller" };
    // Writing to a string cannot fail.
    let _ = match report.findings.len() {
        0 => writeln!(text, "no findings: looked at {looked}{without}"),
        some => writeln!(text, "{}: looked at {looked}{without}", counted(some, "finding")),
    };
    for of in &report.tried {
        let _ = writeln!(text, "{}", tried(of));
    }
    for unseen in &report.not_looked_at {
        let _ = writeln!(text, "not looked at: {} ({})", unseen.what, unseen.why);
    }
    if report.findings.iter().any(|finding| !finding.cure.fix.is_empty()) {
        text.push_str("`balancer doctor --fix` carries out what is marked with *\n");
    }
    text
}

fn tried(Tried { service, backend, source, to, as_client, answered_by }: &Tried) -> String {
    let role = if *as_client { "the client " } else { "" };
    let answer = match answered_by {
        Some(interface) => format!("the answer came by {interface}"),
        None => "no answer came".to_owned(),
    };
    format!("tried {service}/{backend} at {to} from {role}{source}: {answer}")
}

fn paragraph(text: &mut String, number: usize, finding: &Finding) {
    let Finding { what, seen, cure, .. } = finding;
    let mark = if cure.fix.is_empty() { "" } else { " *" };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{number}. {what}\n   seen: {seen}\n   mend, on {}:{mark}", cure.on);
    for command in &cure.commands {
        let _ = writeln!(text, "     {command}");
    }
    text.push('\n');
}
