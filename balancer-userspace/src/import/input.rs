//! Reads configuration files of other programs, and the files that they include.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The maximum size of a file in bytes, equal to that of the balancer's own file.
const MOST_BYTES: u64 = 16 << 20;

const STANDARD_INPUT: &str = "standard input";

/// Returns the name of a file and its text.
pub(super) fn read(path: &Path) -> Result<(String, String), String> {
    if path == Path::new("-") {
        return text(STANDARD_INPUT, io::stdin().lock());
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| format!("{name}: it cannot be opened: {error}"))?;
    text(&name, file)
}

fn text(name: &str, from: impl Read) -> Result<(String, String), String> {
    let mut bytes = Vec::new();
    let read = from.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("{name}: it cannot be read: {error}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!("{name}: it has more than {} MiB; give a part", MOST_BYTES >> 20));
    }
    // Old files contain comments in other encodings than UTF-8.
    let text = String::from_utf8_lossy(&bytes);
    Ok((name.to_owned(), text.trim_start_matches('\u{feff}').to_owned()))
}

/// Reads the files that match `pattern`, relative to the directory of the file `from`.
pub(super) fn included(from: &str, pattern: &str) -> Result<Vec<(String, String)>, String> {
    let directory =
        if from == STANDARD_INPUT { Path::new("") } else { Path::new(from).parent().unwrap_or(Path::new("")) };
    let full = if Path::new(pattern).is_absolute() || directory.as_os_str().is_empty() {
        pattern.to_owned()
    } else {
        format!("{}/{pattern}", glob::Pattern::escape(&directory.display().to_string()))
    };
    let is_pattern = pattern.contains(['*', '?', '[']);
    let found = glob::glob(&full).map_err(|error| format!("this is no pattern of file names: {error}"))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|error| error.to_string())?;
        if !is_pattern || path.is_file() {
            files.push(read(&path)?);
        }
    }
    let around = Path::new(pattern).parent().map(|parent| directory.join(parent));
    match around {
        _ if !files.is_empty() => Ok(files),
        Some(around) if is_pattern && (around.as_os_str().is_empty() || around.is_dir()) => Ok(files),
        _ => Err("there is no such file here".to_owned()),
    }
}
