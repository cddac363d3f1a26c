//! The share of a service's clients that the balancer steers, and connections that began before the last change of this
//! share.

use std::time::{Duration, Instant};

use balancer_common::share::{SETTLES_SECONDS, Share, WHOLE};

use super::Service;
use crate::state::{Clocks, SavedShare};

/// The share of clients that the balancer steers, now and in the recent past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedClients {
    share: Share,
    /// The time after which connections from before the last change of the share no longer matter.
    settles: Option<Instant>,
}

impl SharedClients {
    pub(crate) const fn always(percent: u8) -> Self {
        Self { share: Share::always(percent), settles: None }
    }

    pub(crate) const fn share(self) -> Share {
        self.share
    }

    pub(crate) const fn settles(self) -> Option<Instant> {
        self.settles
    }

    fn set(&mut self, percent: u8, now: Instant) {
        if percent != self.share.now {
            *self =
                Self { share: self.share.changed(percent), settles: Some(now + Duration::from_secs(SETTLES_SECONDS)) };
        }
    }

    pub(crate) fn export(self, clocks: Clocks) -> Option<SavedShare> {
        let settles = self.settles?;
        Some(SavedShare { least: self.share.least, most: self.share.most, settles: clocks.moment(settles) })
    }

    pub(crate) fn restored(percent: u8, saved: Option<SavedShare>, clocks: Clocks) -> Self {
        let Some(SavedShare { least, most, settles }) = saved else { return Self::always(percent) };
        let share = Share { now: percent, least: least.min(percent), most: most.clamp(percent, WHOLE.max(percent)) };
        Self { share, settles: Some(clocks.instant(settles)) }
    }
}

impl Service {
    /// The share of the service's clients that the balancer steers.
    #[must_use]
    pub const fn share(&self) -> Share {
        self.share.share()
    }

    /// Sets the share of clients that the balancer steers to the share in the settings.
    pub(crate) fn share_as_configured(&mut self, now: Instant) {
        self.share.set(self.settings.steer, now);
    }

    /// Whether connections from before the last change of the share no longer matter.
    pub(crate) fn share_settles(&self, now: Instant) -> bool {
        self.share.settles.is_some_and(|settles| settles <= now)
    }

    /// Stops looking for connections from before the last change of the share.
    pub(crate) const fn settle_share(&mut self) {
        self.share = SharedClients::always(self.settings.steer);
    }
}
