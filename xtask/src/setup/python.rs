//! Installs packages from Python's package index in a separate directory below the target directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{install::Installer, packages};
use crate::command::{built, program};

/// Installs a package unless it is already installed, and returns the path of the package's program.
pub(super) fn package(installer: &mut Installer, name: &str, version: &str) -> Result<PathBuf> {
    let place = built("tools")?;
    if !is_there(&place, &format!("{name}-{version}.dist-info")) {
        installer.tools(&packages::PYTHON)?;
        if !place.join("bin/pip").exists() {
            let mut venv = program("python3");
            installer.step("a place for Python's packages", None, venv.args(["-m", "venv"]).arg(&place))?;
        }
        let mut pip = program(place.join("bin/pip"));
        let wanted = format!("{name}=={version}");
        pip.args(["install", "--quiet", "--disable-pip-version-check", &wanted]);
        installer.step(name, None, &mut pip)?;
    }
    Ok(place.join("bin").join(name))
}

/// Whether `record` exists in the library directory of some version of Python below `place`.
fn is_there(place: &Path, record: &str) -> bool {
    let versions = fs::read_dir(place.join("lib")).into_iter().flatten().flatten();
    versions.into_iter().any(|version| version.path().join("site-packages").join(record).exists())
}
