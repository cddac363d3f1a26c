//! Reads the lists of targets that services name, from all kinds of sources.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use balancer_config::{
    discover::{Source, Target},
    dns::DnsSource,
    etcd::EtcdSource,
    questions::{Questions, questions},
    validate::Valid,
};
use balancer_runtime::{
    supervisor::{Attended, Supervisor},
    tasks_by_key::want,
};
use tokio::sync::watch;

use crate::{
    followed_files::{self, Files},
    names,
    source_read::{ListRead, SourceReads},
    trees::{self, Trees},
};

/// How long a starting balancer waits for DNS and etcd before it continues with the last list of backends.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// The lists that services name, by the kind of their source.
#[derive(Debug, Default)]
pub struct WantedLists {
    /// The number of times that the balancer has started or stopped reading lists. If this number has changed, the
    /// owner has forgotten the lists read so far, and needs all lists again.
    pub reading: u64,
    /// The files that contain lists.
    pub files: BTreeSet<PathBuf>,
    /// The DNS queries whose answers are lists.
    pub questions: Questions,
    /// The prefixes of keys of etcd.
    pub trees: Trees,
}

/// The lists of targets that the balancer was able to read before the start.
pub struct FirstLists {
    files: Files<Vec<Target>>,
    names: Vec<(DnsSource, Arc<Vec<Target>>)>,
    trees: Vec<(EtcdSource, Arc<Vec<Target>>)>,
}

impl FirstLists {
    pub async fn read(services: &Valid) -> Self {
        let lists = services.iter().flat_map(|service| &service.discover);
        let wanted = lists.filter_map(|list| Some((list.source.etcd()?.clone(), ()))).collect();
        let questions = questions(services);
        let (files, names, trees) = tokio::join!(
            Files::<Vec<Target>>::of(services),
            names::first_answers(&questions, FIRST_ANSWERS),
            trees::first(wanted, FIRST_ANSWERS)
        );
        Self { files, names, trees }
    }

    /// The targets of a list; empty if the list could not be read.
    pub fn targets(&self, source: &Source) -> &[Target] {
        let targets = match source {
            Source::File(file) => self.files.contents(file),
            Source::Dns(dns) => self.names.iter().find(|(of, _)| of == dns).map(|(_, targets)| &**targets),
            Source::Etcd(etcd) => self.trees.iter().find(|(of, _)| of == etcd).map(|(_, targets)| &**targets),
        };
        targets.map_or(&[], Vec::as_slice)
    }

    /// Returns all lists, and the files among them for a task that follows these files.
    pub fn into_reads(self) -> (Vec<(Source, ListRead)>, Files<Vec<Target>>) {
        let files = self.files.all().map(|(file, read)| (Source::File(file), read));
        let names = self.names.into_iter().map(|(dns, targets)| (Source::Dns(dns), Ok(targets)));
        let trees = self.trees.into_iter().map(|(etcd, targets)| (Source::Etcd(etcd), Ok(targets)));
        (files.chain(names).chain(trees).collect(), self.files)
    }
}

/// The tasks that follow the lists of targets that services name.
pub struct ListSources {
    reads: SourceReads,
    supervisor: Supervisor,
    reading: u64,
    /// Dropping this field ends the tasks, and this must happen before the senders are dropped.
    tasks: [Attended<()>; 3],
    files: watch::Sender<BTreeSet<PathBuf>>,
    names: watch::Sender<Questions>,
    trees: watch::Sender<Trees>,
}

impl ListSources {
    /// Begins to read the `wanted` lists; `read` contains the files that were already read.
    pub fn follow(wanted: WantedLists, read: Files<Vec<Target>>, reads: SourceReads, supervisor: &Supervisor) -> Self {
        let (files, wanted_files) = watch::channel(wanted.files);
        let (names, questions) = watch::channel(wanted.questions);
        let (trees, wanted_trees) = watch::channel(wanted.trees);
        let tasks = [
            supervisor.attend("the reading of targets", followed_files::follow(read, wanted_files, reads.clone())),
            supervisor.attend("the questions to DNS", names::follow(questions, reads.clone())),
            supervisor.attend("the reading of etcd's keys", trees::follow(wanted_trees, reads.clone())),
        ];
        Self { reads, supervisor: supervisor.clone(), reading: wanted.reading, tasks, files, names, trees }
    }

    /// Passes the lists that services currently name to the tasks. When the reading number changes, new tasks replace
    /// the current tasks, which report only changes and may not have noticed that no list was wanted in between.
    pub fn want(&mut self, wanted: WantedLists) {
        if wanted.reading != self.reading {
            let new = Self::follow(wanted, Files::default(), self.reads.clone(), &self.supervisor);
            let before = std::mem::replace(self, new);
            drop(before.tasks);
            return;
        }
        want(&self.files, wanted.files);
        want(&self.names, wanted.questions);
        want(&self.trees, wanted.trees);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::mpsc;

    use super::*;
    use crate::source_read::SourceRead;

    #[tokio::test]
    async fn when_a_leader_is_replaced_and_leads_again_at_once_then_all_lists_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("targets.json");
        fs::write(&file, r#"[{"targets": ["192.0.2.1:80"]}]"#).unwrap();
        let leads = |reading| WantedLists { reading, files: BTreeSet::from([file.clone()]), ..WantedLists::default() };
        let (reads_in, mut reads) = mpsc::channel(1);
        let (supervisor, _endings) = Supervisor::new();
        let mut sources = ListSources::follow(leads(1), Files::default(), reads_in, &supervisor);
        let mut is_read = async || matches!(reads.recv().await, Some(SourceRead::List { read: Ok(_), .. }));
        assert!(is_read().await);
        // No task runs between these two calls of `want`.
        sources.want(WantedLists { reading: 2, ..WantedLists::default() });
        sources.want(leads(3));
        assert!(is_read().await);
    }
}
