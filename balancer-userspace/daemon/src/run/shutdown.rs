//! The graceful end of the balancer's process.

use super::running::{End, Running};

/// The components of a balancer that has served until the end. The components must end in an order in which no data is
/// lost.
pub(super) struct Shutdown {
    running: Running,
    end: End,
}

impl Shutdown {
    pub(super) const fn new(running: Running, end: End) -> Self {
        Self { running, end }
    }

    /// Saves the state, detaches the program or leaves it attached, and completes the pending answers.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        let Self { running, end } = self;
        // The fields that are not named here are dropped last.
        let Running {
            manager,
            persistence,
            history,
            reloads,
            denying,
            default_hops,
            lists,
            asking,
            watching,
            finding,
            counting,
            telling,
            api,
            host,
            mut owner,
            inbox,
            fleet,
            ..
        } = running;
        if let End::Failed(ended) = &end {
            history.warn(&format!("{ended}: the balancer cannot work without it, and ends"));
        }
        if let Some(fleet) = fleet {
            fleet.leave().await;
        }
        owner.rescan_all();
        persistence.finish(&owner).await;
        manager.stopping("leaving");
        let leave = host.wanted().keep;
        history.note(&if leave {
            format!("{end}: ending; the kernel program continues to steer (on_exit = \"keep\")")
        } else {
            format!("{end}: detaching")
        });
        history.close();
        let detached = host.end(leave).await;
        drop((reloads, denying, default_hops, lists, asking, inbox, watching, finding, counting, telling));
        api.end().await;
        match end {
            End::Asked(_) => detached,
            End::Failed(ended) => Err(ended.into()),
        }
    }
}
