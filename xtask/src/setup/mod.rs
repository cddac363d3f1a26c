//! `cargo xtask setup`: finds the requirements of each task, and installs missing requirements.

mod bpf;
mod install;
mod node;
mod packages;
mod python;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    command::{installed, output, program},
};
use install::Installer;

/// The purpose of a set-up. Each purpose includes all purposes that precede it in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compiling the programs.
    Build,
    /// Running the balancer in network namespaces.
    Run,
    /// Running the tests that a change must pass.
    Test,
    /// Running all other checks that a change must pass.
    Ci,
    /// Running the tests and checks of a release.
    Release,
}

/// Installs what `cargo xtask package --try` needs to boot a separate machine.
pub(crate) fn machine() -> Result<()> {
    Installer::new().tools(&packages::MACHINES)
}

/// Installs the requirements of virtual machines with other kernels, for the processor `arch`.
pub(crate) fn guests(arch: Arch) -> Result<()> {
    let mut installer = Installer::new();
    installer.tools(&[packages::emulator(arch)])?;
    installer.tools(&packages::NAMESPACES)?;
    installer.tools(&packages::INTERFACES)?;
    installer.tools(&packages::GUESTS)
}

/// Installs the programs that benchmarks compare with the balancer.
pub(crate) fn classics() -> Result<()> {
    let mut installer = Installer::new();
    installer.servers(&packages::CLASSICS)?;
    installer.files(&packages::CLASSICS_PARTS)
}

/// Installs the signing program.
pub(crate) fn signing() -> Result<()> {
    Installer::new().tools(&packages::SIGNING)
}

/// Installs the programs that run next to several balancers: etcd and routing daemons.
pub(crate) fn fleet() -> Result<()> {
    Installer::new().servers(&packages::FLEET)
}

/// Installs the session lab's programs. The installation starts no services.
pub(crate) fn session_lab() -> Result<()> {
    let mut installer = Installer::new();
    installer.servers(&packages::SERVERS)?;
    installer.servers(&packages::FLEET)?;
    installer.servers(&packages::SESSIONS)?;
    installer.files(&packages::SESSION_LAB)?;
    node::modules(&mut installer)
}

/// Installs a linker for programs for another processor.
pub(crate) fn cross_compiler(arch: Arch) -> Result<()> {
    let processor = arch.processor();
    let compiler = format!("{processor}-linux-gnu-gcc");
    if installed(&compiler) {
        return Ok(());
    }
    let package = if arch.is_this_machines() {
        "gcc".to_owned()
    } else {
        format!("gcc-{}-linux-gnu", processor.replace('_', "-"))
    };
    Installer::new().packages(&[&package]).with_context(|| format!("{compiler} is missing"))
}

/// Installs Rust's standard library and glibc, for compiling tests for another processor.
pub(crate) fn cross_libraries(arch: Arch, target: &str) -> Result<()> {
    cross_compiler(arch)?;
    let mut installer = Installer::new();
    let package = match arch {
        Arch::X86_64 => "libc6-dev-amd64-cross",
        Arch::Arm64 => "libc6-dev-arm64-cross",
    };
    installer.files(&[(&format!("/usr/{}-linux-gnu/lib/libc.a", arch.processor()), package)])?;
    let has = output(program("rustup").args(["target", "list", "--installed"])).context("no answer from rustup")?;
    if has.lines().any(|line| line == target) {
        return Ok(());
    }
    let what = format!("Rust's standard library for {target}");
    installer.step(&what, None, program("rustup").args(["target", "add", target]))
}

/// Returns the rustup name of a nightly with the sources of the standard library, and installs the nightly if it is
/// missing.
pub(crate) fn nightly() -> Result<String> {
    bpf::nightly(&mut Installer::new())
}

/// Installs the program that makes Debian packages.
pub(crate) fn cargo_deb() -> Result<()> {
    soon(&mut Installer::new(), "cargo-deb", "3.8.0", &[])
}

/// Installs the program that runs fuzz targets.
pub(crate) fn cargo_fuzz() -> Result<()> {
    soon(&mut Installer::new(), "cargo-fuzz", "0.13.1", &[])
}

/// Installs the spell checker, and returns the spell checker's path.
pub(crate) fn typos() -> Result<PathBuf> {
    const NAME: &str = "typos";
    if installed(NAME) { Ok(NAME.into()) } else { python::package(&mut Installer::new(), NAME, "1.52.0") }
}

const MDBOOK: &str = "0.5.4";

/// Installs `mdbook`, which makes HTML of the book, without its server and its search.
pub(crate) fn mdbook() -> Result<()> {
    soon(&mut Installer::new(), "mdbook", MDBOOK, &["--no-default-features"])
}

/// Installs a program that runs only for seconds; cargo therefore compiles the program quickly, without optimization.
fn soon(installer: &mut Installer, name: &str, version: &str, arguments: &[&str]) -> Result<()> {
    if installed(name) {
        return Ok(());
    }
    let arguments: Vec<&str> = [&["--debug"], arguments].concat();
    installer.cargo(name, version, &arguments, &[("CARGO_PROFILE_DEV_DEBUG".to_owned(), "false".to_owned())])
}

/// Installs missing requirements. If no requirement is missing, the function returns quickly and prints nothing.
pub(crate) fn setup(purpose: Purpose) -> Result<()> {
    let mut installer = Installer::new();
    if purpose >= Purpose::Run {
        installer.tools(&packages::NAMESPACES)?;
    }
    let compiler = bpf::ensure(&mut installer)?;
    if purpose >= Purpose::Test {
        installer.tools(&packages::INTERFACES)?;
        installer.tools(&packages::BROWSER)?;
        installer.servers(&packages::SERVERS)?;
        installer.servers(&packages::CLASSICS)?;
        installer.debian_files(&packages::CLASSICS_PARTS)?;
        installer.servers(&packages::FLEET)?;
        installer.tools(&packages::CLIENTS)?;
        installer.tools(&packages::ENGINE)?;
        installer.tools(&packages::SIGNING)?;
        // Tests use aioquic as a client of HTTP/3.
        python::package(&mut installer, "aioquic", "1.7.2")?;
        if !installed("cargo-nextest") {
            installer.cargo("cargo-nextest", "0.9.143", &[], &[])?;
        }
    }
    if purpose >= Purpose::Ci {
        if let Some(arch) = Arch::of_this_machine() {
            guests(arch)?;
        }
        soon(&mut installer, "cargo-deny", "0.20.2", &[])?;
        soon(&mut installer, "mdbook", MDBOOK, &["--no-default-features"])?;
        soon(&mut installer, "cargo-machete", "0.9.2", &[])?;
        typos()?;
    }
    if purpose == Purpose::Release {
        installer.servers(&packages::WHOLE)?;
        installer.servers(&packages::SESSIONS)?;
        node::modules(&mut installer)?;
        machine()?;
        cargo_deb()?;
    }
    println!("Set up: the kernel program is compiled with {compiler}");
    Ok(())
}
