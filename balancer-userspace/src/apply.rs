//! The command `balancer apply`.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use balancer_api::{
    client::Client,
    model::{Applied, ApplyConfiguration},
};
use balancer_config::file::{self, ConfigErrors};
use balancer_control::run_time::summary;

use super::{Failure, by_all, output, plan};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    file: PathBuf,
    /// Have the balancer read its own file again, as SIGHUP does, and print the result; the command first checks FILE,
    /// which names the control socket
    #[arg(long, conflicts_with_all = ["dry_run", "reset", "force"])]
    reread: bool,
    /// Change nothing; show the changes and the slots that would move
    #[arg(long)]
    dry_run: bool,
    /// Undo all run-time changes: backends, weights, listeners, rules, shares, drains, forced health
    #[arg(long)]
    reset: bool,
    /// In a fleet, apply the file even if it is older than the newest change
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    client: &Client,
    Args { file, reread: _, dry_run, reset, force, json }: Args,
) -> Result<(), Failure> {
    let text = text(&file, |bytes| file::parse(&file, bytes).err())?;
    // The balancer treats a pipe or another special file as new, because it has no meaningful modification time.
    let age =
        fs::metadata(&file).ok().filter(fs::Metadata::is_file).and_then(|file| file.modified().ok()?.elapsed().ok());
    let age_seconds = age.map(|age| age.as_secs_f64());
    let (path, file) = (fs::canonicalize(&file).ok(), file.display().to_string());
    let configuration = ApplyConfiguration { file, text, dry_run, age_seconds, force, reset, path };
    let applied = client.apply(&configuration).await?;
    if json {
        output::print_json(&applied)?;
    } else {
        output::print(&render(&applied, dry_run))?;
    }
    by_all(&applied.not_applied_by)
}

/// The control socket of the balancer that should reread its own configuration file; `None` if the user has not
/// requested a reread.
pub(super) fn own_socket(args: &Args) -> Result<Option<PathBuf>, Failure> {
    if !args.reread {
        return Ok(None);
    }
    let (config, warnings) = file::load(&args.file)?;
    for mut warning in warnings {
        warning.text.insert_str(0, "warning: ");
        writeln!(io::stderr(), "{warning}")?;
    }
    Ok(Some(config.control.socket))
}

/// Makes the balancer reread its own configuration file.
pub(super) async fn reread(client: &Client, args: Args) -> Result<(), Failure> {
    let changed = client.reread().await?;
    if args.json {
        return Ok(output::print_json(&changed)?);
    }
    Ok(output::print(&format!("{}\n", changed.message))?)
}

/// Reads a file as text. If the file is too large or is not UTF-8 text, `errors` finds this error in the bytes.
pub(super) fn text(file: &Path, errors: impl Fn(&[u8]) -> Option<ConfigErrors>) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(file::MAX_FILE_SIZE + 1).read_to_end(&mut bytes))
        .with_context(|| format!("{} cannot be read", file.display()))?;
    let refused = |bytes: &[u8]| match errors(bytes) {
        Some(errors) => errors.into(),
        None => anyhow::anyhow!("{} cannot be sent", file.display()).into(),
    };
    match String::from_utf8(bytes) {
        Ok(text) if text.len() as u64 <= file::MAX_FILE_SIZE => Ok(text),
        Ok(text) => Err(refused(text.as_bytes())),
        Err(error) => Err(refused(error.as_bytes())),
    }
}

pub(super) fn render(applied: &Applied, dry_run: bool) -> String {
    let mut text: String = applied.differences.iter().map(|line| format!("{line}\n")).collect();
    for service in applied.services.iter().filter(|_| dry_run) {
        text += &plan::text(service);
    }
    if let Some(changed) = summary(&applied.changed_at_run_time).filter(|_| dry_run) {
        text += &format!("changed at run time: {changed}\n");
    }
    let prefix = if dry_run { "dry run, nothing was changed: " } else { "" };
    text + &format!("{prefix}{}\n", applied.message)
}
