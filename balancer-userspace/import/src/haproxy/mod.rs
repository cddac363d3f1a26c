//! Converts HAProxy's `listen`, `frontend` and `backend` sections.

mod bind;
mod check;
mod convert;
mod other;
mod parse;
mod proxy;
mod script;
mod server;
mod stick;

pub(crate) use convert::convert;
