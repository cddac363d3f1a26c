//! The formats that the lines of a log may have.

mod combined;
mod haproxy;
mod json;
mod list;

use std::{fmt, net::IpAddr, str::FromStr};

use crate::time::Clock;

/// The format of the lines in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// The formats "combined" and "common" of nginx and Apache, optionally with the virtual host at the beginning or
    /// with more fields at the end.
    Combined,
    /// The formats of `HAProxy`: with `option httplog`, with `option tcplog` or without either, and with or without the
    /// prefix of syslog.
    Haproxy,
    /// Lists with one address per line, or with a number and an address per line, as written by `uniq -c`.
    List,
    /// JSON objects, with one object per line. The named field contains the address; dots in the name separate nested
    /// fields.
    Json(String),
}

/// The contents of a line, as far as the simulator uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    pub address: IpAddr,
    /// The time of the request, in seconds since 1970.
    pub at: Option<i64>,
    /// The value of the client's `User-Agent`.
    pub agent: Option<&'a [u8]>,
    /// The number of requests that the line represents.
    pub requests: u32,
    /// Whether another proxy has told a client's address, so that packets carry other addresses.
    pub forwarded: bool,
}

#[derive(Clone, Debug)]
pub struct Reader {
    format: Format,
    clock: Clock,
}

impl Reader {
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, clock: Clock::default() }
    }

    /// Parses a line; `None` if the line has another format or contains no address.
    pub fn read<'a>(&mut self, line: &'a [u8]) -> Option<Hit<'a>> {
        match &self.format {
            Format::Combined => combined::read(line, &mut self.clock),
            Format::Haproxy => haproxy::read(line, &mut self.clock),
            Format::List => list::read(line),
            Format::Json(field) => json::read(line, field, &mut self.clock),
        }
    }
}

/// Returns the format that fits most of these lines; `None` if no format fits any line.
#[must_use]
pub fn guess<L: AsRef<[u8]>>(lines: &[L]) -> Option<Format> {
    let json = json::FIELDS.iter().map(|&field| Format::Json(field.to_owned()));
    let all = [Format::Haproxy, Format::Combined, Format::List].into_iter().chain(json);
    let read = all.map(|format| {
        let mut reader = Reader::new(format.clone());
        (lines.iter().filter(|line| reader.read(line.as_ref()).is_some()).count(), format)
    });
    // If several formats fit the same number of lines, the first of these formats wins.
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
