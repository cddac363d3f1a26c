//! The formats of the lines of a log.

mod combined;
mod haproxy;
mod json;
mod list;

use std::{fmt, net::IpAddr, str::FromStr};

use crate::time::Clock;

/// The format of a log's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// nginx's and Apache's "combined" and "common" formats, optionally with more fields at the end or the virtual host
    /// in front.
    Combined,
    /// `HAProxy`'s formats: `option httplog`, `option tcplog` or neither, with or without the prefix that syslog adds.
    Haproxy,
    /// One address per line, or a number and an address, as `uniq -c` prints them.
    List,
    /// JSON objects, one per line. The named field has the address; dots in the name lead into objects.
    Json(String),
}

/// The contents of a line that the simulator uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// The time, in seconds since 1970.
    pub at: Option<i64>,
    /// The client's `User-Agent`.
    pub agent: Option<&'a [u8]>,
    /// The number of requests that the line stands for.
    pub requests: u32,
}

/// Reads the lines of a format.
#[derive(Clone, Debug)]
pub struct Reader {
    format: Format,
    clock: Clock,
}

impl Reader {
    /// Creates a reader for lines of that format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, clock: Clock::default() }
    }

    /// Reads a line; `None` if it has another format or no address.
    pub fn read<'a>(&mut self, line: &'a [u8]) -> Option<Hit<'a>> {
        match &self.format {
            Format::Combined => combined::read(line, &mut self.clock),
            Format::Haproxy => haproxy::read(line, &mut self.clock),
            Format::List => list::read(line),
            Format::Json(field) => json::read(line, field, &mut self.clock),
        }
    }
}

/// The format that fits most of these lines; `None` if no format fits any line.
#[must_use]
pub fn guess<L: AsRef<[u8]>>(lines: &[L]) -> Option<Format> {
    let json = json::FIELDS.iter().map(|&field| Format::Json(field.to_owned()));
    let all = [Format::Haproxy, Format::Combined, Format::List].into_iter().chain(json);
    let read = all.map(|format| {
        let mut reader = Reader::new(format.clone());
        (lines.iter().filter(|line| reader.read(line.as_ref()).is_some()).count(), format)
    });
    // The first format among those that fit most lines.
    let best = read.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|&(count, _)| count > 0).map(|(_, format)| format)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Combined => f.write_str("combined"),
            Self::Haproxy => f.write_str("haproxy"),
            Self::List => f.write_str("list"),
            Self::Json(field) => write!(f, "json:{field}"),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "combined" => Ok(Self::Combined),
            "haproxy" => Ok(Self::Haproxy),
            "list" => Ok(Self::List),
            other => match other.strip_prefix("json:").filter(|field| !field.is_empty()) {
                Some(field) => Ok(Self::Json(field.to_owned())),
                None => Err(format!(
                    "{other:?} is no format; give combined, haproxy, list, or json:FIELD with the field that has the \
                     client's address, such as json:remote_addr"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMBINED: &str =
        "203.0.113.7 - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 2326 \"-\" \"curl/8.5.0\"";
    const HAPROXY: &str = "Feb  6 12:12:56 localhost haproxy[14387]: 203.0.113.7:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0";

    #[test]
    fn when_a_log_has_several_formats_then_the_most_frequent_one_is_guessed() {
        let guessed = |lines: &[&str]| guess(lines).map(|format| format.to_string());
        assert_eq!(guessed(&[COMBINED]).as_deref(), Some("combined"));
        assert_eq!(guessed(&["# a comment", HAPROXY]).as_deref(), Some("haproxy"));
        assert_eq!(guessed(&["203.0.113.7", "2001:db8::7"]).as_deref(), Some("list"));
        assert_eq!(guessed(&[r#"{"remote_addr":"203.0.113.7"}"#]).as_deref(), Some("json:remote_addr"));
        assert_eq!(guessed(&[r#"{"request":{"remote_ip":"203.0.113.7"}}"#]).as_deref(), Some("json:request.remote_ip"));
        assert_eq!(guessed(&["hello", "", "{}"]), None);
        assert_eq!(guess::<&str>(&[]), None);
    }

    #[test]
    fn when_a_format_is_printed_then_it_can_be_parsed() {
        for format in ["combined", "haproxy", "list", "json:a.b"] {
            assert_eq!(format.parse::<Format>().unwrap().to_string(), format);
        }
        for text in ["json:", "json", "Combined", ""] {
            assert!(text.parse::<Format>().unwrap_err().contains("give combined, haproxy, list"), "{text}");
        }
    }
}
