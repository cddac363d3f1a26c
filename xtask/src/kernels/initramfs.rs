//! The archive that a guest boots: the tests, the programs that they start, and a shell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Suite, tools};
use crate::{
    arch::Arch,
    command::{built, cargo, output, program, run},
    setup::cross_libraries,
};

/// The guest's process 1, a shell script.
const INIT: &str = include_str!("init.sh");
/// The tests that need [`PROGRAM`].
const STARTS_PROGRAMS: &str = "e2e";
/// The program that cargo builds with the tests `e2e`; a suite runs this program.
const PROGRAM: &str = "balancer";
const DIRECTORIES: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "root", "tools", "tests/deps"];

/// Builds the test suites for a processor, packs them, and returns the path of the archive.
pub(super) fn make(directory: &Path, arch: Arch, suites: &[Suite]) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for part in DIRECTORIES {
        fs::create_dir_all(root.join(part))?;
    }
    let builder = Builder::new(arch)?;
    let mut programs = vec![];
    if suites.iter().any(|suite| [STARTS_PROGRAMS, PROGRAM].contains(&suite.program)) {
        run(builder.cargo("build").args(["--bin", PROGRAM]))?;
        programs.push((builder.built()?.join(PROGRAM), root.join("tests").join(PROGRAM)));
    }
    let built = builder.tests(suites)?;
    for name in test_programs(suites) {
        let from = built.get(name).with_context(|| format!("cargo built no tests {name}"))?;
        programs.push((from.clone(), root.join("tests/deps").join(name)));
    }
    for (from, to) in &programs {
        run(builder.strip().arg("-o").arg(to).arg(from))?;
        if !builder.is_foreign {
            tools::copy_libraries(from, &root)?;
        }
    }
    if builder.is_foreign {
        tools::unpack(arch, directory, &root)?;
    } else {
        tools::copy(&root)?;
        fs::create_dir_all(root.join("bin"))?;
    }
    let shell = root.join("bin/sh");
    if fs::symlink_metadata(&shell).is_ok() {
        fs::remove_file(&shell)?;
    }
    symlink("/tools/busybox", shell)?;
    fs::write(root.join("suites"), suites.iter().map(line).collect::<String>())?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = directory.join("tests.cpio");
    pack(&root, &archive)?;
    fs::remove_dir_all(root)?;
    Ok(archive)
}

/// A build for a processor, with static linking if this machine has a different processor.
struct Builder {
    arch: Arch,
    is_foreign: bool,
    /// Rust's name of the target.
    target: String,
}

impl Builder {
    fn new(arch: Arch) -> Result<Self> {
        let is_foreign = !arch.is_this_machines();
        let target = format!("{}-unknown-linux-gnu", arch.processor());
        if is_foreign {
            cross_libraries(arch, &target)?;
        }
        Ok(Self { arch, is_foreign, target })
    }

    /// The build covers the whole workspace, so that dependencies have the same features as in all other builds.
    fn cargo(&self, what: &str) -> Command {
        let mut command = cargo();
        command.args([what, "--workspace", "--locked", "--quiet"]);
        if self.is_foreign {
            let variable = format!("CARGO_TARGET_{}", self.target.to_uppercase().replace('-', "_"));
            command.args(["--target", &self.target]);
            command.env(format!("{variable}_LINKER"), self.binutil("gcc"));
            command.env(format!("{variable}_RUSTFLAGS"), "-Ctarget-feature=+crt-static");
        }
        command
    }

    /// The directory in which cargo puts the built programs.
    fn built(&self) -> Result<PathBuf> {
        if self.is_foreign { Ok(built(&self.target)?.join("debug")) } else { built("debug") }
    }

    fn binutil(&self, name: &str) -> String {
        format!("{}-linux-gnu-{name}", self.arch.processor())
    }

    fn strip(&self) -> Command {
        if self.is_foreign { program(self.binutil("strip")) } else { program("strip") }
    }

    /// Builds the programs of the test suites.
    fn tests(&self, suites: &[Suite]) -> Result<BTreeMap<String, PathBuf>> {
        let mut command = self.cargo("test");
        command.args(["--no-run", "--message-format", "json"]);
        command.args(test_programs(suites).into_iter().flat_map(|program| ["--test", program]));
        let built = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
        ensure!(built.status.success(), "building the tests failed");
        let messages = String::from_utf8_lossy(&built.stdout);
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(messages.filter_map(|message| executable(&message)).collect())
    }
}

fn test_programs(suites: &[Suite]) -> BTreeSet<&'static str> {
    suites.iter().map(|suite| suite.program).filter(|program| *program != PROGRAM).collect()
}

/// The shell command by which the guest runs a suite.
fn line(suite: &Suite) -> String {
    let Suite { name, program, only, environment } = suite;
    let environment = environment.join(" ");
    if *program == PROGRAM {
        return format!("suite {name} env {environment} /tests/{program} {only}\n");
    }
    format!("suite {name} env {environment} /tests/deps/{program} --test-threads 1 --nocapture {only}\n")
}

/// The name and the path of the test program that a message of cargo describes.
fn executable(message: &Value) -> Option<(String, PathBuf)> {
    let target = &message["target"];
    let tests = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    Some((target["name"].as_str().filter(|_| tests)?.to_owned(), message["executable"].as_str()?.into()))
}

/// Packs a directory in the kernel's archive format.
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
