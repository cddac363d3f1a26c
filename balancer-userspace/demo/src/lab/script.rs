//! Scripts that start a program of the lab again, with the same command line.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{controller::SOCKET_VARIABLE, namespace::Namespace};

/// A script that starts a program with the same command line that the lab used.
pub(super) struct Script<'a> {
    pub(super) name: &'a str,
    pub(super) host: &'a Namespace,
    pub(super) program: &'a Path,
    pub(super) arguments: &'a [String],
}

impl Script<'_> {
    /// Writes the script `start-NAME`, and writes `pid`, if given, to `NAME.pid`. The script also writes the id of its
    /// own process to this file.
    pub(super) fn write(&self, files: &Path, pid: Option<u32>) -> Result<()> {
        let Self { name, host, program, arguments } = self;
        let (pid_file, log) = (files.join(format!("{name}.pid")), files.join(format!("{name}.again.log")));
        let arguments: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        let text = format!(
            "#!/bin/sh\nunset {SOCKET_VARIABLE}\necho $$ > {}\nexec ip netns exec {} {} {} >> {} 2>&1 < /dev/null\n",
            quoted(&pid_file.display().to_string()),
            host.name(),
            quoted(&program.display().to_string()),
            arguments.join(" "),
            quoted(&log.display().to_string()),
        );
        let path = files.join(format!("start-{name}"));
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        if let Some(pid) = pid {
            fs::write(&pid_file, format!("{pid}\n")).with_context(|| pid_file.display().to_string())?;
        }
        Ok(())
    }
}

/// Quotes an argument for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn when_a_word_is_quoted_then_the_shell_reads_it_as_one_word() {
        let word = "a b'c $(d) \"e\"";
        let output = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word))).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
    }
}
