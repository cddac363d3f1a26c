//! Fuzzes the parsing of state files.

use std::{
    path::Path,
    time::{Duration, Instant, UNIX_EPOCH},
};

use arbitrary::Unstructured;
use balancer_config::{config::Config, file, names::BackendName, states::Admin};
use balancer_control::{
    controller::Controller,
    io::{Change, Event},
    state::{Clocks, SavedState, VERSION},
};
use balancer_daemon::untrusted;

use super::{
    config::{KEY, SLOTS},
    mutation,
};

/// The configuration that all targets use.
pub(super) const CONFIG: &str = include_str!("config.toml");

/// Parses `bytes` as a controller's state. The first byte selects the meaning of the remaining bytes:
/// - `=`: a whole state file;
/// - `@`: changes to a state that a controller has written;
/// - `&`: changes to the journal of a state that a controller has written;
/// - `+`: the whole journal of a state that a controller has written;
/// - any other byte: the body of a state file of the present version, to which the target adds the correct checksum.
///
/// If the state is valid, a controller must start with the state, and the state that the controller then writes must be
/// valid as well.
pub fn state(bytes: &[u8]) {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let read = match (how, std::str::from_utf8(rest)) {
        (b'@', _) => untrusted::state_file(changed(rest).as_bytes()),
        (b'&', _) => Ok(with_journal(changed_journal(rest).as_bytes())),
        (b'+', _) => Ok(with_journal(rest)),
        (b'=', _) | (_, Err(_)) => untrusted::state_file(rest),
        (_, Ok(body)) => untrusted::state_file(untrusted::sealed(VERSION, body).as_bytes()),
    };
    match read {
        Ok(state) if is_small(&state) => go_on(state),
        Ok(_) => {}
        Err(why) => assert!(!why.is_empty()),
    }
}

/// The checksum of the state file that belongs to the journals in this module.
const CHECKSUM: &str = "00000000";

fn with_journal(lines: &[u8]) -> SavedState {
    let begin = Instant::now();
    let mut state = served(begin).0.export(clocks(begin));
    if let Err(why) = untrusted::journal(&mut state, CHECKSUM, lines) {
        assert!(!why.is_empty());
    }
    state
}

/// Returns a controller that has just started, and the same controller after a few changes.
fn served(begin: Instant) -> (Controller, Controller) {
    let mut before = Controller::new(configured(), KEY);
    let _ = before.start(begin);
    let mut after = before.clone();
    let name = BackendName { service: "web".to_owned(), backend: "web2".to_owned() };
    for change in [
        Change::SetAdmin { name: name.clone(), admin: Admin::Drain, timeout: None },
        Change::Remove { name: BackendName { backend: "web1".to_owned(), ..name }, force: true },
    ] {
        let _ = after.change(change, begin);
    }
    (before, after)
}

/// Returns a journal of one line with a few changed values, and with the correct checksum.
fn changed_journal(bytes: &[u8]) -> String {
    let begin = Instant::now();
    let (before, after) = served(begin);
    let changes = serde_json::to_value(after.changes_since(&before, clocks(begin))).unwrap_or_default();
    let mut record = serde_json::json!({ "of": CHECKSUM, "number": 1, "changes": changes });
    let _ = mutation::vandalize(&mut Unstructured::new(bytes), &mut record);
    untrusted::sealed(VERSION, &record.to_string())
}

/// Returns the state file of a controller that has started, with a few changed values.
fn changed(bytes: &[u8]) -> String {
    let begin = Instant::now();
    let controller = served(begin).1;
    let mut json = serde_json::to_value(controller.export(clocks(begin))).unwrap_or_default();
    // If the input ends early, the remaining values stay unchanged.
    let _ = mutation::vandalize(&mut Unstructured::new(bytes), &mut json);
    untrusted::sealed(VERSION, &json.to_string())
}

fn clocks(now: Instant) -> Clocks {
    Clocks { now, wall: UNIX_EPOCH + Duration::from_secs(1 << 30) }
}

/// Parses the configuration that all targets share.
pub(super) fn configured() -> Config {
    match file::parse(Path::new("balancer.toml"), CONFIG.as_bytes()) {
        Ok((config, _)) => config,
        Err(errors) => unreachable!("{errors}"),
    }
}

pub(super) fn is_small(state: &SavedState) -> bool {
    let services = state.services.iter().map(|service| &service.settings).chain(&state.file);
    services.map(|service| service.slots() as usize).fold(0, usize::saturating_add) <= SLOTS
}

fn go_on(state: SavedState) {
    let now = Instant::now();
    let clocks = clocks(now);
    let Ok(mut controller) = Controller::restore(configured(), KEY, state, clocks) else { return };
    let _ = controller.start(now);
    for _ in 0..3 {
        let Some(deadline) = controller.next_deadline() else { break };
        let _ = controller.handle(Event::Tick, deadline.max(now));
    }
    let exported = controller.export(clocks);
    let text = serde_json::to_string(&exported).unwrap_or_default();
    let again = untrusted::state_file(untrusted::sealed(VERSION, &text).as_bytes());
    assert_eq!(again.as_ref().map(|again| &again.services), Ok(&exported.services), "not read as it was written");
    let restored = Controller::restore(configured(), KEY, exported, clocks);
    assert!(restored.is_ok(), "its own state is refused: {}", restored.err().unwrap_or_default());
}
