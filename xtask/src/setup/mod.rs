//! `cargo xtask setup`: finds what each chore needs, and installs what is missing of it.

mod bpf;
mod install;

use anyhow::{Context as _, Result};

use crate::command::installed;
use install::Installer;

/// What a set-up is for; each takes what those before it take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compiling.
    Build,
    /// Running in network namespaces.
    Run,
    /// All tests.
    Test,
    /// What else a change must pass.
    Ci,
}

/// Makes network namespaces: program, package.
const NETWORK_TOOLS: [(&str, &str); 2] = [("ip", "iproute2"), ("ethtool", "ethtool")];

/// A browser, for the tests of the page: program, package.
const BROWSER: [(&str, &str); 2] = [("chromium", "chromium"), ("chromedriver", "chromium-driver")];

/// What boots a Debian in a directory: program, package.
const MACHINE_TOOLS: [(&str, &str); 2] = [("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container")];

/// Installs what a machine of its own takes.
pub(crate) fn machine() -> Result<()> {
    tools(&mut Installer::default(), &MACHINE_TOOLS)
}

/// What boots other kernels: program, package.
const GUEST_TOOLS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("dpkg-deb", "dpkg"),
    ("strip", "binutils"),
];

/// Installs what virtual machines with other kernels take.
pub(crate) fn guests() -> Result<()> {
    let mut installer = Installer::default();
    tools(&mut installer, &NETWORK_TOOLS)?;
    tools(&mut installer, &GUEST_TOOLS)
}

/// Installs what makes Debian packages.
pub(crate) fn cargo_deb() -> Result<()> {
    Installer::default().cargo("cargo-deb", "3.8.0", &[], &[])
}

/// Installs what makes HTML of the book: without its server and its search, and compiled to be there soon.
pub(crate) fn mdbook() -> Result<()> {
    let arguments = ["--no-default-features", "--debug"];
    let quickly = [("CARGO_PROFILE_DEV_DEBUG".to_owned(), "false".to_owned())];
    Installer::default().cargo("mdbook", "0.5.4", &arguments, &quickly)
}

/// Servers, or tools that come with one, that tests alone start: program, package.
const SERVERS: [(&str, &str); 2] = [("nginx", "nginx-light"), ("promtool", "prometheus")];

/// Installs what is missing. Quick and quiet when nothing is.
pub(crate) fn setup(purpose: Purpose) -> Result<()> {
    let mut installer = Installer::default();
    if purpose >= Purpose::Run {
        tools(&mut installer, &NETWORK_TOOLS)?;
    }
    let compiler = bpf::ensure(&mut installer)?;
    if purpose >= Purpose::Test {
        for_tests(&mut installer)?;
    }
    if purpose == Purpose::Ci {
        tools(&mut installer, &GUEST_TOOLS)?;
    }
    if purpose == Purpose::Ci && !installed("cargo-deny") {
        // It runs for a second: compiled to be there soon.
        let quickly = [("OPT_LEVEL", "1"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "false")];
        let quickly = quickly.map(|(key, value)| (format!("CARGO_PROFILE_RELEASE_{key}"), value.to_owned()));
        installer.cargo("cargo-deny", "0.20.2", &[], &quickly)?;
    }
    if purpose == Purpose::Ci && !installed("mdbook") {
        mdbook()?;
    }
    println!("Set up: the kernel program is compiled with {compiler}");
    Ok(())
}

fn for_tests(installer: &mut Installer) -> Result<()> {
    tools(installer, &BROWSER)?;
    let missing = missing(&SERVERS);
    if !missing.is_empty() {
        installer.servers(&missing).with_context(|| {
            format!("install by hand, as root, and disable the service: apt-get install {}", missing.join(" "))
        })?;
    }
    if !installed("cargo-nextest") {
        installer.cargo("cargo-nextest", "0.9.143", &[], &[])?;
    }
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
