//! Tests of a balancer that ends while its maps grow. The next balancer must take over whatever the first one has done,
//! and no client may notice.

use std::{collections::BTreeMap, fs, process::Output};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    faults::Faults,
    namespace::join,
    site::{QUICK_CHECK, Site},
    topology::{Family, Shape},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{service, wait_for};
use crate::{
    changes_under_load::{CLIENTS, under_load},
    support::wait,
};

/// So many services need longer maps of services and listeners.
pub(super) const SERVICES: u32 = 300;

struct Killed {
    /// The number of services that a change adds.
    services: u32,
    site: Site,
    faults: Faults,
    homes: BTreeMap<u16, String>,
    _place: TempDir,
}

impl Killed {
    /// Starts a balancer with two interfaces, whose programs the balancer replaces one after the other.
    fn start(services: u32) -> Self {
        let place = tempfile::tempdir().unwrap();
        let faults = Faults::new(place.path(), &binaries::balancer().unwrap()).unwrap();
        let site = Site::start(Shape::OneLegged, Forwarding::Nat, 4, |settings, topology| {
            join((topology.balancer(), "more0"), (topology.switch(), "more1"))?;
            settings.interfaces = vec!["eth0".to_owned(), "more0".to_owned()];
            settings.remember = "10m";
            settings.on_exit = "keep";
            settings.check = QUICK_CHECK.to_owned();
            settings.binary = Some(faults.program());
            Ok(())
        });
        let site = site.unwrap();
        ["web1", "web2", "web3", "web4"].iter().for_each(|name| wait_for(&site, name, "up"));
        // Only the client table keeps the clients of web4.
        let homes = site.homes(Family::V4, CLIENTS).unwrap();
        site.cli(&["backend", "drain", "web/web4", "--timeout", "1h"]).unwrap();
        Self { services, site, faults, homes, _place: place }
    }

    fn grow(&self) -> Output {
        let file = self.site.files().join("more.toml");
        fs::write(&file, (1..=self.services).map(|n| service(n, "dsr", 11)).collect::<String>()).unwrap();
        self.site.output(&["drop-in", "apply", "more", &file.display().to_string()]).unwrap()
    }

    /// Adds the services, while the signal reaches the balancer before the step with this number, and starts the next
    /// balancer. Returns whether the balancer got the signal before it had added the services.
    fn grows_until(&mut self, step: u32, signal: Signal) -> bool {
        self.faults.signal_before_step(step, signal).unwrap();
        let mut answer = None;
        let attempts = under_load(&self.site, || answer = Some(self.grow()));
        let answer = answer.unwrap();
        for attempt in &attempts {
            let home = Ok(&self.homes[&attempt.client]);
            assert_eq!(attempt.outcome.as_ref(), home, "client {} with an end before step {step}", attempt.client);
        }
        if !self.faults.has_signalled().unwrap() {
            assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
            return false;
        }
        wait("the balancer has not ended", || self.site.controller().process().exited().unwrap().is_some());
        assert_eq!(self.site.homes(Family::V4, CLIENTS).unwrap(), self.homes, "after an end before step {step}");
        self.site.start_again().unwrap();
        assert_eq!(self.site.homes(Family::V4, CLIENTS).unwrap(), self.homes, "after the start at step {step}");
        self.site.status().unwrap().services.len() == 1
    }

    /// Kills a backend: only the clients of this backend may move.
    fn go_on(&mut self) {
        assert_eq!(self.site.cli(&["ready"]).unwrap().trim(), "ready");
        self.site.kill_backend(1).unwrap();
        wait_for(&self.site, "web1", "down");
        let now = self.site.homes(Family::V4, CLIENTS).unwrap();
        assert!(
            now.iter().all(|(client, home)| *home == self.homes[client] || self.homes[client] == "web1"),
            "{now:?}"
        );
    }
}

/// Sends the signal before the first step of a growth and before each step that comes `every` steps later, and then kills
/// a backend.
pub(super) fn end_at_steps(every: u32, services: u32, signal: Signal) {
    let mut killed = Killed::start(services);
    let mut step = 1;
    while killed.grows_until(step, signal) {
        step += every;
    }
    println!("the growth and the change have fewer than {step} steps");
    // Each interface has a classifier and a program; the links of both, and the pins of the classifier's links, change.
    assert!(step > 8, "{step}");
    killed.go_on();
}

#[test]
fn when_the_balancer_is_killed_between_steps_of_a_growth_then_the_next_one_takes_over() {
    end_at_steps(3, SERVICES, Signal::SIGKILL);
}
