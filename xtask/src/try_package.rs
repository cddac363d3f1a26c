//! `cargo xtask package --try`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    build::{Aim, KUBERNETES},
    command::{built, ensure_root, program, root, run},
    package::{BALANCER, contents, stripped},
    setup::machine,
};

const TRIAL: &str = "try-package";
/// The default Debian release for trying the package.
pub(crate) const SUITE: &str = "bookworm";

/// Makes the package of programs for `aim`, and a package with a later version, and tries both packages on a machine
/// with Debian's `suite` and systemd.
pub(crate) fn try_package(suite: &str, aim: Aim) -> Result<()> {
    ensure_root("trying the package", "package --try")?;
    contents(aim, &[TRIAL, KUBERNETES])?;
    machine()?;
    let directory = root().join("target/package/try");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let upgrade = directory.join("upgrade.deb");
    run(stripped(BALANCER, aim).args(["--deb-revision", "2", "--output"]).arg(&upgrade))?;
    let kubernetes = directory.join("kubernetes.deb");
    run(stripped(KUBERNETES, aim).arg("--output").arg(&kubernetes))?;
    // Make this package last, because each packaging step replaces the previous package.
    run(&mut stripped(BALANCER, aim))?;
    let mut made = fs::read_dir(root().join("target/debian"))?.flatten().map(|entry| entry.path());
    let package = made.find(|path| is_the_balancers(path));
    let mut command = program(built("debug")?.join(TRIAL));
    command.arg("--package").arg(package.context("no package in target/debian")?).arg("--upgrade").arg(upgrade);
    command.arg("--kubernetes").arg(kubernetes);
    run(command.args(["--suite", suite]).arg("--directory").arg(directory.join("machine")))
}

/// Whether a file is the balancer's own package, rather than a related package.
fn is_the_balancers(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("balancer_"))
        && path.extension().is_some_and(|extension| extension == "deb")
}
