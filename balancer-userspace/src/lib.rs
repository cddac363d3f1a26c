//! The controller and command line of the balancer.
//!
//! `config` turns a file into valid types, `core` decides without I/O, `shell` does what the core says, `api` is the
//! JSON both ends of the control socket speak, `cli` is the command line, `book` its manual.

pub mod api;
pub mod book;
pub mod cli;
pub mod config;
pub mod core;
pub mod shell;
mod words;
