//! Compares the current commit's kernel program with another commit's kernel program.

use std::{env, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use balancer_bench::machine;

use crate::{
    gate::{Compared, Turns},
    report,
    serve::Server,
};

/// The result of comparing two kernel programs on one path.
pub(crate) struct Looked {
    /// The name of the compared path.
    pub(crate) path: String,
    /// The costs of the path with both programs, or the reason why there is no comparison.
    pub(crate) outcome: Result<Compared, String>,
}

impl Looked {
    fn is_slower(&self) -> bool {
        self.outcome.as_ref().is_ok_and(Compared::is_slower)
    }
}

/// The number of times that the benchmark loads both programs. Several loads are necessary, because the positions of
/// the programs in memory affect the costs of all paths. The number of loads is even, because the order in which the
/// kernel loads the programs also affects the results.
const LOADS: u32 = 4;

/// Measures the paths of the current program and of the program `before` alternately. Measures paths that became slower
/// a second time, and fails if the same paths are slower again.
pub(crate) fn perform(before: &Path, rounds: u32, only: &str) -> Result<()> {
    let own = env::current_exe().context("the running program's path is unknown")?;
    println!("{}", machine::describe());
    println!(
        "ns per packet, net of an empty program: the fastest run of {}, their ratio, and the turns' ratio with its middle half",
        rounds.div_ceil(LOADS) * LOADS
    );
    let first = look([before, &own], rounds, |path| path.contains(only))?;
    report::print_compared(&first);
    for (path, why) in first.iter().filter_map(|looked| Some((&looked.path, looked.outcome.as_ref().err()?))) {
        println!("not compared: {path}: {why}");
    }
    let suspects = slower(&first);
    if suspects.is_empty() {
        return Ok(());
    }
    println!("A second look at what is slower:");
    let second = look([before, &own], rounds, |path| suspects.contains(&path))?;
    report::print_compared(&second);
    let slower = slower(&second);
    if slower.is_empty() {
        return Ok(());
    }
    bail!(
        "slower than before by more than 7%, twice: {}\nIf this is what a change is worth, name its commit in tests/bench/baseline, \
         in a commit of its own whose message carries the table",
        slower.join("; ")
    )
}

fn slower(looked: &[Looked]) -> Vec<&str> {
    looked.iter().filter(|looked| looked.is_slower()).map(|looked| &*looked.path).collect()
}

/// Measures those `wanted` paths that both programs have, alternating between the programs.
fn look(programs: [&Path; 2], rounds: u32, wanted: impl Fn(&str) -> bool) -> Result<Vec<Looked>> {
    let mut all = Vec::new();
    for load in 0..LOADS {
        let [before, after] = programs;
        let (mut before, mut after) = if load % 2 == 0 {
            let [before, after] = Server::start([before, after])?;
            (before, after)
        } else {
            let [after, before] = Server::start([after, before])?;
            (before, after)
        };
        if load == 0 {
            all = common(&before.paths, &after.paths, &wanted);
        }
        for round in 0..rounds.div_ceil(LOADS) {
            for (path, turns) in &mut all {
                if let Ok(known) = turns
                    && let Err(why) = turn(&mut before, &mut after, round % 2 == 0, path, known)?
                {
                    *turns = Err(why);
                }
            }
        }
    }
    let looked = |(path, turns): (String, Result<Turns, String>)| {
        let outcome = turns.and_then(|turns| turns.compare().ok_or_else(|| "no turn was taken".to_owned()));
        Looked { path, outcome }
    };
    Ok(all.into_iter().map(looked).collect())
}

/// Returns the `wanted` paths, and for a path that only one program has, the reason why there is no comparison.
fn common(before: &[String], after: &[String], wanted: impl Fn(&str) -> bool) -> Vec<(String, Result<Turns, String>)> {
    let has = |paths: &[String], why: &str, path: &String| {
        (path.clone(), if paths.contains(path) { Ok(Turns::default()) } else { Err(why.to_owned()) })
    };
    let gone = before.iter().filter(|path| !after.contains(path)).map(|path| has(after, "a path that is gone", path));
    let all = after.iter().map(|path| has(before, "a new path", path)).chain(gone);
    all.filter(|(path, _)| wanted(path)).collect()
}

/// Runs a path once with each of the two programs. The order of the programs alternates, so that the advantage of
/// running second benefits both programs equally. The inner error is an error of the program `before`.
fn turn(
    before: &mut Server,
    after: &mut Server,
    is_before_first: bool,
    path: &str,
    turns: &mut Turns,
) -> Result<Result<(), String>> {
    let (one, other) = if is_before_first {
        let one = before.run(path)?;
        (one, after.run(path)?)
    } else {
        let other = after.run(path)?;
        (before.run(path)?, other)
    };
    let other = other.map_err(|why| anyhow!("{path}: {why}"))?;
    Ok(one.map(|one| turns.push(one, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_only_one_program_has_a_path_then_it_is_not_compared() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let all = common(&names(&["a", "b", "x"]), &names(&["b", "c", "x"]), |path| path != "x");
        let said: Vec<_> = all.iter().map(|(path, turns)| (&**path, turns.as_ref().err().map(|why| &**why))).collect();
        assert_eq!(said, [("b", None), ("c", Some("a new path")), ("a", Some("a path that is gone"))]);
    }
}
