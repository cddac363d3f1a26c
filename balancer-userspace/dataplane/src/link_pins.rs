//! The pins of links: the paths of the pins, and a list of the existing pins.

use std::{fs, path::PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub(super) ifindex: u32,
    pub(super) native: bool,
    pub(super) path: PathBuf,
}

/// The directory that contains pinned links.
#[derive(Clone, Debug)]
pub(super) struct LinkPins(PathBuf);

impl LinkPins {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// The path of the pin for a link to an interface.
    pub(super) fn link(&self, ifindex: u32, native: bool) -> PathBuf {
        self.0.join(format!("LINK-{ifindex}-{}", if native { "native" } else { "generic" }))
    }

    /// The path of the pin for a map in the same directory.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of the pin for a classifier's link.
    pub(super) fn classifier(&self, kind: &str, ifindex: u32, key: u64) -> PathBuf {
        self.0.join(format!("{kind}-{ifindex}-{key:012x}"))
    }

    /// The pins of one kind of classifier on an interface.
    pub(super) fn classifiers(&self, kind: &str, ifindex: u32) -> Vec<PathBuf> {
        let prefix = format!("{kind}-{ifindex}-");
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let of_interface = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        of_interface.map(|entry| entry.path()).collect()
    }

    pub(super) fn links(&self) -> Vec<LinkPin> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let pins = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (ifindex, mode) = name.strip_prefix("LINK-")?.split_once('-')?;
            Some(LinkPin { ifindex: ifindex.parse().ok()?, native: mode == "native", path: entry.path() })
        });
        pins.collect()
    }
}
