//! Runs the same packets through the kernel program and the model, and reduces any disagreement to a short case.

mod kernel;
mod maps;
mod play;
mod shrink;

pub use kernel::Kernel;
pub(crate) use maps::{hold_newcomers, map_of};
pub use play::{Disagreement, Player, hex, play};
pub use shrink::shrink;
