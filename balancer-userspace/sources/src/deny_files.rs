//! Watches the files of deny lists.

use std::path::{Path, PathBuf};

use balancer_config::{
    config::ServiceConfig,
    deny::DenyList,
    file::{self, Finding},
};

use crate::{
    followed_files::Followed,
    source_read::{DenyFileRead, SourceRead},
};

impl Followed for DenyList {
    const WHAT: &str = "lists of denied prefixes";

    fn named_by(service: &ServiceConfig) -> impl Iterator<Item = &Path> {
        service.deny.iter().map(|deny| deny.file.as_path())
    }

    fn load(file: &Path) -> Result<Self, Finding> {
        file::deny::load(file)
    }

    fn told(file: PathBuf, read: DenyFileRead) -> SourceRead {
        SourceRead::DenyFile { file, read }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::followed_files::{Files, follow};

    async fn told(calls: &mut mpsc::Receiver<SourceRead>) -> Result<usize, String> {
        match calls.recv().await {
            Some(SourceRead::DenyFile { read, .. }) => read.map(|list| list.len()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn when_a_file_is_written_renamed_over_or_removed_then_that_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deny.txt");
        fs::write(&file, "192.0.2.0/24\n").unwrap();
        let (want, wanted) = watch::channel(BTreeSet::new());
        let (calls_in, mut calls) = mpsc::channel(1);
        let task = tokio::spawn(follow(Files::<DenyList>::default(), wanted, calls_in));
        want.send(BTreeSet::from([file.clone()])).unwrap();
        assert_eq!(told(&mut calls).await, Ok(1));
        fs::write(&file, "192.0.2.0/24\n198.51.100.0/24\n").unwrap();
        assert_eq!(told(&mut calls).await, Ok(2));
        // The new file has the same size and modification time as the file that it replaces.
        let other = directory.path().join("new");
        fs::write(&other, "192.0.3.0/24\n198.51.101.0/2x\n").unwrap();
        fs::rename(&other, &file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("deny.txt:2: "), "{error}");
        fs::remove_file(&file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("cannot be read"), "{error}");
        fs::write(&file, "192.0.2.0/24\n").unwrap();
        assert_eq!(told(&mut calls).await, Ok(1));
        drop(want);
        task.await.unwrap();
    }
}
