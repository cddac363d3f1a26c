//! `[[service.discover]]`, and the lists of targets that it names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    contents, deny,
    findings::{ConfigErrors, Finding, Findings},
    section::Section,
};
use crate::{
    config::Config,
    discover::{self, DiscoverConfig, MAX_TARGETS, Target},
    value,
};

/// Reads the sections of one service.
pub(super) fn discover(sections: Vec<Section<'_>>, findings: &mut Findings<'_>) -> Vec<DiscoverConfig> {
    let mut lists: Vec<DiscoverConfig> = Vec::with_capacity(sections.len());
    for mut section in sections {
        section.require("file", "file = \"/etc/balancer/targets.json\", a list of targets", findings);
        let file = section.text("file", findings, value::absolute_path);
        let min = section.integer("min", findings, (0, MAX_TARGETS as i64));
        section.finish(findings);
        let Some(file) = file else { continue };
        if lists.iter().any(|list| list.file == file.value) {
            findings.error(
                file.at,
                "this service has a [[service.discover]] with that file already; remove one".to_owned(),
            );
            continue;
        }
        lists.push(DiscoverConfig { file: file.value, min: min.map_or(1, |min| min.value) });
    }
    lists
}

/// Reads a list of targets.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load(path: &Path) -> Result<Vec<Target>, Finding> {
    let finding = |line, text| Finding { file: path.to_owned(), line, text };
    let text = contents::read(path, deny::LARGEST).map_err(|text| finding(None, text))?;
    discover::parse(&text).map_err(|(line, text)| finding(line, text))
}

/// Reads the lists that a configuration names, and gives how many targets they have together.
///
/// # Errors
/// The first thing that is wrong with each list that is wrong.
pub fn check(config: &Config) -> Result<usize, ConfigErrors> {
    let mut files: BTreeMap<&PathBuf, u32> = BTreeMap::new();
    for list in config.services.iter().flat_map(|service| &service.discover) {
        let least = files.entry(&list.file).or_default();
        *least = list.min.max(*least);
    }
    let (mut count, mut errors) = (0, Vec::new());
    for (file, min) in files {
        match load(file) {
            Ok(targets) if targets.len() < min as usize => {
                let text = discover::too_few(targets.len(), min);
                errors.push(Finding { file: file.clone(), line: None, text });
            }
            Ok(targets) => count += targets.len(),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(count) } else { Err(ConfigErrors::of(errors)) }
}
