//! `cargo xtask book`.

use anyhow::Result;

use crate::{
    command::{program, root, run},
    setup::mdbook,
};

/// Builds the book as HTML.
pub(crate) fn book() -> Result<()> {
    mdbook()?;
    run(program("mdbook").arg("build").arg(root().join("docs")))
}
