//! Writes the manual pages, `balancer(8)` and one for each verb, into a directory: `man-pages DIR`.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;

/// What `balancer(8)` says beyond the verbs.
const OPERATIONS: &str = include_str!("../../packaging/operations.man");

fn main() -> Result<()> {
    let directory = env::args_os().nth(1).context("give the directory to write to")?;
    let directory = Path::new(&directory);
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut command = balancer::cli::command().disable_help_subcommand(true);
    command.build();
    write(directory, &command, "balancer")
}

fn write(directory: &Path, command: &Command, name: &str) -> Result<()> {
    let mut page = Vec::new();
    let command = command.clone().display_name(name.to_owned());
    let man = Man::new(command.clone()).title(name.to_owned()).section("8");
    man.render(&mut page)?;
    if name == "balancer" {
        page.extend_from_slice(OPERATIONS.as_bytes());
    }
    let path = directory.join(format!("{name}.8"));
    fs::write(&path, page).with_context(|| path.display().to_string())?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(directory, verb, &format!("{name}-{}", verb.get_name()))?;
    }
    Ok(())
}
