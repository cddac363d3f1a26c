//! Makes the archive and the checksums of a release.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::PROGRAMS;
use crate::command::{output, program, root, run};

/// The name of the file with the checksums.
pub(super) const CHECKSUMS: &str = "SHA256SUMS";

/// Files below the project's root, each with its directory in the archive.
const FILES: [(&str, &str); 14] = [
    ("README.md", ""),
    ("CHANGELOG.md", ""),
    ("LICENSE-APACHE", ""),
    ("LICENSE-MIT", ""),
    ("packaging/balancer.service", ""),
    ("packaging/Containerfile", ""),
    ("packaging/balancer.toml", ""),
    ("packaging/balancer-kubernetes.service", ""),
    ("packaging/balancer-kubernetes.default", ""),
    ("contrib/kubernetes/rbac.yaml", "contrib/kubernetes"),
    ("contrib/kubernetes/deployment.yaml", "contrib/kubernetes"),
    ("contrib/kubernetes/remote.yaml", "contrib/kubernetes"),
    ("docs/openapi.json", "docs"),
    ("contrib/systemd/exec-checks.conf", "contrib/systemd"),
];

/// Directories of generated files that the archive contains.
const DIRECTORIES: [&str; 2] = ["man", "completions"];

/// Makes `NAME.tar.gz` in `directory`. The archive contains the programs from `built`, and the documentation, samples
/// and generated files of the release.
pub(super) fn make(directory: &Path, name: &str, built: &Path, bill: &Path, time: &str) -> Result<()> {
    let tree = directory.join(name);
    fs::create_dir_all(&tree)?;
    for program in PROGRAMS {
        copy(&built.join(program), &tree.join(program))?;
    }
    copy(bill, &tree.join("sbom.cdx.json"))?;
    for (file, place) in FILES {
        let from = root().join(file);
        let file = from.file_name().context("a file needs a name")?.to_owned();
        let place = tree.join(place);
        fs::create_dir_all(&place)?;
        copy(&from, &place.join(file))?;
    }
    for generated in DIRECTORIES {
        fs::create_dir_all(tree.join(generated))?;
        let from = root().join("target/package").join(generated);
        for file in fs::read_dir(&from).with_context(|| from.display().to_string())? {
            let file = file?;
            copy(&file.path(), &tree.join(generated).join(file.file_name()))?;
        }
    }
    let archive = format!("{name}.tar");
    // Make the archive reproducible: the same bytes for every user and at every time.
    let mut tar = within(directory, "tar");
    tar.args(["--create", "--format=gnu", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    run(tar.args(["--mode=go=rX,u+rw,a-s", &format!("--mtime=@{time}"), "--file", &archive, name]))?;
    run(within(directory, "gzip").args(["--best", "--no-name", "--force", &archive]))?;
    Ok(fs::remove_dir_all(tree)?)
}

/// Writes the checksums of all files in `directory`.
pub(super) fn checksums(directory: &Path) -> Result<()> {
    let mut names =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    let sums = output(within(directory, "sha256sum").args(names)).context("`sha256sum` failed")?;
    Ok(fs::write(directory.join(CHECKSUMS), sums + "\n")?)
}

fn within(directory: &Path, name: &str) -> Command {
    let mut command = program(name);
    command.current_dir(directory);
    command
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string()).map(drop)
}
