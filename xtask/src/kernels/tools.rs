//! The system programs that the tests start in a guest.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    command::{output, program, run},
    debian::Apt,
};

/// The programs' names, and the Debian packages that contain the programs.
const TOOLS: [(&str, &str); 3] = [("ip", "iproute2"), ("ethtool", "ethtool"), ("busybox", "busybox-static")];
/// The Debian release from which programs for another processor come.
const SUITE: &str = "trixie";
/// Directories that are links into `usr` since Debian bookworm.
const MERGED: [&str; 3] = ["bin", "sbin", "lib"];

/// Copies this machine's programs into a guest's directory, with their libraries.
pub(super) fn copy(root: &Path) -> Result<()> {
    for (tool, _) in TOOLS {
        let found = output(program("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")]));
        let found = PathBuf::from(found.with_context(|| format!("{tool} is not installed"))?);
        let to = root.join("tools").join(tool);
        fs::copy(&found, &to).with_context(|| found.display().to_string())?;
        copy_libraries(&found, root)?;
    }
    Ok(())
}

/// Copies the libraries that a program of this machine uses.
pub(super) fn copy_libraries(of: &Path, root: &Path) -> Result<()> {
    let listed = output(program("ldd").arg(of)).unwrap_or_default();
    let libraries: BTreeSet<&Path> =
        listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new).collect();
    for library in libraries {
        let to = root.join(library.strip_prefix("/").unwrap_or(library));
        if !to.exists() {
            fs::create_dir_all(to.parent().unwrap_or(root))?;
            fs::copy(library, to).with_context(|| library.display().to_string())?;
        }
    }
    Ok(())
}

/// Unpacks Debian's programs for another processor, with their dependencies. The downloaded packages stay in
/// `directory`.
pub(super) fn unpack(arch: Arch, directory: &Path, root: &Path) -> Result<()> {
    let apt = Apt::new(&directory.join("tools"), &[SUITE], Some(arch.debian()))?;
    for merged in MERGED {
        fs::create_dir_all(root.join("usr").join(merged))?;
        if !root.join(merged).exists() {
            symlink(format!("usr/{merged}"), root.join(merged))?;
        }
    }
    for package in apt.download_with_dependencies(&TOOLS.map(|(_, package)| package))? {
        run(program("dpkg-deb").arg("--extract").arg(&package).arg(root))?;
    }
    for (tool, package) in TOOLS {
        let places = ["usr/bin", "usr/sbin"].map(|place| format!("{place}/{tool}"));
        let place = places.iter().find(|place| root.join(place).exists());
        let place = place.with_context(|| format!("there is no {tool} in {package}"))?;
        symlink(format!("../{place}"), root.join("tools").join(tool))?;
    }
    Ok(())
}
