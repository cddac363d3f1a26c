//! Compiles the kernel program with whichever BPF toolchain `cargo xtask setup` found or installed.

use std::{env, process::Command};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The rustup name under which set-up links a system compiler that brings its own `core` for BPF.
const LINKED_TOOLCHAIN: &str = "bpf-core";

fn main() -> Result<()> {
    let root = format!("{}/../balancer-ebpf", env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR not set")?);
    println!("cargo:rerun-if-changed=../balancer-common");
    println!("cargo:rerun-if-changed=../Cargo.lock");

    // SAFETY: a build script's `main` runs before any other thread exists.
    unsafe { env::set_var("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", format!("{root}/bpf-linker.sh")) };
    let toolchain = if linked_toolchain_exists() {
        // SAFETY: as above.
        unsafe {
            // Lets this one crate use its unstable feature; the value 1 would switch build-std on.
            env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
        Toolchain::Custom(LINKED_TOOLCHAIN)
    } else {
        Toolchain::Nightly
    };
    aya_build::build_ebpf([Package { name: "balancer-ebpf", root_dir: &root, ..Default::default() }], toolchain)
        .context("building the kernel program failed; `cargo xtask setup` installs what it needs")
}

fn linked_toolchain_exists() -> bool {
    Command::new("rustup")
        .args(["run", LINKED_TOOLCHAIN, "rustc", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}
