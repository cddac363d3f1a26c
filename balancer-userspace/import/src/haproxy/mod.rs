//! HAProxy: `listen`, `frontend` and `backend`.

mod convert;
mod parse;
mod server;

pub(crate) use convert::convert;
