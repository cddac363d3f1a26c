//! Fuzzes the parsing of configuration files.

use std::{
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};

use balancer_common::client::HashKey;
use balancer_config::{
    config::Config,
    file,
    validate::{self, Valid},
};
use balancer_control::{
    controller::Controller,
    io::{Change, Event},
    state::Clocks,
};

/// The largest number of slots that all lookup tables together may have. Filling larger lookup tables takes too long.
pub(super) const SLOTS: usize = 40_000;
pub(super) const KEY: HashKey = HashKey { k0: 1, k1: 2 };

/// Parses `bytes` as a configuration file. If the file is valid, a controller must start with it, and the controller's
/// state must survive a restart.
pub fn config(bytes: &[u8]) {
    match file::parse(Path::new("balancer.toml"), bytes) {
        Ok((config, warnings)) => {
            for warning in &warnings {
                assert!(!warning.to_string().is_empty());
            }
            assert_eq!(
                validate::services(&config.services, &Valid::default()).map_err(|problem| problem.to_string()),
                Ok(())
            );
            if is_small(&config) {
                begin(config);
            }
        }
        Err(errors) => {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
            assert!(!errors.findings().is_empty(), "refused without a word");
            for finding in errors.findings() {
                assert!(finding.line.is_none_or(|line| (1..=lines).contains(&line)), "{finding:?} of {lines} lines");
            }
            assert!(!errors.to_string().is_empty());
        }
    }
}

pub(super) fn is_small(config: &Config) -> bool {
    let slots = config.services.iter().map(|service| service.slots() as usize * service.families().len());
    slots.sum::<usize>() <= SLOTS
}

fn begin(config: Config) {
    let now = Instant::now();
    let clocks = Clocks { now, wall: UNIX_EPOCH + Duration::from_secs(1 << 30) };
    let mut controller = Controller::new(config.clone(), KEY);
    let _ = controller.start(now);
    // Applying the same file a second time changes nothing.
    let services = controller.export(clocks).services;
    assert!(controller.change(Change::Reload(Box::new(config.clone())), now).is_ok(), "its own file is refused");
    assert_eq!(controller.export(clocks).services, services);
    let _ = controller.handle(Event::Tick, now);
    let state = controller.export(clocks);
    let mut again = Controller::restore(config, KEY, state.clone(), clocks).unwrap_or_else(|why| {
        unreachable!("its own state is refused: {why}");
    });
    let _ = again.start(now);
    assert_eq!(again.export(clocks).services, state.services);
}
