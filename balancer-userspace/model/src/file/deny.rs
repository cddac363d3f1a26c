//! Files of denied prefixes.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::findings::{ConfigErrors, Finding};
use crate::{config::Config, deny::DenyList};

/// Largest list, in bytes.
const MAX_FILE_SIZE: u64 = 64 << 20;

/// Reads a list.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load(path: &Path) -> Result<DenyList, Finding> {
    let finding = |line, text| Finding { file: path.to_owned(), line, text };
    let text = read_list(path).map_err(|text| finding(None, text))?;
    DenyList::parse(&text).map_err(|(line, text)| finding(line, text))
}

/// The contents of a list.
///
/// # Errors
/// Why there are none.
pub(super) fn read_list(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        file.take(MAX_FILE_SIZE + 1).read_to_end(&mut text)
    });
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err("is larger than 64 MiB; is it the right file?".to_owned());
    }
    Ok(text)
}

/// Reads the lists that a configuration names, and gives how many prefixes they have together.
///
/// # Errors
/// The first thing that is wrong with each list that is wrong.
pub fn check(config: &Config) -> Result<usize, ConfigErrors> {
    let files: BTreeSet<&Path> =
        config.services.iter().filter_map(|service| Some(&*service.deny.as_ref()?.file)).collect();
    let (mut count, mut errors) = (0, Vec::new());
    for file in files {
        match load(file) {
            Ok(list) => count += list.len(),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(count) } else { Err(ConfigErrors::of(errors)) }
}
