//! Fuzz targets: functions that take arbitrary bytes, one for each kind of input. libFuzzer runs the targets (`fuzz/`),
//! and `corpora` in `tests/dataplane` replays the inputs that libFuzzer kept.
//!
//! A target panics if it finds a fault.

mod api;
mod checks;
mod config;
mod contest;
mod fleet;
mod mutation;
mod netlink;
mod notes;
mod state;
mod words;

use std::path::PathBuf;

pub use api::api;
pub use balancer_packet_model::parsing::compare as packet;
pub use checks::checks;
pub use config::config;
pub use contest::contest;
pub use fleet::fleet;
pub use netlink::netlink;
pub use notes::notes;
pub use state::state;
pub use words::words;

/// A function that takes arbitrary bytes.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 10] = [
    ("api", api),
    ("checks", checks),
    ("config", config),
    ("contest", contest),
    ("fleet", fleet),
    ("netlink", netlink),
    ("notes", notes),
    ("packet", packet),
    ("state", state),
    ("words", words),
];

#[must_use]
pub fn corpus(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target)
}

/// Creates a runtime that never really waits: the clock of the runtime stands still while tasks run, and jumps when all
/// tasks wait.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    let built = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    built.unwrap_or_else(|error| unreachable!("no runtime without I/O: {error}"))
}
