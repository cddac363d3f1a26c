//! Finds a compiler and a linker for the kernel program, in one of two ways:
//!
//! 1. rustup's nightly of the date in `balancer-userspace/dataplane/nightly`, which compiles `core` for BPF from the
//!    `rust-src` component; if the nightly of that date is not available, the installed nightly;
//! 2. Debian's compiler with its prebuilt `core` for BPF, linked into rustup as `bpf-core`.
//!
//! `balancer-userspace/dataplane/build.rs` prefers the linked toolchain, then the nightly of that date, then any
//! nightly.

use std::{fmt, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::install::Installer;
use crate::command::{cargo, installed, output, program};

/// The rustup name of the nightly that compiles the kernel program.
const PINNED: &str = include_str!("../../../balancer-userspace/dataplane/nightly");

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

/// The program that downloads prebuilt programs from the crate registry.
const BINSTALL: &str = "cargo-binstall";

/// LLVM versions that can build this version of the linker.
const LINKER_LLVM: [u32; 3] = [21, 22, 23];

/// The installation directory of Debian's compiler.
const DEBIAN_SYSROOT: &str = "/usr";

/// Debian's compiler with `core` for BPF.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// Packages for building the linker, in addition to LLVM.
const LINKER_PACKAGES: [&str; 3] = ["libzstd-dev", "zlib1g-dev", "g++"];

/// The time limit of an installation, including rustup's own retries.
const COMPONENT_LIMIT: Duration = Duration::from_secs(60);
const TOOLCHAIN_LIMIT: Duration = Duration::from_secs(300);

/// A compiler for BPF, by its rustup name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compiler {
    /// The nightly of the date in the file.
    Pinned,
    /// Any other installed nightly.
    Nightly,
    Linked,
}

impl Compiler {
    fn name(self) -> &'static str {
        match self {
            Self::Pinned => PINNED.trim(),
            Self::Nightly => "nightly",
            Self::Linked => "bpf-core",
        }
    }

    fn rustc(self) -> Command {
        let mut command = program("rustup");
        command.args(["run", self.name(), "rustc"]);
        command
    }

    /// Whether rustup has the toolchain.
    fn exists(self) -> bool {
        output(self.rustc().arg("--version")).is_some()
    }

    /// Whether the toolchain has `core` for BPF, either as sources or prebuilt.
    fn has_core(self) -> bool {
        output(self.rustc().args(["--print", "sysroot"])).is_some_and(|sysroot| match self {
            Self::Pinned | Self::Nightly => Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir(),
            Self::Linked => has_prebuilt_core(&sysroot),
        })
    }

    /// Whether rustup's toolchain is the nightly with the pinned date, under any name.
    fn is_pinned(self) -> bool {
        let sysroot = output(self.rustc().args(["--print", "sysroot"])).unwrap_or_default();
        let manifest = Path::new(&sysroot).join("lib/rustlib/multirust-channel-manifest.toml");
        fs::read_to_string(manifest).is_ok_and(|text| date(&text) == PINNED.trim().strip_prefix("nightly-"))
    }

    fn llvm(self) -> Result<u32> {
        let version = output(self.rustc().arg("--version").arg("--verbose")).context("no answer from rustc")?;
        llvm_major(&version).with_context(|| format!("`rustc --version --verbose` names no LLVM version: {version}"))
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the rustup toolchain {}", self.name())
    }
}

/// Finds a compiler with a linker, or installs the missing parts.
pub(super) fn ensure(installer: &mut Installer) -> Result<Compiler> {
    ensure!(
        installed("rustup"),
        "rustup is missing: install Rust with rustup, the build asks it for a second compiler"
    );
    let preferred = if Compiler::Linked.exists() { Compiler::Linked } else { present() };
    if installed(LINKER) && preferred.has_core() && (preferred == Compiler::Linked || preferred.is_pinned()) {
        return Ok(preferred);
    }
    let no_nightly = match preferred {
        Compiler::Pinned | Compiler::Nightly => match install_nightly(installer) {
            Ok(compiler) => return Ok(compiler),
            Err(error) => error,
        },
        Compiler::Linked => anyhow!("the build prefers the toolchain {}, which is there", preferred.name()),
    };
    println!("No compiler for BPF by way of rustup: {no_nightly:#}");
    let Err(no_debian) = install_debian(installer) else { return Ok(Compiler::Linked) };
    println!("No compiler for BPF by way of Debian's packages: {no_debian:#}");
    // Compiling cargo-binstall takes minutes, and is useful only if cargo-binstall can afterwards download prebuilt
    // programs.
    if preferred.has_core() && !installed(BINSTALL) && install_binstall(installer).is_ok() && installed(LINKER) {
        return Ok(preferred);
    }
    bail!("no compiler for BPF could be installed\n{}", by_hand())
}

/// Returns the name of a nightly with its sources, and installs the nightly if it is missing.
pub(super) fn nightly(installer: &mut Installer) -> Result<String> {
    Ok(install_sources(installer)?.name().to_owned())
}

/// The nightly that `dataplane/build.rs` would use.
fn present() -> Compiler {
    if Compiler::Pinned.exists() || !Compiler::Nightly.exists() { Compiler::Pinned } else { Compiler::Nightly }
}

fn install_nightly(installer: &mut Installer) -> Result<Compiler> {
    let compiler = install_sources(installer)?;
    install_linker(installer, compiler.llvm()?)?;
    Ok(compiler)
}

