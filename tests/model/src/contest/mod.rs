//! The kernel program against the model: the same packets through both, and how little it takes to make them disagree.

mod kernel;
mod maps;
mod play;
mod shrink;

pub use kernel::Kernel;
pub(crate) use maps::{hold_newcomers, map_of};
pub use play::{Disagreement, Player, hex, play};
pub use shrink::shrink;
