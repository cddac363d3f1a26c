//! What tasks have read from the sources that services name.

use std::{path::PathBuf, sync::Arc};

use balancer_config::{
    deny::DenyList,
    discover::{Source, Target},
};
use tokio::sync::mpsc;

/// The contents of a deny list's file, or the reason why the file could not be read.
pub type DenyFileRead = Result<Arc<DenyList>, String>;

/// The targets in a list, or the reason why the list could not be read.
pub type ListRead = Result<Arc<Vec<Target>>, String>;

/// A source that a task has read because it is new or has changed.
#[derive(Debug)]
pub enum SourceRead {
    /// A file with a deny list.
    DenyFile {
        /// The file with the deny list.
        file: PathBuf,
        /// The deny list in the file, or the error from reading the file.
        read: DenyFileRead,
    },
    /// A list of targets, from a file, a DNS answer or keys of etcd.
    List {
        /// The source of the list.
        source: Source,
        /// The targets in the list, or the error from reading the list.
        read: ListRead,
    },
}

/// The sending half of the bounded channel for what was read: tasks wait while the receiver is busy.
pub type SourceReads = mpsc::Sender<SourceRead>;
