//! `cargo xtask mutants`: breaks the central rules of steering, one at a time, in a copy of the checkout. The tests
//! must find each mutation of the code.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    command::{built, cargo, ensure_root, program, root},
    setup::{Purpose, setup},
};

const LIST: &str = "tests/mutations.json";

/// A single mutation of the code.
struct Mutation {
    name: String,
    file: PathBuf,
    /// The text that the mutation replaces; the text occurs once in the file.
    find: String,
    replace: String,
    by: Finder,
}

impl Mutation {
    /// The original file below `tree`.
    fn right_in(&self, tree: &Path) -> Result<String> {
        let path = tree.join(&self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let times = text.matches(&self.find).count();
        ensure!(times == 1, "{LIST}: {:?} is {times} times in {}", self.find, self.file.display());
        Ok(text)
    }
}

/// The tests that must find the mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finder {
    /// The comparison of the kernel program with its model.
    Contest,
    /// The comparison of the controller's core with its model, and the tests of drains and outages step by step.
    Core,
    /// The comparison of two implementations that merge a file with changes at run time.
    Merge,
    /// Tests that process packets on several CPUs at once.
    Contention,
    /// Races of packets with the controller, whose order a scheduler chooses, and changes between the reading of a
    /// value and the use of this value.
    Races,
    /// Events that occur between two parts of a pass over the client table, while the pass carries out a change.
    Rescan,
    /// The comparison of full validation with partial validation, for a configuration that shares services with a valid
    /// one.
    Valid,
    /// Packet tests of replies with cached next hops.
    Packets,
    /// Tests of the positions of the keys of listeners and of return rows.
    Placement,
    /// Tests of listeners and return rows in almost full tables.
    Tables,
}

impl Finder {
    fn of(word: &str) -> Result<Self> {
        match word {
            "contest" => Ok(Self::Contest),
            "core" => Ok(Self::Core),
            "merge" => Ok(Self::Merge),
            "contention" => Ok(Self::Contention),
            "races" => Ok(Self::Races),
            "rescan" => Ok(Self::Rescan),
            "valid" => Ok(Self::Valid),
            "packets" => Ok(Self::Packets),
            "placement" => Ok(Self::Placement),
            "tables" => Ok(Self::Tables),
            _ => bail!(
                "{LIST}: by = {word:?}; give \"contest\", \"core\", \"merge\", \"contention\", \"races\", \"rescan\", \"valid\", \"packets\", \"placement\" or \"tables\""
            ),
        }
    }

    const fn arguments(self) -> [&'static str; 3] {
        match self {
            Self::Contest => ["--package=balancer-tests", "--test=dataplane", "model::"],
            Self::Core => ["--package=balancer-control", "--lib", "--filterset=test(/(model|drain|outage)_test::/)"],
            Self::Merge => ["--package=balancer-control", "--lib", "merge_test::"],
            Self::Contention => ["--package=balancer-tests", "--test=dataplane", "contention::"],
            Self::Rescan => ["--package=balancer-tests", "--test=dataplane", "rescan::"],
            Self::Races => ["--package=balancer-dataplane", "--lib", "--filterset=test(/(races|grace|sweep)::/)"],
            Self::Packets => {
                ["--package=balancer-tests", "--test=packets", "--filterset=test(/^(next_hop_cache|default_hops)::/)"]
            }
            Self::Placement => ["--package=balancer-dataplane", "--lib", "placement::"],
            Self::Tables => ["--package=balancer-tests", "--test=packets", "full_tables::"],
            Self::Valid => ["--package=balancer-config", "--lib", "--filterset=test(/(validate|pieces)::/)"],
        }
    }
}

/// Applies each mutation whose name contains `only`, and fails if the tests miss a mutation.
pub(crate) fn mutants(only: &str) -> Result<()> {
    ensure_root("the contest with the kernel program", "mutants")?;
    setup(Purpose::Test)?;
    let mutations: Vec<Mutation> = list()?.into_iter().filter(|of| of.name.contains(only)).collect();
    ensure!(!mutations.is_empty(), "no mutation in {LIST} has {only:?} in its name");
    let copy = Copy::of_the_checkout()?;
    let mut finders: Vec<Finder> = Vec::new();
    for finder in mutations.iter().map(|of| of.by) {
        if !finders.contains(&finder) {
            copy.passes_as_it_is(finder)?;
            finders.push(finder);
        }
    }
    let mut survivors = Vec::new();
    for mutation in &mutations {
        let start = Instant::now();
        let found = !copy.with(mutation)?;
        let verdict = if found { "found" } else { "NOT FOUND" };
        println!("{verdict:9} after {:3.0} s: {}", start.elapsed().as_secs_f32(), mutation.name);
        if !found {
            survivors.push(mutation.name.as_str());
        }
    }
    ensure!(survivors.is_empty(), "not found: {}", survivors.join(", "));
    println!("{} mutations, all found", mutations.len());
    Ok(())
}

