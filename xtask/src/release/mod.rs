//! `cargo xtask release`: makes packages and archives for users who do not compile the programs.
//!
//! The release links programs statically with musl, so that they run on every distribution. The same sources, compiler
//! and tools produce the same bytes in every directory.

mod archive;
mod musl;
mod remap;
mod sbom;
mod signature;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use self::{musl::Toolchain, sbom::Library};
use crate::{
    arch::Arch,
    build::{Aim, KUBERNETES},
    command::{cargo_of, output, program, root, run},
    package::{PACKAGES, accompany, deb},
    setup::{Purpose, cross_compiler, nightly, setup},
};

/// The released programs, in the order of their packages.
const PROGRAMS: [&str; 2] = ["balancer", KUBERNETES];

/// The version number that all crates of the workspace have.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds the release for each of `architectures`, or for all architectures if `architectures` is empty. Puts packages,
/// archives, bills of materials and checksums into `target/dist`, and signs the checksums with `key` if the caller
/// gives a key.
pub(crate) fn release(architectures: &[Arch], key: Option<&Path>) -> Result<()> {
    let key = key.map(signature::key).transpose()?;
    let architectures = if architectures.is_empty() { &Arch::ALL[..] } else { architectures };
    setup(Purpose::Build)?;
    let compiler = nightly()?;
    let time = source_time()?;
    let wrapper = remap::wrapper(&compiler)?;
    let mut programs = Vec::new();
    for &arch in architectures {
        cross_compiler(arch)?;
        programs.push((arch, build(arch, &compiler, &wrapper, &time)?));
    }
    accompany(Aim::Release, &[])?;
    let directory = root().join("target/dist");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    }
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    for (arch, built) in programs {
        let mut libraries = Toolchain::make(arch)?.libraries_linked()?;
        libraries.push(standard_library(&compiler)?);
        pack(arch, &built, &libraries, &directory, &time)?;
    }
    archive::checksums(&directory)?;
    if let Some(key) = key {
        signature::sign(&directory.join(archive::CHECKSUMS), &key)?;
    }
    println!("{}:\n{}", directory.display(), fs::read_to_string(directory.join(archive::CHECKSUMS))?.trim_end());
    Ok(())
}

fn target(arch: Arch) -> String {
    format!("{}-unknown-linux-musl", arch.processor())
}

fn standard_library(compiler: &str) -> Result<Library> {
    let version =
        output(program("rustup").args(["run", compiler, "rustc", "--version"])).context("no answer from rustc")?;
    // The output of the compiler has the form `rustc VERSION (COMMIT DATE)`.
    let version = version.split_whitespace().nth(1).context("rustc names no version")?.to_owned();
    Ok(Library { name: "rust-std", version, licence: "MIT OR Apache-2.0" })
}

fn pack(arch: Arch, built: &Path, libraries: &[Library], directory: &Path, time: &str) -> Result<()> {
    let name = format!("balancer-{VERSION}-{}", arch.name());
    let bill = directory.join(format!("{name}.cdx.json"));
    fs::write(&bill, sbom::bill(&target(arch), libraries)?).with_context(|| bill.display().to_string())?;
    archive::make(directory, &name, built, &bill, time)?;
    for (package, program) in PACKAGES.into_iter().zip(PROGRAMS) {
        let file = directory.join(format!("{program}_{VERSION}-1_{}.deb", arch.debian()));
        let mut command = deb(package);
        command.args(["--no-strip", "--target", &target(arch), "--output"]).arg(&file);
        run(command.env("SOURCE_DATE_EPOCH", time))?;
    }
    Ok(())
}

/// The time, in seconds since 1970, that replaces every file's time: `SOURCE_DATE_EPOCH`, or the time of the last
/// commit.
fn source_time() -> Result<String> {
    let time = match env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => time,
        Err(_) => output(program("git").args(["log", "-1", "--format=%ct"]))
            .context("this is no git checkout: set SOURCE_DATE_EPOCH to the time of the sources")?,
    };
    ensure!(time.parse::<u32>().is_ok(), "SOURCE_DATE_EPOCH is not a number of seconds: {time}");
    Ok(time)
}

/// Builds the programs, and returns the directory with the programs.
fn build(arch: Arch, compiler: &str, wrapper: &Path, time: &str) -> Result<PathBuf> {
    let target = target(arch);
    let toolchain = Toolchain::make(arch)?;
    let variable = target.replace('-', "_");
    let mut command = cargo_of(compiler);
    command.args(["build", "--release", "--locked"]);
    for (package, program) in PACKAGES.into_iter().zip(PROGRAMS) {
        command.args(["--package", package, "--bin", program]);
    }
    command.args(["-Z", "build-std=std,panic_unwind", "--target", &target]);
    command.env("RUSTC_WRAPPER", wrapper).env("SOURCE_DATE_EPOCH", time);
    command.env(format!("CC_{variable}"), toolchain.compiler()).env(format!("AR_{variable}"), toolchain.archiver());
    let variable = format!("CARGO_TARGET_{}", variable.to_uppercase());
    command.env(format!("{variable}_LINKER"), toolchain.compiler());
    command.env(
        format!("{variable}_RUSTFLAGS"),
        "-Clink-self-contained=no -Ctarget-feature=+crt-static -Cdebuginfo=0 -Cstrip=symbols",
    );
    println!("Building for {target}");
    run(&mut command)?;
    Ok(root().join("target").join(target).join("release"))
}
