//! keepalived: `virtual_server`s, their groups and checkers. VRRP stays with keepalived.

mod check;
mod convert;
mod group;
mod lines;
mod parse;
mod real;
mod vrrp;

pub(crate) use convert::convert;
