//! Reads the lists of targets that services name, from all kinds of sources.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use balancer_config::{
    discover::{Source, Target},
    dns::DnsSource,
    etcd::EtcdSource,
    questions::{Questions, questions},
    validate::Valid,
};
use balancer_dataplane::Dataplane;
use tokio::sync::watch;

use crate::{
    call::Calls,
    followed_files::{self, Files},
    names,
    owner::Owner,
    supervisor::{Attended, Supervisor},
    tasks_by_key::want,
    trees::{self, Trees},
};

/// How long the start waits for DNS and etcd, before it continues with the last pool.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// The lists that could be read before the start.
pub(crate) struct FirstLists {
    files: Files<Vec<Target>>,
    names: Vec<(DnsSource, Arc<Vec<Target>>)>,
    trees: Vec<(EtcdSource, Arc<Vec<Target>>)>,
}

impl FirstLists {
    pub(crate) async fn read(services: &Valid) -> Self {
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

    /// The targets of a list, if it could be read.
    pub(crate) fn targets(&self, source: &Source) -> &[Target] {
        let targets = match source {
            Source::File(file) => self.files.contents(file),
            Source::Dns(dns) => self.names.iter().find(|(of, _)| of == dns).map(|(_, targets)| &**targets),
            Source::Etcd(etcd) => self.trees.iter().find(|(of, _)| of == etcd).map(|(_, targets)| &**targets),
        };
        targets.map_or(&[], Vec::as_slice)
    }

    /// Gives the lists to the owner. Returns the files, which are then followed.
    pub(crate) fn tell<D: Dataplane>(self, owner: &mut Owner<D>) -> Files<Vec<Target>> {
        self.files.all().for_each(|(file, read)| owner.list_was_read(Source::File(file), read));
        let names = self.names.into_iter().map(|(dns, targets)| (Source::Dns(dns), targets));
        let trees = self.trees.into_iter().map(|(etcd, targets)| (Source::Etcd(etcd), targets));
        names.chain(trees).for_each(|(source, targets)| owner.list_was_read(source, Ok(targets)));
        self.files
    }
}

/// Tasks that follow the lists which services name.
pub(crate) struct ListSources {
    files: watch::Sender<BTreeSet<PathBuf>>,
    names: watch::Sender<Questions>,
    trees: watch::Sender<Trees>,
    /// Ends the tasks when it is dropped.
    _tasks: [Attended<()>; 3],
}

impl ListSources {
    pub(crate) fn follow<D: Dataplane>(
        owner: &Owner<D>,
        read: Files<Vec<Target>>,
        calls: &Calls,
        supervisor: &Supervisor,
    ) -> Self {
        let (files, wanted_files) = watch::channel(owner.lists());
        let (names, questions) = watch::channel(owner.questions());
        let (trees, wanted_trees) = watch::channel(owner.trees());
        let tasks = [
            supervisor.attend("the reading of targets", followed_files::follow(read, wanted_files, calls.clone())),
            supervisor.attend("the questions to DNS", names::follow(questions, calls.clone())),
            supervisor.attend("the reading of etcd's keys", trees::follow(wanted_trees, calls.clone())),
        ];
        Self { files, names, trees, _tasks: tasks }
    }

    /// Tells the tasks which lists services name now.
    pub(crate) fn want<D: Dataplane>(&self, owner: &Owner<D>) {
        want(&self.files, owner.lists());
        want(&self.names, owner.questions());
        want(&self.trees, owner.trees());
    }
}
