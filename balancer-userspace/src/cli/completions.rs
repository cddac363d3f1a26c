//! `balancer completions`.

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{generate, shells};

use super::{Cli, Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    match args.shell {
        Shell::Bash => generate(shells::Bash, &mut command, "balancer", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "balancer", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "balancer", &mut script),
    }
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}
