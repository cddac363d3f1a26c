//! `cargo xtask fuzz`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    command::{built, cargo_of, ensure_root, root, run},
    setup::{Purpose, cargo_fuzz, nightly, setup},
};

/// The limits on a corpus in the repository: the number of files, and the bytes of each file.
const FILES: usize = 200;
const LONGEST: u64 = 4096;

/// Runs each fuzz target for this number of minutes, and stops at the first failure. libFuzzer prints the path of the
/// failing input. libFuzzer stores new inputs below the target directory. With `keep`, a few small inputs with the
/// coverage of all inputs replace the corpus in the repository.
pub(crate) fn fuzz(only: Option<&str>, minutes: u64, keep: bool) -> Result<()> {
    ensure_root("the kernel program among the targets", "fuzz")?;
    setup(Purpose::Build)?;
    let nightly = nightly()?;
    cargo_fuzz()?;
    let all = targets()?;
    let targets: Vec<&String> = all.iter().filter(|name| only.is_none_or(|only| only == *name)).collect();
    ensure!(!targets.is_empty(), "there is no target {:?}; there are {}", only.unwrap_or_default(), all.join(", "));
    // Use the crate versions of the workspace's lock file; cargo adds missing crates.
    fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock")).context("cannot copy Cargo.lock")?;
    let work = built("fuzz")?;
    for name in targets {
        let (known, found) = (root().join("fuzz/corpus").join(name), work.join("corpus").join(name));
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        println!("{name}: {minutes} minutes; what is found is kept in {}", found.display());
        let limits = [format!("-max_total_time={}", 60 * minutes), format!("-max_len={LONGEST}")];
        let mut command = cargo_fuzz_run(&nightly, &work, name);
        command.args([&found, &known]).arg("--").args(limits).args(["-timeout=20", "-rss_limit_mb=4096"]);
        run(command.arg("-print_final_stats=1"))?;
        if keep {
            keep_few(&nightly, &work, name, &[&known, &found])?;
        }
    }
    Ok(())
}

fn cargo_fuzz_run(nightly: &str, work: &Path, target: &str) -> Command {
    let mut command = cargo_of(nightly);
    command.args(["fuzz", "run", "--target-dir"]).arg(work.join("target")).arg(target);
    command
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Replaces the first corpus of `corpora` by the fewest inputs that have the same coverage as all corpora together.
fn keep_few(nightly: &str, work: &Path, target: &str, corpora: &[&PathBuf]) -> Result<()> {
    let few = work.join("few").join(target);
    if few.exists() {
        fs::remove_dir_all(&few)?;
    }
    fs::create_dir_all(&few)?;
    let mut command = cargo_fuzz_run(nightly, work, target);
    let limit = format!("-max_len={LONGEST}");
    run(command.arg(&few).args(corpora).args(["--", "-set_cover_merge=1", "-timeout=20", &limit]))?;
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&few)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    let [corpus, ..] = corpora else { return Ok(()) };
    fs::remove_dir_all(corpus)?;
    fs::create_dir_all(corpus)?;
    let total = files.len();
    if total > FILES {
        // Choose files of all lengths evenly.
        files = (0..FILES).map(|index| files[index * total / FILES].clone()).collect();
    }
    for (_, file) in &files {
        let name = file.file_name().context("a file has a name")?;
        fs::copy(file, corpus.join(name))?;
    }
    println!("{target}: {} of {total} inputs kept in {}", files.len(), corpus.display());
    Ok(())
}
