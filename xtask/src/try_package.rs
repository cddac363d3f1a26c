//! `cargo xtask package --try`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    build::Aim,
    command::{built, ensure_root, program, root, run},
    package::{contents, stripped},
    setup::machine,
};

const TRIAL: &str = "try-package";
/// The default Debian release for trying the package.
pub(crate) const SUITE: &str = "bookworm";

/// Makes the package of programs for `aim` and a later version of it, and tries both on a machine with Debian's `suite`
/// and systemd.
pub(crate) fn try_package(suite: &str, aim: Aim) -> Result<()> {
    ensure_root("trying the package", "package --try")?;
    contents(aim, &[TRIAL])?;
    machine()?;
    let directory = root().join("target/package/try");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let upgrade = directory.join("upgrade.deb");
    run(stripped(aim).args(["--deb-revision", "2", "--output"]).arg(&upgrade))?;
    // Last, because each step replaces the previous package.
    run(&mut stripped(aim))?;
    let mut made = fs::read_dir(root().join("target/debian"))?.flatten().map(|entry| entry.path());
    let package = made.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let mut command = program(built("debug")?.join(TRIAL));
    command.arg("--package").arg(package.context("no package in target/debian")?).arg("--upgrade").arg(upgrade);
    run(command.args(["--suite", suite]).arg("--directory").arg(directory.join("machine")))
}
