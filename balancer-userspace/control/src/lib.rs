//! The decisions of the controller, without I/O, clock or tokio: events are the input, commands are the output.
//!
//! The caller passes the time as the `now` of [`controller::Controller::handle`]. `balancer-userspace/clippy.toml` bans
//! `std::time::Instant::now` and `std::time::SystemTime::now`, so that no code of this crate reads a clock by accident;
//! the daemon uses `tokio::time::Instant::now().into_std()`.
//!
//! Begin with [`io`] (events, changes, commands) and [`controller`], whose `stage.rs` fixes the order of commands. `maglev`,
//! `succession` and `table` make base tables, successors and live tables; `service` holds what is known about a service and
//! its backends. `state` is the saved state, `merge` a reload, `plan` a change that is only computed. The model in
//! `model_test` says what all of them must agree on.

pub mod absent;
pub mod agreed;
pub mod applied;
pub mod as_far;
pub mod bits;
pub mod bounded;
pub mod controller;
pub mod counting;
pub mod default_hop;
pub mod discover;
pub mod features;
pub mod fingerprint;
pub mod fleet;
pub mod forgets;
pub mod full;
#[cfg(test)]
mod full_test;
pub mod health;
pub mod history;
pub mod io;
pub mod keys;
pub mod last_changes;
pub mod locate;
pub mod maglev;
pub mod merge;
pub mod moves;
pub mod next_step;
pub mod plan;
pub mod rates;
pub mod ratios;
pub mod readiness;
pub mod refused;
pub mod room;
pub mod rules;
pub mod run_time;
pub mod search;
pub mod served;
pub mod service;
pub mod shares;
pub mod silence;
pub mod snapshot;
pub mod standing;
pub mod state;
pub mod table;
pub mod top;

mod by_id;
mod ids;
mod next_hops;
mod outage;
pub mod report;
mod runners_up;
mod sources;
mod succession;

#[cfg(test)]
mod agent_test;
#[cfg(test)]
mod as_far_test;
#[cfg(test)]
mod bounded_test;
#[cfg(test)]
mod controller_test;
#[cfg(test)]
mod default_hop_test;
#[cfg(test)]
mod discover_test;
#[cfg(test)]
mod doubt_test;
#[cfg(test)]
mod drain_test;
#[cfg(test)]
mod drop_ins_test;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod forced_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod outage_test;
#[cfg(test)]
mod precomputed_test;
#[cfg(test)]
mod room_test;
#[cfg(test)]
mod rules_test;
#[cfg(test)]
mod run_time_test;
#[cfg(test)]
mod share_test;
#[cfg(test)]
mod slow_start_test;
#[cfg(test)]
mod snat_drain_test;
#[cfg(test)]
mod state_test;
#[cfg(test)]
mod vips_test;
