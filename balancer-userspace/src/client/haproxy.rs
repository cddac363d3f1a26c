//! Reads a stick table from HAProxy's socket.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::Path,
};

use anyhow::{Context as _, anyhow};

pub(super) fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|about| about.file_type().is_socket())
}

/// Returns the lines of a stick table.
pub(super) fn table(socket: &Path, name: &str, most: u64) -> anyhow::Result<String> {
    let asked =
        |command: &str| ask(socket, command, most).with_context(|| format!("asking HAProxy at {}", socket.display()));
    let answer = asked(&format!("show table {name}"))?;
    if names(&answer).contains(&name) {
        return Ok(answer);
    }
    let all = asked("show table")?;
    let all = names(&all);
    Err(if all.is_empty() {
        anyhow!("{}: HAProxy has no stick table, or this socket may not read it", socket.display())
    } else {
        anyhow!(
            "{}: HAProxy has no stick table {name:?}; choose one with --table, of: {}",
            socket.display(),
            all.join(", ")
        )
    })
}

fn ask(socket: &Path, command: &str, most: u64) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{command}")?;
    let mut answer = Vec::new();
    stream.take(most).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The names of the tables in an answer, which has a line `# table: NAME, type: ip, size:…` for each.
fn names(answer: &str) -> Vec<&str> {
    answer.lines().filter_map(|line| line.strip_prefix("# table: ")?.split(',').next()).collect()
}
