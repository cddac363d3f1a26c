//! The command `balancer check`.

mod notes;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
};

use balancer_common::client::HashKey;
use balancer_config::{file, words::counted};
use balancer_netlink::reply_interfaces::unnamed;

use super::{Failure, output};

/// The hash key that examples have shown.
const PUBLISHED_KEY: HashKey = HashKey::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    file: PathBuf,
}

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let (config, warnings) = file::load(&args.file)?;
    let denied = file::deny::check(&config.services)?;
    let targets = file::discover::check(&config)?;
    for mut warning in warnings {
        warning.text.insert_str(0, "warning: ");
        writeln!(io::stderr(), "{warning}")?;
    }
    if config.hash_key == Some(PUBLISHED_KEY) {
        writeln!(
            io::stderr(),
            "{}: warning: the hash key is that of an example: whoever reads it can aim all clients of an attack at one \
             backend; make one with: echo hex:$(openssl rand -hex 16)",
            args.file.display()
        )?;
    }
    // If the kernel does not answer, there is nothing to warn of.
    for (interface, backends) in unnamed(&config).await.unwrap_or_default() {
        writeln!(io::stderr(), "{}: {}", args.file.display(), warning(&config.interfaces, &interface, &backends))?;
    }
    let backends = config.services.iter().map(|service| service.backends.len()).sum();
    let (services, backends) = (counted(config.services.len(), "service"), counted(backends, "backend"));
    let denied = if denied == 0 { String::new() } else { format!(", {}", counted(denied, "denied prefix")) };
    let targets = if targets == 0 { String::new() } else { format!(", {}", counted(targets, "target")) };
    let mut said = format!("{}: ok: {services}, {backends}{targets}{denied}\n", args.file.display());
    for note in notes::of(&config, &notes::here()).into_iter().chain(notes::on_files(&config)) {
        let _ = writeln!(said, "note: {note}");
    }
    Ok(output::print(&said)?)
}

/// The warning that replies of backends would arrive by an interface to which the program will not be attached.
fn warning(named: &[String], interface: &str, backends: &[String]) -> String {
    const NAMED: usize = 5;
    let shown = backends.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = backends.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let all: Vec<&str> = named.iter().map(String::as_str).chain([interface]).collect();
    format!(
        "warning: on this machine, {interface} leads to {shown}{more}, and `interfaces` does not name it: with nat and \
         snat, the program must be where replies come in: interfaces = {all:?}"
    )
}
