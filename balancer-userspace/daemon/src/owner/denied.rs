//! Deny lists: this module records the known lists, and the lists that the data path should have.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use balancer_config::{deny::DenyList, listeners::Family, words::counted};
use balancer_control::{io::ServiceId, locate::Located, service::Service, snapshot::DeniedSnapshot};
use balancer_dataplane::{Dataplane, DeniedBy};
use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{error, info};

use super::Owner;

/// The deny lists of the owner: see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Denied {
    lists: HashMap<PathBuf, Known>,
    /// The deny lists that the owner last passed to the data path.
    told: HashMap<ServiceId, (Family, Arc<DenyList>)>,
    /// Whether the data path has not finished installing the deny lists.
    going: bool,
    /// The reason why the data path refused the deny lists.
    refused: Option<String>,
}

/// The last known contents of a deny list's file.
#[derive(Debug, Default)]
struct Known {
    /// The last valid list, and the time at which it was read.
    list: Option<(Arc<DenyList>, Instant)>,
    /// The reason why the file's current contents are not valid.
    error: Option<String>,
}

impl<D: Dataplane> Owner<D> {
    /// The files of deny lists that services name.
    pub fn deny_files(&self) -> BTreeSet<PathBuf> {
        self.controller.services().iter().filter_map(Service::deny_file).map(Path::to_owned).collect()
    }

    /// Handles the contents of a deny list's file. If the file is invalid, the list stays, and only the reported error
    /// changes.
    pub fn deny_file_was_read(&mut self, file: PathBuf, read: Result<Arc<DenyList>, String>) {
        let known = self.denied.lists.entry(file).or_default();
        match read {
            Ok(list) => {
                let is_news = known.error.is_some() || known.list.as_ref().is_none_or(|(old, _)| *old != list);
                if is_news {
                    info!("list of denied prefixes read: {} denied", counted(list.len(), "prefix"));
                }
                (known.list, known.error) = (Some((list, Instant::now())), None);
            }
            Err(error) => {
                if known.error.as_ref() != Some(&error) {
                    let has_list = known.list.is_some();
                    let kept = if has_list { "the previous list stays in force" } else { "no client is denied" };
                    error!("list of denied prefixes is invalid, {kept}: {error}");
                }
                known.error = Some(error);
            }
        }
        self.changed = true;
        self.tell_lists();
    }

    /// Passes the deny lists that services name to the data path.
    pub fn tell_lists(&mut self) {
        let wanted: HashMap<ServiceId, (Family, &Path)> = self
            .controller
            .services()
            .iter()
            .filter_map(|service| Some((service.id(), (service.family(), service.deny_file()?))))
            .collect();
        if wanted.is_empty() && self.denied.told.is_empty() {
            return;
        }
        let gone: Vec<ServiceId> =
            self.denied.told.keys().copied().filter(|service| !wanted.contains_key(service)).collect();
        let known = |file: &Path| Some(&self.denied.lists.get(file)?.list.as_ref()?.0);
        let told = |service: &ServiceId, family: Family, list: &Arc<DenyList>| {
            self.denied.told.get(service).is_some_and(|(of, told)| *of == family && Arc::ptr_eq(told, list))
        };
        let new: Vec<DeniedBy> = wanted
            .iter()
            .filter_map(|(service, (family, file))| {
                let list = known(file).filter(|list| !told(service, *family, list))?;
                Some(DeniedBy { service: *service, family: *family, list: Arc::clone(list) })
            })
            .collect();
        let files: HashSet<PathBuf> = wanted.values().map(|(_, file)| (*file).to_owned()).collect();
        self.denied.lists.retain(|file, _| files.contains(file));
        for service in gone {
            self.denied.told.remove(&service);
            let dropped = self.dataplane.drop_list(service);
            self.note_lists(dropped.map(drop));
        }
        for denied in new {
            let set = self.dataplane.set_list(&denied);
            if self.note_lists(set) {
                self.denied.told.insert(denied.service, (denied.family, denied.list));
                self.denied.going = true;
            }
        }
    }

    /// Whether the data path has not finished installing the deny lists.
    pub const fn has_list_steps(&self) -> bool {
        self.denied.going
    }

    /// Continues to install deny lists for about a millisecond.
    pub fn step_lists(&mut self) {
        match self.dataplane.step_lists() {
            Ok(true) => {
                self.denied.going = false;
                self.note_lists(Ok(()));
                self.changed = true;
            }
            Ok(false) => {}
            Err(error) => {
                // The owner retries as soon as a deny list changes.
                self.denied.going = false;
                self.note_lists(Err(error));
            }
        }
    }

    /// Installs all deny lists completely. If the file of a service's deny list could not be read, the list of an
    /// earlier controller stays in effect.
    pub fn begin_lists(&mut self) {
        self.tell_lists();
        while self.denied.going {
            self.step_lists();
        }
        let listed = self.controller.services().iter().filter(|service| service.deny_file().is_some());
        let spared: HashSet<ServiceId> = listed.map(Service::id).collect();
        let forgotten = self.dataplane.forget_left_lists(&spared);
        self.note_lists(forgotten);
    }

    /// Records the result of writing deny lists. The function returns whether the write succeeded.
    fn note_lists(&mut self, done: anyhow::Result<()>) -> bool {
        let refused = done.err().map(|error| format!("list of denied prefixes is only partly in force: {error:#}"));
        if let Some(refused) = &refused
            && self.denied.refused.as_ref() != Some(refused)
        {
            error!("{refused}");
        }
        let is_well = refused.is_none();
        if refused != self.denied.refused {
            self.changed = true;
        }
        self.denied.refused = refused;
        is_well
    }

    /// Returns the problems with deny lists, as one sentence each.
    pub(super) fn list_troubles(&self) -> impl Iterator<Item = String> {
        let mut errors: Vec<String> = self.denied.lists.values().filter_map(|known| known.error.clone()).collect();
        errors.sort_unstable();
        let errors = errors.into_iter().map(|error| format!("list of denied prefixes is invalid: {error}"));
        errors.chain(self.denied.refused.clone())
    }

    /// Returns the size, packets, age and error of a service's deny list; `None` if the service has no deny list.
    pub(super) fn denied_snapshot(&self, service: &Service) -> Option<DeniedSnapshot> {
        let file = service.deny_file()?;
        let known = self.denied.lists.get(file);
        let (prefixes, packets) = self.dataplane.denied(service.id());
        Some(DeniedSnapshot {
            file: file.to_owned(),
            prefixes,
            packets,
            read: known.and_then(|known| known.list.as_ref()).map(|(_, at)| at.elapsed()),
            error: known.and_then(|known| known.error.clone()),
        })
    }

    /// Takes the service's deny list into account in the location of a client.
    pub(super) fn deny_located(&self, service: &Service, address: IpAddr, located: &mut Located) {
        let list = self.denied.told.get(&service.id());
        let Some(prefix) = list.and_then(|(_, list)| list.longest(address)) else { return };
        let rule = service.rule_prefix(address).as_ref().map(IpNet::prefix_len);
        if rule.is_none_or(|length| length < prefix.prefix_len()) {
            located.deny(prefix);
        }
    }
}
