//! Reads the files of deny lists.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use super::{
    contents,
    findings::{ConfigErrors, Finding},
};
use crate::{deny::DenyList, service::ServiceConfig};

/// The maximum size of a deny list file, in MiB.
pub(super) const LARGEST: u64 = 64;

/// Reads a deny list from its file.
///
/// # Errors
/// Returns the first error in the deny list.
pub fn load(path: &Path) -> Result<DenyList, Finding> {
    let finding = |line, text| Finding { file: path.to_owned(), line, text };
    let text = contents::read(path, LARGEST).map_err(|text| finding(None, text))?;
    DenyList::parse(&text).map_err(|(line, text)| finding(line, text))
}

/// Reads the deny lists that services name, and returns the total number of their prefixes.
///
/// # Errors
/// Returns the first error in each invalid deny list.
pub fn check(services: &[Arc<ServiceConfig>]) -> Result<usize, ConfigErrors> {
    let files: BTreeSet<&Path> = services.iter().filter_map(|service| Some(&*service.deny.as_ref()?.file)).collect();
    let (mut count, mut errors) = (0, Vec::new());
    for file in files {
        match load(file) {
            Ok(list) => count += list.len(),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(count) } else { Err(ConfigErrors::of(errors)) }
}
