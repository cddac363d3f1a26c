//! `cargo xtask ci`.

use anyhow::Result;

use crate::{
    book::book,
    command::{cargo, ensure_root, run, shown},
    kernels,
    setup::{Purpose, setup},
    test::test,
};

/// Checks everything that a change must pass, the cheapest first, and ends with the tests.
pub(crate) fn ci() -> Result<()> {
    ensure_root("the test suite", "ci")?;
    setup(Purpose::Ci)?;
    let checks: [&[&str]; 4] = [
        &["fmt", "--all", "--check"],
        &["deny", "--locked", "check", "bans", "licenses", "sources"],
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        &["doc", "--workspace", "--no-deps", "--locked"],
    ];
    for check in checks {
        let mut command = cargo();
        command.args(check);
        eprintln!("$ {}", shown(&command));
        run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    book()?;
    kernels::load()?;
    test()
}
