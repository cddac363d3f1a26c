//! The command `balancer help TOPIC`, which shows a chapter of the book. The crate clap writes the help texts of
//! commands.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal as _},
};

use balancer_config::names::nearest;
use clap::{CommandFactory as _, error::ErrorKind};
use terminal_size::{Width, terminal_size};

use super::{Cli, Failure, output};
use crate::book::{self, CHAPTERS, Chapter};

/// The width of the text in columns, if the output is not a terminal.
const WIDTH: u16 = 80;

/// Returns the text that follows the list of commands.
pub(super) fn topics() -> String {
    let width = CHAPTERS.iter().map(|chapter| chapter.name.len()).max().unwrap_or_default();
    let lines = CHAPTERS.iter().map(|Chapter { name, about, .. }| format!("\n  {name:width$}  {about}"));
    format!("Topics (balancer help TOPIC):{}", lines.collect::<String>())
}

/// Returns the text that follows the help of a command.
pub(super) fn see(topic: &str) -> String {
    format!("See also: balancer help {topic}")
}

/// Answers `help TOPIC`, which clap reports as an error about an unknown command. For any other error, the function
/// prints clap's message.
pub(super) fn or(error: &clap::Error, arguments: &[OsString]) -> Result<(), Failure> {
    match arguments {
        [_, help, topic] if error.kind() == ErrorKind::InvalidSubcommand && help == "help" => show(topic),
        _ => error.exit(),
    }
}

fn show(name: &OsStr) -> Result<(), Failure> {
    let name = name.to_string_lossy();
    if let Some(chapter) = book::chapter(&name) {
        return print(chapter);
    }
    let command = Cli::command();
    let commands = command.get_subcommands().map(clap::Command::get_name);
    let known: Vec<_> = commands.chain(CHAPTERS.iter().map(|chapter| chapter.name)).collect();
    let meant =
        nearest(&name, known.iter().copied()).map(|word| format!(": did you mean {word:?}?")).unwrap_or_default();
    Err(Failure::Usage(format!("no command or topic {name:?}{meant}\n\n{}", topics())))
}

fn print(chapter: &Chapter) -> Result<(), Failure> {
    let document = chapter.document(|other| format!("balancer help {}", other.name));
    let styled = io::stdout().is_terminal();
    let width = if styled { terminal_size().map_or(WIDTH, |(Width(columns), _)| columns) } else { WIDTH };
    Ok(output::print(&book::terminal::render(&document, usize::from(width), styled))?)
}
