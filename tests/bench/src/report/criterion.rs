//! Reads the results that Criterion has written for its benchmarks.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};

use super::document::Series;

/// The identity of a benchmark in Criterion's files.
#[derive(Deserialize)]
struct Identity {
    function_id: Option<String>,
    value_str: Option<String>,
}

/// The samples of a benchmark: the number of iterations of each sample, and the total time of the iterations in ns.
#[derive(Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Reads the series of the given groups of benchmarks from Criterion's directory. The samples in the series are in µs.
///
/// # Errors
/// Fails if a group is missing, or if a file in the directory is not from Criterion.
pub fn read(directory: &Path, groups: &[&str]) -> Result<Vec<Series>> {
    let mut series = Vec::new();
    for group in groups {
        let before = series.len();
        gather(&directory.join(group), group, &mut series)?;
        ensure!(series.len() > before, "{} has no benchmarks", directory.join(group).display());
    }
    Ok(series)
}

/// Collects the benchmarks of a group, which are one or two directories below the group.
fn gather(directory: &Path, group: &str, series: &mut Vec<Series>) -> Result<()> {
    let new = directory.join("new");
    if new.join("sample.json").is_file() {
        series.push(one(&new, group)?);
        return Ok(());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut below = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    below.retain(|path| path.is_dir());
    // Sorting the paths by length first orders numbers by value: 3, 100, 1000.
    below.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    below.iter().try_for_each(|path| gather(path, group, series))
}

fn one(new: &Path, group: &str) -> Result<Series> {
    let identity: Identity = parsed(&new.join("benchmark.json"))?;
    let sample: Sample = parsed(&new.join("sample.json"))?;
    let words = [identity.function_id, identity.value_str].into_iter().flatten().collect::<Vec<_>>();
    let samples = sample.times.iter().zip(&sample.iters).map(|(ns, iterations)| ns / iterations / 1e3).collect();
    Ok(Series::ours(group, words.join(", "), "µs", samples))
}

fn parsed<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what Criterion writes", file.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::read;

    #[test]
    fn when_samples_are_read_then_they_are_times_of_one_iteration() {
        let directory = tempfile::tempdir().unwrap();
        for (path, function) in
            [("build/equal/100", "\"equal\""), ("build/equal/3", "\"equal\""), ("failure/3", "null")]
        {
            let new = directory.path().join(path).join("new");
            fs::create_dir_all(&new).unwrap();
            let value = path.rsplit('/').next().unwrap();
            let identity = format!("{{\"function_id\":{function},\"value_str\":\"{value}\",\"group_id\":\"x\"}}");
            fs::write(new.join("benchmark.json"), identity).unwrap();
            fs::write(new.join("sample.json"), "{\"iters\":[1.0,4.0],\"times\":[5000.0,16000.0]}").unwrap();
        }
        let all = read(directory.path(), &["build", "failure"]).unwrap();
        let names: Vec<_> = all.iter().map(|series| (&*series.of, &*series.what)).collect();
        assert_eq!(names, [("build", "equal, 3"), ("build", "equal, 100"), ("failure", "3")]);
        assert_eq!(all[0].samples, [5.0, 4.0]);
        assert!(read(directory.path(), &["other"]).is_err());
    }
}
