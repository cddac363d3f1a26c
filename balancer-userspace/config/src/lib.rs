//! The configuration of the balancer: types whose values are always valid, the words that users write and see, and the
//! validation of files.
//!
//! Begin with [`config`] and `service`, the types, and `validate`, which makes a `Valid` list of services. `file` reads
//! TOML key by key with line numbers. `discover`, `target_list`, `dns` and `etcd` describe lists of backends that change at
//! run time.

#![warn(missing_docs)]

mod addresses;
pub mod agent;
pub mod bounded;
mod check;
pub mod config;
pub mod control;
pub mod deny;
pub mod discover;
pub mod dns;
pub mod etcd;
pub mod file;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod fleet;
pub mod header;
pub mod limits;
pub mod listeners;
pub mod names;
mod primes;
mod protocol;
mod question;
pub mod questions;
pub mod quic;
pub mod renames;
pub mod rule;
mod service;
pub mod shared;
pub mod snat;
pub mod states;
pub mod table_size;
mod target;
mod target_list;
pub mod validate;
pub mod value;
mod vip;
pub mod words;
