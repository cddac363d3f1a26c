//! Runs the demo's tour. The tour continues by itself until the user presses a key.

use anyhow::Result;
use balancer_api::model::StatusView;

use crate::{
    hosts::Hosts,
    keys::Keys,
    load::{Load, Seen},
    tour::Tour,
};

/// The tour, as long as it runs.
pub(crate) struct Guide(Option<Led>);

struct Led {
    tour: Tour,
    keys: Option<Keys>,
}

impl Guide {
    /// Starts the demo's tour.
    pub(crate) fn begin() -> Result<Self> {
        Ok(Self(Some(Led { tour: Tour::in_a_minute(), keys: Keys::new()? })))
    }

    /// Makes a guide without a tour, which lets all clients start at once.
    pub(crate) fn absent(load: &Load) -> Self {
        load.admit_newcomers();
        Self(None)
    }

    /// Runs the steps of the tour that are due.
    pub(crate) fn advance(&mut self, status: &StatusView, hosts: &mut Hosts, load: &Load) -> Result<()> {
        let Some(led) = &mut self.0 else { return Ok(()) };
        if led.tour.is_over() {
            led.keys = None;
        } else if let Some(keys) = &led.keys
            && keys.pressed()?
        {
            *self = Self::absent(load);
            return Ok(());
        }
        led.tour.advance(status, hosts, load).map(drop)
    }

    /// Returns the tour's text, which the demo shows beside the table.
    pub(crate) fn text(&self, now: &Seen) -> String {
        self.0.as_ref().map(|led| led.tour.text(now)).unwrap_or_default()
    }
}
