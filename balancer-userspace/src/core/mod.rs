//! What the controller decides. No I/O, no clock, no tokio: events in, commands out.
//!
//! Time comes in as the `now` of every call. So that nobody reads a clock here by accident,
//! `clippy.toml` bans `std::time::Instant::now` and `std::time::SystemTime::now` in the whole workspace; the shell
//! uses `tokio::time::Instant::now().into_std()`.

pub mod io;
pub mod keys;
pub mod maglev;
pub mod table;
