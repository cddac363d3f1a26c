//! Watches files that contain lists of targets.

use std::path::{Path, PathBuf};

use balancer_config::{
    config::ServiceConfig,
    discover::{Source, Target},
    file::{self, Finding},
};

use crate::{
    followed_files::Followed,
    source_read::{ListRead, SourceRead},
};

impl Followed for Vec<Target> {
    const WHAT: &str = "lists of targets";

    fn named_by(service: &ServiceConfig) -> impl Iterator<Item = &Path> {
        service.discover.iter().filter_map(|list| list.source.file())
    }

    fn load(file: &Path) -> Result<Self, Finding> {
        file::discover::load(file)
    }

    fn told(file: PathBuf, read: ListRead) -> SourceRead {
        SourceRead::List { source: Source::File(file), read }
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
            Some(SourceRead::List { read, .. }) => read.map(|list| list.len()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn when_a_list_is_written_renamed_over_or_removed_then_that_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("targets.json");
        fs::write(&file, r#"[{"targets": ["192.0.2.1:80"]}]"#).unwrap();
        let (want, wanted) = watch::channel(BTreeSet::new());
        let (calls_in, mut calls) = mpsc::channel(1);
        let task = tokio::spawn(follow(Files::<Vec<Target>>::default(), wanted, calls_in));
        want.send(BTreeSet::from([file.clone()])).unwrap();
        assert_eq!(told(&mut calls).await, Ok(1));
        let other = directory.path().join("new");
        fs::write(&other, "[\n{\"targets\": [\"192.0.2.1:80\",\n\"web2\"]}]").unwrap();
        fs::rename(&other, &file).unwrap();
        assert_eq!(told(&mut calls).await, Ok(2), "a wrong target is one of the list");
        fs::write(&other, "[\n{\"targets\": \"192.0.2.1:80\"}]").unwrap();
        fs::rename(&other, &file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("targets.json:2: this is not a list of targets"), "{error}");
        fs::remove_file(&file).unwrap();
        let error = told(&mut calls).await.unwrap_err();
        assert!(error.contains("cannot be read"), "{error}");
        fs::write(&file, "[]").unwrap();
        assert_eq!(told(&mut calls).await, Ok(0));
        drop(want);
        task.await.unwrap();
    }
}
