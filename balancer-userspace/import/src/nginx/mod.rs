//! nginx: `upstream`s and the `server`s that pass to them.

mod convert;
mod parse;

pub(crate) use convert::convert;
