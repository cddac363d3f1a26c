//! Writes the manual pages to a directory: `balancer(8)`, and one page for each command and for each chapter of the
//! book. Usage: `man-pages DIR`.

mod roff;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use balancer::book::{
    CHAPTERS, Chapter, chapter,
    document::{Block, plain},
};
use clap::Command;
use clap_mangen::Man;

/// The section of the command-line chapter that `balancer(8)` contains, which starts at this heading.
const MAIN_PAGE: (&str, &str) = ("commands", "Exit codes, errors and the log");

fn main() -> Result<()> {
    let directory = PathBuf::from(env::args_os().nth(1).context("give the directory to write to")?);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let mut command = balancer::command().disable_help_subcommand(true).after_help(None::<&str>);
    command.build();
    verb(&directory, &command, "balancer")?;
    for chapter in CHAPTERS {
        let file = format!("balancer-{}.{}", chapter.name, chapter.section);
        write(&directory, &file, topic(chapter).as_bytes())?;
    }
    Ok(())
}

fn verb(directory: &Path, command: &Command, name: &str) -> Result<()> {
    let mut page = Vec::new();
    let command = command.clone().display_name(name.to_owned());
    let man = Man::new(command.clone()).title(name.to_owned()).section("8");
    man.render(&mut page)?;
    if name == "balancer" {
        // The tables need a preprocessor, and only the first line of a page can request one.
        page = [roff::TABLES.as_bytes(), &page, main_page()?.as_bytes()].concat();
    }
    write(directory, &format!("{name}.8"), &page)?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        verb(directory, command, &format!("{name}-{}", command.get_name()))?;
    }
    Ok(())
}

/// Makes the text of `balancer(8)` that follows the commands.
fn main_page() -> Result<String> {
    let (name, heading) = MAIN_PAGE;
    let document = chapter(name).context("no such chapter")?.document(page);
    let is_start = |block: &Block| matches!(block, Block::Heading(2, line) if plain(line) == heading);
    let start = document.iter().position(is_start).with_context(|| format!("no heading {heading:?} in {name}.md"))?;
    Ok(roff::body(&document[start..]) + &see_also(""))
}

fn topic(chapter: &Chapter) -> String {
    let Chapter { name, section, about, .. } = chapter;
    let document = chapter.document(page);
    let body = document.iter().position(|block| !matches!(block, Block::Heading(1, _))).unwrap_or_default();
    let title = format!("balancer-{name}");
    roff::title(&title, *section, about) + &roff::body(&document[body..]) + &see_also(name)
}

/// Formats a reference from one manual page to another.
fn page(chapter: &Chapter) -> String {
    format!("balancer-{}({})", chapter.name, chapter.section)
}

fn see_also(name: &str) -> String {
    let others = CHAPTERS.iter().filter(|chapter| chapter.name != name).map(page);
    roff::section("See also", &[String::from("balancer(8)")].into_iter().chain(others).collect::<Vec<_>>().join(", "))
}

fn write(directory: &Path, file: &str, page: &[u8]) -> Result<()> {
    let path = directory.join(file);
    fs::write(&path, page).with_context(|| path.display().to_string())
}
