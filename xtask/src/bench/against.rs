//! Compares the speeds of the kernel programs of this tree and of another commit: `cargo xtask bench path --against
//! REV`, and the gate of `cargo xtask ci`.
//!
//! The other commit's files are in target/baseline/tree, without the repository's history. The other commit has a
//! target directory of its own, which initially contains the dependencies that this tree has already built. This tree's
//! benchmark measures the kernel programs of both commits, so that both measurements have the same packet paths. If
//! this tree's benchmark does not compile in the other commit, the other commit's own benchmark measures the other
//! commit's kernel program.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::PATH;
use crate::command::{built, cargo, output, program, root, run};

/// The file that names the commit with which the gate compares this tree.
const BASELINE: &str = "tests/bench/baseline";
/// The directory of the benchmarks.
const BENCHMARKS: &str = "tests/bench";

/// The source files that determine the kernel program and how the balancer loads it.
const PROGRAM: [&str; 6] = [
    "balancer-common",
    "balancer-ebpf",
    "balancer-userspace/dataplane",
    "Cargo.lock",
    "Cargo.toml",
    "rust-toolchain.toml",
];

/// A commit with which this tree is compared.
pub(crate) struct Against {
    commit: String,
}

impl Against {
    pub(crate) fn revision(name: &str) -> Result<Self> {
        let found = output(git().args(["rev-parse", "--verify", "--quiet"]).arg(format!("{name}^{{commit}}")));
        let commit = found.with_context(|| {
            format!("{name} names no commit of this repository; a shallow clone lacks most: `git fetch --unshallow`")
        })?;
        Ok(Self { commit })
    }

    /// Returns the commit named in [`BASELINE`].
    pub(crate) fn baseline() -> Result<Self> {
        let text = fs::read_to_string(root().join(BASELINE)).with_context(|| format!("cannot read {BASELINE}"))?;
        Self::revision(text.trim()).with_context(|| format!("the commit in {BASELINE}"))
    }

    /// Whether the kernel program of this tree may differ from the commit's.
    pub(crate) fn differs(&self) -> Result<bool> {
        let unchanged = git().args(["diff", "--quiet", &self.commit, "--"]).args(PROGRAM).status()?.success();
        let added = output(git().args(["ls-files", "--others", "--exclude-standard", "--"]).args(PROGRAM));
        Ok(!unchanged || !added.context("`git ls-files` failed")?.is_empty())
    }

    /// Builds the other commit's benchmark.
    pub(crate) fn build(&self) -> Result<()> {
        let place = Place::new()?;
        self.extract(&place)?;
        place.seed()?;
        place.overlay()?;
        if let Err(error) = place.build() {
            println!("{error:#}\nThis tree's benchmark does not fit {}; measured by its own:", self.commit);
            self.extract_anew(&place)?;
            place.build()?;
        }
        Ok(())
    }

    /// Compares the results of `own`, this tree's benchmark, with the benchmark that [`Self::build`] has made.
    pub(crate) fn compare(&self, own: &Path, options: &[String]) -> Result<()> {
        println!("before: {}, after: this tree", self.commit);
        run(program(own).arg("--against").arg(Place::new()?.benchmark()).args(options))
    }

    /// Keeps an already extracted tree of the commit, so that cargo has to rebuild little.
    fn extract(&self, place: &Place) -> Result<()> {
        let is_there = fs::read_to_string(place.stamp()).is_ok_and(|commit| commit == self.commit);
        if is_there { Ok(()) } else { self.extract_anew(place) }
    }

