//! Reads the output of `nginx -T`: the main file, followed by all files that it includes.

use glob::{MatchOptions, Pattern};

/// The beginning of the line that precedes each file.
const HEAD: &str = "# configuration file ";

/// The files in the output by name, the main file first; empty if the text is not the output of `nginx -T`.
pub(super) fn files(text: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    for line in text.split_inclusive('\n') {
        let name = line.trim_end().strip_prefix(HEAD).and_then(|rest| rest.strip_suffix(':'));
        match (name, files.last_mut()) {
            (Some(name), _) => files.push((name.to_owned(), String::new())),
            (None, Some((_, text))) => text.push_str(line),
            // Before the first file, nginx reports whether the syntax is correct.
            (None, None) => {}
        }
    }
    files
}

/// The files in the output that an `include` names. Relative names refer to the directory of the main file.
pub(super) fn included(files: &[(String, String)], main: &str, pattern: &str) -> Result<Vec<(String, String)>, String> {
    let directory = main.rsplit_once('/').map_or("", |(directory, _)| directory);
    let full = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{directory}/{pattern}") };
    let parsed = Pattern::new(&full).map_err(|error| format!("this is no pattern of file names: {error}"))?;
    let options =
        MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..MatchOptions::new() };
    let found: Vec<_> = files.iter().filter(|(name, _)| parsed.matches_with(name, options)).cloned().collect();
    if found.is_empty() && !full.contains(['*', '?', '[']) {
        return Err("the output of `nginx -T` does not have this file; print it whole".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_dump_is_read_then_patterns_find_its_files() {
        let dump = "nginx: configuration file /etc/nginx/nginx.conf test is successful\n\
                    # configuration file /etc/nginx/nginx.conf:\ninclude conf.d/*.conf;\n\n\
                    # configuration file /etc/nginx/conf.d/a.conf:\nserver {}\n";
        let files = files(dump);
        assert_eq!(
            files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["/etc/nginx/nginx.conf", "/etc/nginx/conf.d/a.conf"]
        );
        let names = |pattern| {
            included(&files, "/etc/nginx/nginx.conf", pattern)
                .map(|found| found.into_iter().map(|(_, text)| text).collect::<String>())
        };
        assert_eq!(names("conf.d/*.conf").as_deref(), Ok("server {}\n"));
        assert_eq!(names("/etc/nginx/conf.d/a.conf").as_deref(), Ok("server {}\n"));
        assert_eq!(names("sites/*").as_deref(), Ok(""));
        assert!(names("sites/a").unwrap_err().contains("print it whole"));
    }

    #[test]
    fn when_there_is_no_head_then_it_is_no_dump() {
        assert_eq!(files("events {}\nhttp {}\n"), []);
    }
}