fn install_sources(installer: &mut Installer) -> Result<Compiler> {
    let present = present();
    if !present.is_pinned() {
        let mut command = program("rustup");
        command.args(["toolchain", "install", PINNED.trim(), "--profile", "minimal", "--component", "rust-src"]);
        match installer.step("Rust nightly with its sources", Some(TOOLCHAIN_LIMIT), &mut command) {
            Ok(()) => return Ok(Compiler::Pinned),
            Err(error) if !present.exists() => return Err(error),
            Err(error) => println!("{error:#}; going on with {present}, which is of another date"),
        }
    }
    if !present.has_core() {
        let mut command = program("rustup");
        command.args(["component", "add", "rust-src", "--toolchain", present.name()]);
        installer.step("the sources of Rust nightly", Some(COMPONENT_LIMIT), &mut command)?;
    }
    Ok(present)
}

fn install_debian(installer: &mut Installer) -> Result<()> {
    installer.ensure_apt()?;
    if !has_prebuilt_core(DEBIAN_SYSROOT) {
        ensure!(installer.package_exists(DEBIAN_PACKAGES[1])?, "there is no package {}", DEBIAN_PACKAGES[1]);
        installer.packages(&DEBIAN_PACKAGES)?;
    }
    let version = output(program("/usr/bin/rustc").arg("--version").arg("--verbose")).context("no /usr/bin/rustc")?;
    install_linker(installer, llvm_major(&version).context("/usr/bin/rustc names no LLVM version")?)?;
    // Link Debian's compiler into rustup only as the last choice, because the build prefers the linked toolchain to a
    // nightly.
    if !Compiler::Linked.exists() {
        let mut command = program("rustup");
        command.args(["toolchain", "link", Compiler::Linked.name(), DEBIAN_SYSROOT]);
        installer.step("a name for Debian's compiler", None, &mut command)?;
    }
    ensure!(Compiler::Linked.has_core(), "the toolchain {} has no core for BPF", Compiler::Linked.name());
    Ok(())
}

/// Installs the linker for compilers that use version `llvm` of LLVM.
fn install_linker(installer: &mut Installer, llvm: u32) -> Result<()> {
    if installed(LINKER) {
        return Ok(());
    }
    if installed(BINSTALL) && download_linker(installer).is_ok() && installed(LINKER) {
        return Ok(());
    }
    build_linker(installer, llvm)
}

fn install_binstall(installer: &mut Installer) -> Result<()> {
    installer.step(BINSTALL, None, cargo().args(["install", "--locked", BINSTALL]))?;
    download_linker(installer)
}

/// Downloads a prebuilt linker, whose LLVM is newer than the LLVM of any compiler at the linker's release.
fn download_linker(installer: &mut Installer) -> Result<()> {
    let version = format!("{LINKER}@{LINKER_VERSION}");
    installer.step(&version, None, cargo().args(["binstall", "--no-confirm", &version]))
}

fn build_linker(installer: &mut Installer, llvm: u32) -> Result<()> {
    ensure!(LINKER_LLVM.contains(&llvm), "{LINKER} {LINKER_VERSION} knows no LLVM {llvm}");
    installer.ensure_apt()?;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let package = format!("llvm-{llvm}-dev");
    if !Path::new(&prefix).join("include/llvm-c").exists() {
        ensure!(installer.package_exists(&package)?, "there is no package {package}");
    }
    let packages: Vec<&str> = LINKER_PACKAGES.into_iter().chain([package.as_str()]).collect();
    installer.packages(&packages)?;
    let feature = format!("llvm-{llvm}");
    let variables = [(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix.clone()), ("LLVM_PREFIX".to_owned(), prefix)];
    installer.cargo(LINKER, LINKER_VERSION, &["--no-default-features", "--features", &feature], &variables)
}

fn has_prebuilt_core(sysroot: &str) -> bool {
    let library = Path::new(sysroot).join("lib/rustlib/bpfel-unknown-none/lib");
    library.read_dir().is_ok_and(|files| {
        files.flatten().any(|file| file.file_name().to_str().is_some_and(|name| name.starts_with("libcore-")))
    })
}

/// The date of a toolchain, from rustup's manifest.
fn date(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| line.strip_prefix("date = \"")?.strip_suffix('"'))
}

fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

fn by_hand() -> String {
    format!(
        "Install one by hand, either\n\
         \x20   rustup toolchain install {} --profile minimal --component rust-src\n\
         \x20   cargo install --locked {BINSTALL} && cargo binstall {LINKER}@{LINKER_VERSION}\n\
         or, on Debian, as root\n\
         \x20   apt-get update && apt-get install {} {} llvm-22-dev\n\
         \x20   LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 LLVM_PREFIX=/usr/lib/llvm-22 cargo install --locked {LINKER} --version {LINKER_VERSION} --no-default-features --features llvm-22\n\
         \x20   rustup toolchain link {} {DEBIAN_SYSROOT}",
        PINNED.trim(),
        DEBIAN_PACKAGES.join(" "),
        LINKER_PACKAGES.join(" "),
        Compiler::Linked.name(),
    )
}

#[cfg(test)]
mod tests {
    use super::{PINNED, date, llvm_major};

    #[test]
    fn when_a_manifest_is_parsed_then_the_nightlys_date_is_found() {
        assert_eq!(
            date("manifest-version = \"2\"\ndate = \"2026-05-20\"\n\n[pkg]\ndate = \"x\"\n"),
            Some("2026-05-20")
        );
        assert_eq!(date("manifest-version = \"2\"\n"), None);
        assert!(PINNED.starts_with("nightly-20"), "{PINNED}");
    }

    #[test]
    fn when_a_compiler_prints_its_version_then_that_of_llvm_is_found() {
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }
}
