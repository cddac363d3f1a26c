//! What a guest boots into: the tests, what they start, and a shell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Suite;
use crate::command::{built, cargo, output, program, run};

/// Process 1.
const INIT: &str = include_str!("init.sh");
/// Programs that the tests start, besides their own.
const TOOLS: [&str; 3] = ["ip", "ethtool", "busybox"];
/// Tests that need [`PROGRAM`].
const STARTS_PROGRAMS: &str = "e2e";
/// Built beside those tests.
const PROGRAM: &str = "balancer";
const DIRECTORIES: [&str; 9] = ["dev", "proc", "sys", "run", "tmp", "root", "bin", "tools", "tests/deps"];

/// Builds the suites and packs them; gives the archive.
pub(super) fn make(directory: &Path, suites: &[Suite]) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for part in DIRECTORIES {
        fs::create_dir_all(root.join(part))?;
    }
    let mut programs = vec![];
    let target = built("debug")?;
    if test_programs(suites).contains(STARTS_PROGRAMS) {
        run(cargo().args(["build", "--workspace", "--locked", "--quiet", "--bin", PROGRAM]))?;
        programs.push((target.join(PROGRAM), root.join("tests").join(PROGRAM)));
    }
    let built = executables(suites)?;
    for name in test_programs(suites) {
        let from = built.get(name).with_context(|| format!("cargo built no tests {name}"))?;
        programs.push((from.clone(), root.join("tests/deps").join(name)));
    }
    for tool in TOOLS {
        let found = output(program("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")]));
        programs.push((
            PathBuf::from(found.with_context(|| format!("{tool} is not installed"))?),
            root.join("tools").join(tool),
        ));
    }
    let mut libraries = BTreeSet::new();
    for (from, to) in &programs {
        libraries.extend(linked(from));
        run(program("strip").arg("-o").arg(to).arg(from))?;
    }
    for library in libraries {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(&library, to).with_context(|| library.display().to_string())?;
    }
    symlink("/tools/busybox", root.join("bin/sh"))?;
    fs::write(root.join("suites"), suites.iter().map(line).collect::<String>())?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = directory.join("tests.cpio");
    pack(&root, &archive)?;
    fs::remove_dir_all(root)?;
    Ok(archive)
}

fn test_programs(suites: &[Suite]) -> BTreeSet<&'static str> {
    suites.iter().map(|suite| suite.program).collect()
}

/// How the guest's shell runs a suite.
fn line(suite: &Suite) -> String {
    let Suite { name, program, only, environment } = suite;
    let environment = environment.join(" ");
    format!("suite {name} env {environment} /tests/deps/{program} --test-threads 1 --nocapture {only}\n")
}

/// Builds the suites' programs.
fn executables(suites: &[Suite]) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo();
    // The whole workspace, so that the dependencies are built with the features that all other builds use.
    command.args(["test", "--workspace", "--locked", "--quiet", "--no-run", "--message-format", "json"]);
    command.args(test_programs(suites).into_iter().flat_map(|program| ["--test", program]));
    let built = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(built.status.success(), "building the tests failed");
    let messages = String::from_utf8_lossy(&built.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| executable(&message)).collect())
}

/// The name of the tests, and the program, that a message of cargo tells of.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let target = &message["target"];
    let tests = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    Some((target["name"].as_str().filter(|_| tests)?.to_owned(), message["executable"].as_str()?.into()))
}

/// The libraries that a program is linked with.
fn linked(binary: &Path) -> Vec<PathBuf> {
    let listed = output(program("ldd").arg(binary)).unwrap_or_default();
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Packs a directory for the kernel to unpack.
pub(super) fn pack(directory: &Path, archive: &Path) -> Result<()> {
    let list = output(program("find").arg(".").current_dir(directory)).context("`find` failed")?;
    let file = fs::File::create(archive).with_context(|| archive.display().to_string())?;
    let mut command = program("cpio");
    command.args(["--create", "--format=newc", "--quiet"]).current_dir(directory).stdin(Stdio::piped()).stdout(file);
    let mut child = command.spawn().context("starting cpio")?;
    child.stdin.take().context("cpio has no input")?.write_all(format!("{list}\n").as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "packing {} failed ({status})", directory.display());
    Ok(())
}
