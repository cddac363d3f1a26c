//! Compares the member's own configuration file with the configuration file that the fleet last applied.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use balancer_api::model::Changed;
use balancer_config::{config::Config, validate::Valid};
use balancer_control::io::{Change, Refused};
use balancer_dataplane::KernelDataplane;
use balancer_fleet::{member::LastChanges, store_schema::Epoch};
use balancer_listeners::call::{ChangeRequest, Request};
use balancer_runtime::clocks::wall;
use tokio::sync::oneshot;

use super::Fleet;
use crate::owner::Owner;

/// The member's own configuration file: see the [module](self).
pub(super) struct OwnFile {
    /// The path of the member's own file, without symbolic links, if known.
    path: Option<PathBuf>,
    /// The services in the member's own file at the last read.
    services: Valid,
    /// The epoch at which the member last compared its own file with the fleet's file.
    compared: Option<Epoch>,
    differs: bool,
    /// The time of the last change that a user made in the fleet, on this machine's clock.
    changed: Option<SystemTime>,
    /// The time at which a configuration file last changed the fleet's services, on this machine's clock.
    file: Option<SystemTime>,
}

impl OwnFile {
    pub(super) const fn new(services: Valid) -> Self {
        Self { path: None, services, compared: None, differs: false, changed: None, file: None }
    }

    /// Whether the member's own file differs from the fleet's file.
    pub(super) const fn differs(&self) -> bool {
        self.differs
    }

    /// Records the times since users last made changes in the fleet.
    pub(super) fn fleet_has_changed(&mut self, LastChanges { any, file }: LastChanges) {
        let at = |ago: Option<Duration>| wall().checked_sub(ago?);
        (self.changed, self.file) = (self.changed.max(at(any)), self.file.max(at(file)));
    }

    /// Records the contents of the member's own file. The function returns whether these contents are newer than the
    /// fleet's services.
    fn read(&mut self, services: Valid, modified: Option<SystemTime>) -> bool {
        // A restored file with unchanged contents is not an edit, however new the file is.
        let is_edited = services != self.services;
        self.services = services;
        self.compared = None;
        is_edited && is_newer(modified, self.changed)
    }
}

fn is_newer(modified: Option<SystemTime>, changed: Option<SystemTime>) -> bool {
    modified.zip(changed).is_none_or(|(modified, changed)| modified > changed)
}

impl Fleet {
    /// The time, on this machine's clock, before which a file must not have been written last if the fleet is to apply
    /// its services: the time of the last change that a user made in the fleet. A `reset` is to undo changes made at run
    /// time, so only other files count; the file that the fleet applied last is never too old.
    pub(crate) fn oldest_file(
        &self,
        services: &Valid,
        reset: bool,
        owner: &Owner<KernelDataplane>,
    ) -> Option<SystemTime> {
        match reset {
            false => self.file.changed,
            true if owner.controller().has_applied(services) => None,
            true => self.file.file,
        }
    }

    /// Sets the path of the member's own file.
    pub(crate) fn set_file(&mut self, file: &Path) {
        self.file.path = fs::canonicalize(file).ok();
    }

    /// Records that this member applied a configuration file; if it is the member's own file, also records the file as
    /// read.
    pub(crate) fn file_was_applied(&mut self, path: &Path, services: Valid) {
        if self.file.path.as_deref() == Some(path) {
            (self.file.services, self.file.compared) = (services, None);
        }
    }

    /// Handles the member's own file after a task has reread it: the file's services become the fleet's services if the
    /// file's services are newer.
    pub(crate) fn file_was_read(
        &mut self,
        config: Box<Config>,
        modified: Option<SystemTime>,
        reply: oneshot::Sender<Result<Option<Changed>, Refused>>,
        owner: &mut Owner<KernelDataplane>,
    ) {
        let is_newer = self.file.read(config.services.clone(), modified);
        if !is_newer || owner.controller().has_applied(&config.services) {
            // Sending fails if the requester no longer waits.
            let _ = reply.send(Ok(None));
            return;
        }
        let (asked, answer) = oneshot::channel();
        let change_request = ChangeRequest::Change(Change::Reload(config));
        self.change_request(Request { change_request, uid: None, if_generation: None, reply: asked }, owner);
        tokio::spawn(async {
            if let Ok(answer) = answer.await {
                let _ = reply.send(answer.map(Some));
            }
        });
    }

    /// Returns whether the member's own file differs from the fleet's file; `None` if this has not changed since the
    /// last call.
    pub(super) fn compare_file(&mut self, owner: &Owner<KernelDataplane>) -> Option<bool> {
        let epoch = self.member.epoch().filter(|_| self.member.is_in_step())?;
        let was_read = self.file.compared.is_none();
        if self.file.compared.replace(epoch) == Some(epoch) {
            return None;
        }
        let differs = !owner.controller().has_applied(&self.file.services);
        if differs && (was_read || !self.file.differs) {
            owner.events().warn(
                "services in the configuration file differ from the fleet's, and the fleet's are in force; to give \
                 the fleet those of the file: balancer apply FILE",
            );
        }
        (std::mem::replace(&mut self.file.differs, differs) != differs).then_some(differs)
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::file;

    use super::*;

    fn services(weight: u16) -> Valid {
        let text = format!(
            "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"dsr\"\n\
             [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\nweight = {weight}\n"
        );
        file::parse("test.toml".as_ref(), text.as_bytes()).unwrap().0.services
    }

    fn ago(seconds: u64) -> LastChanges {
        LastChanges { any: Some(Duration::from_secs(seconds)), file: None }
    }

    #[test]
    fn when_a_file_is_read_again_then_only_one_that_was_edited_since_the_fleets_last_change_is_newer() {
        let second = Duration::from_secs(1);
        for (said, modified_before_change, newer) in
            [(1, None, false), (1, Some(false), false), (2, Some(true), false), (2, Some(false), true), (2, None, true)]
        {
            let mut file = OwnFile::new(services(1));
            file.fleet_has_changed(ago(60));
            let changed = file.changed.unwrap();
            let modified =
                modified_before_change.map(|before| if before { changed - second } else { changed + second });
            assert_eq!(file.read(services(said), modified), newer, "{said} {modified_before_change:?}");
            assert!(!file.read(services(said), Some(changed + second)), "it was read already");
        }
    }

    #[test]
    fn when_several_changes_are_heard_of_then_the_latest_counts() {
        let mut file = OwnFile::new(services(1));
        file.fleet_has_changed(LastChanges::default());
        assert_eq!(file.changed, None);
        file.fleet_has_changed(ago(10));
        let latest = file.changed;
        file.fleet_has_changed(ago(100));
        assert_eq!(file.changed, latest);
    }
}
