//! `cargo xtask book`.

use anyhow::Result;

use crate::{
    command::{installed, program, root, run},
    setup::mdbook,
};

/// Makes HTML of the book.
pub(crate) fn book() -> Result<()> {
    if !installed("mdbook") {
        mdbook()?;
    }
    run(program("mdbook").arg("build").arg(root().join("docs")))
}
