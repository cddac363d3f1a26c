//! HAProxy: `listen`, `frontend` and `backend`.

mod bind;
mod check;
mod convert;
mod other;
mod parse;
mod proxy;
mod server;
mod stick;

pub(crate) use convert::convert;
