//! The command `balancer check`.

mod notes;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::PathBuf,
};

use balancer_config::{file, words::counted};

use super::{Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    file: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (config, warnings) = file::load(&args.file)?;
    let denied = file::deny::check(&config.services)?;
    let targets = file::discover::check(&config)?;
    for mut warning in warnings {
        warning.text.insert_str(0, "warning: ");
        writeln!(io::stderr(), "{warning}")?;
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
