//! Converts keepalived's `virtual_server`s with their groups and checkers. keepalived continues to run VRRP.

mod check;
mod convert;
mod group;
mod lines;
mod parse;
mod real;
mod vrrp;

pub(crate) use convert::convert;
