//! The task that keeps the interface's addresses as the services want them.

use std::{collections::BTreeSet, net::IpAddr};

use tokio::sync::watch;
use tracing::warn;

use super::{Assigned, Vips};
use crate::shell::{
    interfaces::Interface,
    supervisor::{Supervisor, Task},
};

/// A running task. It ends with [`end`](Self::end).
pub struct Keeper {
    ifindex: u32,
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    task: Task<Vips>,
    supervisor: Supervisor,
}

impl Keeper {
    /// Goes on from addresses that have been set to `wanted`.
    #[must_use]
    pub fn spawn(mut vips: Vips, wanted: BTreeSet<IpAddr>, supervisor: &Supervisor) -> Self {
        let ifindex = vips.interface.ifindex;
        let (sender, mut receiver) = watch::channel(wanted);
        let task = supervisor.spawn("the announcing of VIPs", async move {
            while receiver.changed().await.is_ok() {
                let wanted = receiver.borrow_and_update().clone();
                if let Err(error) = vips.set(&wanted).await {
                    warn!("{error:#}");
                }
            }
            Ok(vips)
        });
        Self { ifindex, wanted: sender, task, supervisor: supervisor.clone() }
    }

    /// Sets what is wanted, and gives what was not wanted before.
    pub fn follow(&self, wanted: BTreeSet<IpAddr>) -> Vec<Assigned> {
        let mut new = Vec::new();
        self.wanted.send_if_modified(|present| {
            let changes = *present != wanted;
            let address = |&address| Assigned { ifindex: self.ifindex, address };
            new.extend(wanted.difference(present).map(address));
            *present = wanted;
            changes
        });
        new
    }

    /// Goes on with an interface that was made anew, and so has none of the addresses.
    #[must_use]
    pub async fn go_on_with(self, interface: Interface) -> Self {
        let mut vips = match Vips::new(interface, &[]) {
            Ok(vips) => vips,
            Err(error) => {
                warn!("{error:#}");
                return self;
            }
        };
        let wanted = self.wanted.borrow().clone();
        let supervisor = self.supervisor.clone();
        self.end(true).await;
        if let Err(error) = vips.set(&wanted).await {
            warn!("{error:#}");
        }
        Self::spawn(vips, wanted, &supervisor)
    }

    /// Ends the task, and removes the addresses unless they are to be left.
    pub async fn end(self, leave: bool) {
        self.task.release();
        drop(self.wanted);
        if let Some(mut vips) = self.task.ended().await
            && !leave
        {
            vips.remove_all().await;
        }
    }
}
