//! Replaces this machine's paths in the compilers' outputs.

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::command::{output, program, root};

/// Makes a wrapper that cargo starts instead of rustc, also when it builds the kernel program. The wrapper calls rustc
/// and replaces the paths of sources, crates and compiler by names.
pub(super) fn wrapper(compiler: &str) -> Result<PathBuf> {
    let sysroot = output(program("rustup").args(["run", compiler, "rustc", "--print", "sysroot"]));
    let mut names = vec![
        (root().to_owned(), "/balancer".to_owned()),
        (sysroot.context("no answer from rustc")?.into(), "/rust".to_owned()),
    ];
    // The name of cargo's directory for downloaded crates depends on the download server.
    let crates = cargo_home()?.join("registry/src");
    for registry in fs::read_dir(&crates).with_context(|| crates.display().to_string())? {
        names.push((registry?.path(), "/crates".to_owned()));
    }
    let options: Vec<String> =
        names.iter().map(|(path, name)| format!("'--remap-path-prefix={}={name}'", path.display())).collect();
    let script = format!("#!/bin/sh\nexec \"$@\" {}\n", options.join(" "));
    let path = root().join("target/remap");
    fs::write(&path, script).with_context(|| path.display().to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}
