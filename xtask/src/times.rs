//! How long the parts of `cargo xtask ci` and the slowest tests took.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::command::{built, root};

/// The number of slowest tests that the report names.
const SLOWEST: usize = 20;

/// The time that each finished part has taken, in the order of the parts.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<(&'static str, Duration)>);

impl Times {
    /// Performs a part, and remembers how long the part took.
    pub(crate) fn of<T>(&mut self, part: &'static str, perform: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = perform();
        self.0.push((part, begin.elapsed()));
        done
    }

    /// Prints the seconds of each part and the slowest tests, and keeps both in the file `ci-PROFILE.txt` of the target
    /// directory. `profile` is the profile with which nextest has run.
    pub(crate) fn report(&self, profile: &str) -> Result<()> {
        let junit = root().join("target/nextest").join(profile).join("junit.xml");
        let tests = fs::read_to_string(&junit).with_context(|| format!("cannot read {}", junit.display()))?;
        let text = self.text(&tests);
        let path = built(&format!("ci-{profile}.txt"))?;
        fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        let shown = path.strip_prefix(root()).map_or(path.as_path(), Path::new);
        println!("\n{text}\n{} has this as well", shown.display());
        Ok(())
    }

    fn text(&self, junit: &str) -> String {
        let mut text = "Seconds by part:\n".to_owned();
        for (part, time) in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:8.1}  {part}", time.as_secs_f64());
        }
        let mut tests: Vec<(f64, String)> = cases(junit).collect();
        let sum: f64 = tests.iter().map(|(seconds, _)| seconds).sum();
        tests.sort_by(|one, other| other.0.total_cmp(&one.0));
        let _ = writeln!(text, "\nThe slowest of {} tests, which together took {sum:.0} s:", tests.len());
        for (seconds, name) in tests.iter().take(SLOWEST) {
            let _ = writeln!(text, "{seconds:8.1}  {name}");
        }
        text
    }
}

/// The seconds and the name of each test in nextest's report. nextest writes each test as one element `testcase`; names
/// of tests and programs contain no characters that XML escapes.
fn cases(junit: &str) -> impl Iterator<Item = (f64, String)> {
    junit.split("<testcase ").skip(1).filter_map(|rest| {
        let (tag, _) = rest.split_once('>')?;
        let attribute = |name: &str| tag.split_once(&format!("{name}=\""))?.1.split('"').next();
        let program = attribute("classname")?;
        let name = tag.strip_prefix("name=\"")?.split('"').next()?;
        Some((attribute(" time")?.parse().ok()?, format!("{program} {name}")))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{SLOWEST, Times};

    #[test]
    fn when_tests_have_run_then_the_slowest_are_named_with_the_seconds_of_each_part() {
        let mut junit = "<testsuites><testsuite name=\"a\">".to_owned();
        for number in 0..30 {
            junit += &format!(
                "<testcase name=\"b::when_{number}\" classname=\"a::e2e\" timestamp=\"2026\" time=\"{number}.5\">\n\
                 <system-out>time=\"99\"</system-out></testcase>"
            );
        }
        let text = Times(vec![("build", Duration::from_millis(1250)), ("tests", Duration::from_secs(60))]).text(&junit);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["Seconds by part:", "     1.2  build", "    60.0  tests"]);
        assert_eq!(lines[4], "The slowest of 30 tests, which together took 450 s:");
        assert_eq!((lines[5], lines.len()), ("    29.5  a::e2e b::when_29", 5 + SLOWEST));
        assert_eq!(lines.last(), Some(&"    10.5  a::e2e b::when_10"));
    }
}