fn list() -> Result<Vec<Mutation>> {
    let text = fs::read_to_string(root().join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    let list: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("{LIST} is not a list"))?;
    list.iter().map(mutation).collect()
}

fn mutation(entry: &Value) -> Result<Mutation> {
    let text = |key: &str| {
        let text = entry.get(key).and_then(Value::as_str).map(str::to_owned);
        text.with_context(|| format!("{LIST}: an entry has no text {key:?}: {entry}"))
    };
    Ok(Mutation {
        name: text("name")?,
        file: text("file")?.into(),
        find: text("find")?,
        replace: text("replace")?,
        by: Finder::of(&text("by")?)?,
    })
}

/// A copy of the repository for mutations.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn of_the_checkout() -> Result<Self> {
        let place = built("mutants")?;
        let (tree, target) = (place.join("tree"), place.join("target"));
        let output = program("git").args(["ls-files", "-z"]).output().context("cannot start `git ls-files`")?;
        ensure!(output.status.success(), "`git ls-files` failed: this needs a checkout");
        let mut copies = HashSet::new();
        for file in output.stdout.split(|&byte| byte == 0).filter(|file| !file.is_empty()) {
            let file = Path::new(std::str::from_utf8(file)?);
            let (path, copy) = (root().join(file), tree.join(file));
            let Ok(bytes) = fs::read(&path) else { continue };
            store(&copy, &bytes)?;
            // Also copy the files' permissions, because the build executes scripts.
            fs::set_permissions(&copy, fs::metadata(&path)?.permissions())?;
            copies.insert(copy);
        }
        remove_others(&tree, &copies)?;
        Ok(Self { tree, target })
    }

    /// Returns whether the tests pass, and their output.
    fn tested(&self, finder: Finder) -> Result<(bool, String)> {
        let mut command: Command = cargo();
        command.args(["nextest", "run", "--locked"]).args(finder.arguments());
        command.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target).env("BALANCER_MODEL_PACKETS", "200000");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.output().context("cannot start `cargo nextest`")?;
        // Fail if a mutation does not compile, because no test has found the mutation.
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(text.contains("Summary ["), "no test ran: {text}");
        Ok((output.status.success(), text))
    }

    /// Checks that these tests pass without a mutation, because a test that fails by chance would seem to find
    /// mutations. After the tests have failed, stores the output and reports whether a second run of the tests fails as
    /// well.
    fn passes_as_it_is(&self, finder: Finder) -> Result<()> {
        let (passes, text) = self.tested(finder)?;
        if passes {
            return Ok(());
        }
        let kept = self.tree.with_file_name(format!("{finder:?}.log").to_lowercase());
        store(&kept, text.as_bytes())?;
        let again = if self.tested(finder)?.0 { "and pass when they are run again" } else { "twice" };
        bail!("the tests fail without any mutation, {again}; the first time, also in {}:\n{text}", kept.display());
    }

    /// Returns whether the tests pass with `mutation`.
    fn with(&self, mutation: &Mutation) -> Result<bool> {
        let path = self.tree.join(&mutation.file);
        let right = mutation.right_in(&self.tree)?;
        store(&path, right.replace(&mutation.find, &mutation.replace).as_bytes())?;
        let tested = self.tested(mutation.by);
        store(&path, right.as_bytes())?;
        Ok(tested?.0)
    }
}

/// Removes files below `directory` that are not among `files`, because Cargo would otherwise also build files at their
/// former paths.
fn remove_others(directory: &Path, files: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, files)?;
        } else if !files.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Writes a file only if its contents differ, so that Cargo does not rebuild it.
fn store(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let parent = path.parent().context("a file lies in a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_mutation_is_listed_then_its_text_occurs_once_in_its_file() -> Result<()> {
        list()?.iter().try_for_each(|mutation| mutation.right_in(root()).map(drop))
    }

    #[test]
    fn when_a_file_has_moved_then_its_old_copy_is_removed() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let [stays, goes] = ["stays.rs", "once/here.rs"].map(|name| directory.path().join(name));
        store(&stays, b"")?;
        store(&goes, b"")?;
        remove_others(directory.path(), &HashSet::from([stays.clone()]))?;
        assert!(stays.exists() && !goes.exists());
        Ok(())
    }
}
