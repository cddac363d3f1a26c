//! The command `balancer completions`.

use clap::{Command, CommandFactory as _, ValueEnum};
use clap_complete::{generate, shells};

use super::{Cli, Failure, output};
use crate::book::CHAPTERS;

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
    let mut command = with_topics(Cli::command());
    let mut script = Vec::new();
    match args.shell {
        Shell::Bash => generate(shells::Bash, &mut command, "balancer", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "balancer", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "balancer", &mut script),
    }
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}

/// Returns the command line, with the topics as possible arguments of `help`.
fn with_topics(mut command: Command) -> Command {
    // The command `help` exists only after `build`.
    command.build();
    let topics = CHAPTERS.iter().map(|chapter| {
        let name = format!("balancer help {}", chapter.name);
        Command::new(chapter.name).about(chapter.about).bin_name(name).disable_help_flag(true)
    });
    command.mut_subcommand("help", |help| help.subcommands(topics))
}