    fn extract_anew(&self, place: &Place) -> Result<()> {
        for old in [place.stamp(), place.archive()] {
            gone(fs::remove_file(&old)).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        gone(fs::remove_dir_all(place.tree())).context("cannot remove the tree of before")?;
        fs::create_dir_all(place.tree()).with_context(|| format!("cannot make {}", place.tree().display()))?;
        run(git().args(["archive", "--format", "tar", "--output"]).arg(place.archive()).arg(&self.commit))?;
        // Give the extracted files the current time. With the commit's times, existing build outputs would seem newer
        // than the files.
        run(program("tar")
            .arg("--extract")
            .arg("--touch")
            .arg("--file")
            .arg(place.archive())
            .arg("-C")
            .arg(place.tree()))?;
        fs::write(place.stamp(), &self.commit).context("noting which commit it is")
    }
}

/// The directory with the files of the other commit.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        Ok(Self(built("baseline")?))
    }

    fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    fn archive(&self) -> PathBuf {
        self.0.join("tree.tar")
    }

    /// The file that contains the commit's name.
    fn stamp(&self) -> PathBuf {
        self.0.join("commit")
    }

    fn target(&self) -> PathBuf {
        self.0.join("target")
    }

    fn benchmark(&self) -> PathBuf {
        self.target().join("debug").join(PATH)
    }

    /// Replaces the other commit's benchmarks by this tree's benchmarks.
    fn overlay(&self) -> Result<()> {
        let place = self.tree().join(BENCHMARKS);
        gone(fs::remove_dir_all(&place)).with_context(|| format!("cannot remove {}", place.display()))?;
        run(program("cp").arg("--recursive").arg(root().join(BENCHMARKS)).arg(place))
    }

    fn build(&self) -> Result<()> {
        let mut command = cargo();
        command.args(["build", "--package", "balancer-bench", "--bin", PATH]).current_dir(self.tree());
        // Cargo builds the other commit only once, so debug information for only the project's crates is enough.
        command.args(["--config", "profile.dev.debug=false"]).env("CARGO_INCREMENTAL", "0");
        run(command.env("CARGO_TARGET_DIR", self.target()))
    }

    /// Copies the dependencies that this tree has already built, so that the other commit's first build can use the
    /// copies.
    fn seed(&self) -> Result<()> {
        if self.target().exists() {
            return Ok(());
        }
        let own = built("debug")?;
        let own = own.parent().context("a profile lies in a target directory")?;
        for profile in ["debug", "bpf/release", "bpf/bpfel-unknown-none/release"] {
            let (from, to) = (own.join(profile), self.target().join(profile));
            // Compilers replace these files instead of changing them, so hard links can share the files.
            share(&from.join("deps"), &to.join("deps"), &["--link"], |path| {
                path.extension().and_then(OsStr::to_str).is_some_and(|end| ["rlib", "rmeta", "so", "d"].contains(&end))
            })?;
            for folder in [".fingerprint", "build"] {
                share(&from.join(folder), &to.join(folder), &[], |_| true)?;
            }
        }
        Ok(())
    }
}

/// Copies the `wanted` files of a folder with their times, except those of the project's own crates.
fn share(from: &Path, to: &Path, options: &[&str], wanted: impl Fn(&Path) -> bool) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if wanted(&path) && !path.file_name().and_then(OsStr::to_str).is_none_or(is_own) {
            all.push(path);
        }
    }
    for some in all.chunks(256) {
        run(program("cp").arg("--archive").args(options).args(some).arg("-t").arg(to))?;
    }
    Ok(())
}

/// Whether a file in a target directory belongs to one of the project's own crates.
fn is_own(name: &str) -> bool {
    let name = name.strip_prefix("lib").unwrap_or(name);
    ["balancer", "xtask"].iter().any(|own| name.starts_with(own))
}

fn git() -> Command {
    program("git")
}

/// Ignores the error of a removal if the file did not exist.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether the kernel program of this tree may differ from the baseline's; also true if there is no baseline.
pub(crate) fn program_may_differ() -> bool {
    may_differ(Against::baseline())
}

fn may_differ(baseline: Result<Against>) -> bool {
    baseline.and_then(|baseline| baseline.differs()).unwrap_or(true)
}

/// Builds the baseline if the kernel program may differ. This long part of the gate may run in parallel with the tests.
pub(crate) fn build_baseline() -> Result<()> {
    let baseline = Against::baseline()?;
    if baseline.differs()? { baseline.build() } else { Ok(()) }
}

/// Compares the speed of this tree's kernel program with the baseline's, by the unoptimized [`PATH`], which is built
/// together with the tests. An unoptimized benchmark suffices: every build optimizes the kernel program, and the
/// benchmark measures only the kernel's time.
pub(crate) fn check_paths() -> Result<()> {
    let baseline = Against::baseline()?;
    if !baseline.differs()? {
        println!("The kernel program is that of {}: nothing to compare", baseline.commit);
        return Ok(());
    }
    baseline.compare(&built("debug")?.join(PATH), &[])
}

#[cfg(test)]
mod tests {
    use super::{Against, is_own, may_differ};

    #[test]
    fn when_files_are_of_the_projects_own_crates_then_they_are_not_shared() {
        for name in ["libbalancer_control-01ab.rlib", "balancer-ebpf-77", "balancer_bench-1.d", "xtask-0"] {
            assert!(is_own(name), "{name}");
        }
        for name in ["libaya-01ab.rlib", "libc-77", "tokio-1"] {
            assert!(!is_own(name), "{name}");
        }
    }

    #[test]
    fn when_there_is_no_baseline_then_the_kernel_program_may_differ() {
        assert!(may_differ(Against::revision("no-such-branch")));
    }

    #[test]
    fn when_a_name_is_no_commit_then_it_is_refused() {
        let error = Against::revision("no-such-branch").err().unwrap().to_string();
        assert!(error.starts_with("no-such-branch names no commit of this repository"), "{error}");
    }
}
