//! The list of targets from which the site's backends come.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use balancer_config::discover::{DiscoverConfig, Source, Target};
use balancer_control::{
    absent::{Absent, Patience},
    controller::Controller,
    io::Change,
};

use super::event::SERVERS;

/// The list, and what the controller has seen of it.
pub(super) struct List {
    pub(super) config: DiscoverConfig,
    names: [String; SERVERS],
    /// The times from which targets are listed again.
    hidden: [Option<Instant>; SERVERS],
    absent: Absent,
    seen: Option<Vec<Target>>,
    waiting: BTreeSet<String>,
}

/// The address of a server.
pub(super) fn address(server: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 11 + server as u8)
}

impl List {
    pub(super) fn new() -> Self {
        Self {
            config: DiscoverConfig::new(Source::File("/targets.json".into())),
            names: std::array::from_fn(|server| format!("web{}", server + 1)),
            hidden: [None; SERVERS],
            absent: Absent::default(),
            seen: None,
            waiting: BTreeSet::new(),
        }
    }

    pub(super) fn hide(&mut self, server: usize, now: Instant, time: Duration) {
        self.hidden[server] = Some(now + time);
    }

    pub(super) fn rename(&mut self, server: usize) {
        self.names[server].push('x');
    }

    fn targets(&self, now: Instant) -> Vec<Target> {
        let listed = (0..SERVERS).filter(|&server| self.hidden[server].is_none_or(|until| until <= now));
        let target = |server: usize| Target {
            name: self.names[server].clone(),
            addresses: vec![address(server).into()],
            why: None,
            fault: None,
            port: Some(80),
            weight: 100,
            backup: false,
        };
        listed.map(target).collect()
    }

    /// Reads the list, and returns the change that it requires.
    pub(super) fn read(&mut self, controller: &Controller, now: Instant) -> Option<Change> {
        let (targets, source) = (self.targets(now), self.config.source.clone());
        let is_new = self.seen.as_ref() != Some(&targets);
        if is_new && let Some(named) = controller.named("web", &source, &targets) {
            self.absent.note(&named, 1, now);
        }
        let waiting = self.absent.waiting(Patience { keep: self.config.keep, counts_answers: false }, now);
        if !is_new && waiting == self.waiting {
            return None;
        }
        (self.seen, self.waiting) = (Some(targets.clone()), waiting.clone());
        let applies = controller.discovery("web", &source, &targets, &waiting).is_ok_and(|(_, changes)| changes);
        applies.then(|| Change::Discover { service: "web".to_owned(), source, targets, waiting })
    }
}
