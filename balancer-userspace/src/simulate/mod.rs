//! The command `balancer simulate`.

mod change;
mod input;
mod text;

use std::path::{Path, PathBuf};

use balancer_config::{
    config::Config,
    file::{self, ConfigErrors},
    value,
};
use balancer_simulate::{
    census::Census,
    compare,
    format::Format,
    product::Product,
    report::Log,
    servers::{Change, Servers},
};
use tokio::time::Instant;

use super::{Failure, output};

/// The name of the simulated service if there is no configuration.
const SERVICE: &str = "web";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Access logs, plain or gzip; - is standard input
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// Simulate a service of this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Simulate a service web with this number of equal backends, web1, web2, …
    #[arg(long, value_name = "N", default_value_t = 4, conflicts_with = "config", value_parser = clap::value_parser!(u16).range(1..=1000))]
    backends: u16,
    /// The service to simulate, if the configuration has several
    #[arg(long, value_name = "SVC", value_parser = value::name, requires = "config")]
    service: Option<String>,
    /// Change to the backends, such as "backend remove web/web1" or "reorder"; may be repeated [default: remove one,
    /// add one, drain one, reorder]
    #[arg(long = "change", value_name = "CHANGE")]
    changes: Vec<String>,
    /// combined (nginx, Apache), haproxy, list (of addresses) or json:FIELD [default: guessed from the first lines]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let asked = args.changes.iter().map(|text| change::parse(text)).collect::<Result<Vec<_>, Failure>>()?;
    let config = match &args.config {
        Some(path) => file::load(path)?.0,
        None => equal_backends(args.backends)?,
    };
    let name = service(args, &config, &asked)?;
    let product = Product::new(config, &name, Instant::now().into_std()).map_err(usage)?;
    let Some(service) = product.config() else { return Err(Failure::Usage(format!("there is no service {name:?}"))) };
    let changes: Vec<Change> = if asked.is_empty() {
        usual(&name, &Servers::of(&service))
    } else {
        asked.into_iter().map(|asked| asked.change).collect()
    };
    // The command checks the changes first, so that it reports errors before it reads a long log.
    for change in &changes {
        product.change(change).map_err(usage)?;
    }
    let mut census = Census::default();
    let mut log = Log::default();
    for opened in input::open(&args.logs, args.format.as_ref())? {
        let tally = opened.count(&mut census)?;
        log.lines += tally.lines;
        log.unreadable += tally.unreadable;
    }
    if census.requests == 0 {
        return Err(Failure::Other(anyhow::anyhow!("there is no client in the log: it has no lines")));
    }
    let report = compare::report((&census, log), (&product, &service), &changes).map_err(usage)?;
    if args.json {
        return Ok(output::print_json(&report)?);
    }
    Ok(output::print(&text::text(&report))?)
}

fn usage(why: impl ToString) -> Failure {
    Failure::Usage(why.to_string())
}

/// Returns a configuration that contains only the service [`SERVICE`] with `count` equal backends.
fn equal_backends(count: u16) -> Result<Config, ConfigErrors> {
    let mut text = format!(
        "interfaces = [\"eth0\"]\n[[service]]\nname = \"{SERVICE}\"\naddress = \"198.51.100.10:80\"\nforwarding = \"nat\"\n"
    );
    for number in 1..=count {
        let [high, low] = number.to_be_bytes();
        text += &format!("[[service.backend]]\nname = \"{SERVICE}{number}\"\naddress = \"10.0.{high}.{low}:80\"\n");
    }
    file::parse(Path::new("--backends"), text.as_bytes()).map(|(config, _)| config)
}

/// Returns the name of the service to simulate: the requested service, otherwise the service that the changes name,
/// otherwise the only service.
fn service(args: &Args, config: &Config, asked: &[change::Asked]) -> Result<String, Failure> {
    let mut named: Vec<&str> =
        asked.iter().filter_map(|asked| asked.service.as_deref()).chain(args.service.as_deref()).collect();
    named.sort_unstable();
    named.dedup();
    let all: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    match (named.as_slice(), all.as_slice()) {
        ([name], _) | ([], [name]) => Ok((*name).to_owned()),
        ([], []) => Err(Failure::Usage("the configuration has no service".to_owned())),
        ([], all) => Err(Failure::Usage(format!(
            "the configuration has several services: choose one with --service, of {}",
            all.join(", ")
        ))),
        (named, _) => Err(Failure::Usage(format!(
            "one service is simulated at a time, and {} are named; the log is that of one of them",
            named.join(" and ")
        ))),
    }
}

/// Returns the changes that are simulated by default.
fn usual(service: &str, servers: &Servers) -> Vec<Change> {
    let mut changes = Vec::new();
    // The change removes the second backend, because the loss of the first or the last backend would change the
    // servers' lists less.
    let primaries = || servers.0.iter().filter(|server| !server.backup);
    let name = primaries().nth(1).or_else(|| primaries().next()).map(|server| server.name.clone());
    changes.extend(name.clone().map(|name| Change::Remove { name, force: true }));
    let is_free = |name: &String| servers.0.iter().all(|server| server.name != *name);
    let new = (servers.0.len() + 1..).map(|number| format!("{service}{number}")).find(is_free);
    changes.extend(new.map(|name| Change::Add { name, weight: None, backup: false }));
    let drain = |name| Change::Admin { name, admin: balancer_config::states::Admin::Drain, timeout: None };
    changes.extend(name.map(drain));
    changes.push(Change::Reorder);
    changes
}
