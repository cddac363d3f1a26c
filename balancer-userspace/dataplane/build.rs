//! Compiles the kernel program with the BPF toolchain that `cargo xtask setup` found or installed.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The name of the rustup toolchain under which set-up links a system compiler that contains its own `core` for BPF.
const LINKED_TOOLCHAIN: &str = "bpf-core";

/// The name of the nightly rustup toolchain that compiles the kernel program if there is no such system compiler.
const PINNED_TOOLCHAIN: &str = include_str!("nightly");

fn main() -> Result<()> {
    let root = format!("{}/../../balancer-ebpf", env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR not set")?);
    println!("cargo:rerun-if-changed=../../balancer-common");
    println!("cargo:rerun-if-changed=../../Cargo.lock");

    let output = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR not set")?);
    // The directory OUT_DIR is four levels below the target directory.
    let target = output.ancestors().nth(4).context("OUT_DIR is not below a target directory")?;
    // SAFETY: the `main` of a build script runs before any other thread exists.
    unsafe {
        env::set_var("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", format!("{root}/bpf-linker.sh"));
        // Builds, checks and documentation each have a different OUT_DIR, but all of them use this one kernel program.
        env::set_var("CARGO_BUILD_BUILD_DIR", target.join("bpf"));
        // Incremental compilation splits the program into parts whose functions the compiler inlines differently, and
        // the verifier rejects the result.
        env::set_var("CARGO_INCREMENTAL", "0");
        // Cargo shows the output of a build script as warnings, which suits errors but not progress messages.
        env::set_var("CARGO_TERM_QUIET", "true");
    };
    let pinned = PINNED_TOOLCHAIN.trim();
    let toolchain = if toolchain_exists(LINKED_TOOLCHAIN) {
        // SAFETY: the `main` of a build script runs before any other thread exists.
        unsafe {
            // The variable lets these crates use inline assembly; the value 1 would switch build-std on.
            env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,balancer_ebpf");
        }
        Toolchain::Custom(LINKED_TOOLCHAIN)
    } else if toolchain_exists(pinned) {
        Toolchain::Custom(pinned)
    } else {
        // Set-up has found that the nightly compiler is the same compiler, or that no other compiler is available.
        Toolchain::Nightly
    };
    aya_build::build_ebpf([Package { name: "balancer-ebpf", root_dir: &root, ..Default::default() }], toolchain)
        .context("building the kernel program failed; `cargo xtask setup` installs what it needs")
}

fn toolchain_exists(name: &str) -> bool {
    Command::new("rustup")
        .args(["run", name, "rustc", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}
