//! `cargo xtask setup`: finds what building, running and testing need, and installs what is missing.

mod bpf;
mod install;

use anyhow::{Context as _, Result};

use crate::command::installed;
use install::Installer;

/// Programs from the system's packages: program, package.
const SYSTEM_TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("promtool", "prometheus"),
    // Large, for the tests of the page.
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
];

/// What boots a Debian in a directory: program, package.
const MACHINE_TOOLS: [(&str, &str); 2] = [("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container")];

/// Installs what a machine of its own takes.
pub(crate) fn machine() -> Result<()> {
    tools(&mut Installer::default(), &MACHINE_TOOLS)
}

/// Installs what makes Debian packages.
pub(crate) fn cargo_deb() -> Result<()> {
    Installer::default().cargo("cargo-deb", "3.8.0", &[], &[])
}

/// Servers that tests run as backends, started by the tests alone: program, package.
const SERVERS: [(&str, &str); 1] = [("nginx", "nginx-light")];

/// Installs what is missing. Quick and quiet when nothing is.
pub(crate) fn setup(ci: bool) -> Result<()> {
    let mut installer = Installer::default();
    tools(&mut installer, &SYSTEM_TOOLS)?;
    let missing = missing(&SERVERS);
    if !missing.is_empty() {
        installer.servers(&missing).with_context(|| {
            format!("install by hand, as root, and disable the service: apt-get install {}", missing.join(" "))
        })?;
    }
    let compiler = bpf::ensure(&mut installer)?;
    if !installed("cargo-nextest") {
        installer.cargo("cargo-nextest", "0.9.143", &[], &[])?;
    }
    if ci && !installed("cargo-deny") {
        // It runs for a second: compiled to be there soon.
        let quickly = [("OPT_LEVEL", "1"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "false")];
        let quickly = quickly.map(|(key, value)| (format!("CARGO_PROFILE_RELEASE_{key}"), value.to_owned()));
        installer.cargo("cargo-deny", "0.20.2", &[], &quickly)?;
    }
    println!("Set up: the kernel program is compiled with {compiler}");
    Ok(())
}

fn tools(installer: &mut Installer, tools: &[(&str, &'static str)]) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = || format!("install by hand, as root: apt-get update && apt-get install {}", missing.join(" "));
    installer.packages(&missing).with_context(by_hand)
}

/// The packages of those programs that are not there.
fn missing(tools: &[(&str, &'static str)]) -> Vec<&'static str> {
    tools.iter().filter(|(program, _)| !installed(program)).map(|&(_, package)| package).collect()
}
