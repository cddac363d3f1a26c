//! Converts nginx's `upstream`s, and the `server`s that pass connections to them.

mod block;
mod convert;
mod dump;
mod idle;
mod listen;
mod other;
mod parse;
mod upstream;

pub(crate) use convert::convert;
