//! Parses `ADDRESS - USER [10/Oct/2000:13:55:36 -0700] "REQUEST" 200 2326 "REFERER" "USER AGENT"`.

use memchr::{memchr, memchr_iter};

use super::Hit;
use crate::{address, time::Clock};

pub(super) fn read<'a>(line: &'a [u8], clock: &mut Clock) -> Option<Hit<'a>> {
    let (first, rest) = split(line, b' ')?;
    let (address, rest) = match address::parse(first) {
        Some(address) => (address, rest),
        // The line begins with the name of the virtual host.
        None => {
            let (second, rest) = split(rest, b' ')?;
            (address::parse(second)?, rest)
        }
    };
    // The name of a user may contain any characters, even brackets.
    let (at, rest) = memchr_iter(b'[', rest).find_map(|open| {
        let (time, rest) = rest.get(open + 1..)?.split_at_checked(26)?;
        let at = clock.read(time, time.get(21..))?;
        Some((at, rest.strip_prefix(b"]")?))
    })?;
    let agent = quoted(rest).and_then(|(_, rest)| quoted(rest)).and_then(|(_, rest)| quoted(rest));
    // In nginx's format `main`, $http_x_forwarded_for follows the user agent.
    let forwarded = agent.and_then(|(_, rest)| quoted(rest)).is_some_and(|(value, _)| is_forwarded(value));
    Some(Hit { address, at: Some(at), agent: agent.map(|(agent, _)| agent), requests: 1, forwarded })
}

/// Whether a text is a value of `X-Forwarded-For`: a list of addresses, which have no ports.
fn is_forwarded(value: &[u8]) -> bool {
    let mut all = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    all.all(|part| address::parse(part).is_some())
}

/// Returns the next quoted text, in which a backslash may precede a quote, and the text after it.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.get(memchr(b'"', text)? + 1..)?;
    let end = memchr_iter(b'"', text).find(|&end| {
        let before = text.get(..end).unwrap_or_default();
        before.iter().rev().take_while(|&&byte| byte == b'\\').count().is_multiple_of(2)
    })?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = memchr(at, text)?;
    Some((text.get(..place)?, text.get(place + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> Option<(String, Option<i64>, String)> {
        let hit = read(line.as_bytes(), &mut Clock::default())?;
        Some((hit.address.to_string(), hit.at, String::from_utf8_lossy(hit.agent.unwrap_or(b"none")).into_owned()))
    }

    fn is(line: &str, address: &str, at: i64, agent: &str) {
        assert_eq!(shown(line), Some((address.to_owned(), Some(at), agent.to_owned())), "{line}");
    }

    /// The lines are examples from the manuals of Apache and nginx, and peculiar lines from real logs.
    #[test]
    fn when_lines_are_of_nginx_or_apache_then_they_are_read() {
        is(
            r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326 "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)""#,
            "127.0.0.1",
            971_211_336,
            "Mozilla/4.08 [en] (Win98; I ;Nav)",
        );
        // This line has the common format, without referer and user agent.
        is(
            r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326"#,
            "127.0.0.1",
            971_211_336,
            "none",
        );
        // This line has nginx's format `main`, with $http_x_forwarded_for.
        is(
            r#"2001:db8::7 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/2.0" 304 0 "-" "curl/8.5.0" "-""#,
            "2001:db8::7",
            971_211_336,
            "curl/8.5.0",
        );
        // This line has Apache's format `vhost_combined`.
        is(
            r#"www.example.com:443 203.0.113.7 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "-" "-""#,
            "203.0.113.7",
            971_211_336,
            "-",
        );
        // These lines contain a malformed request, quotes in the user agent, or a user name with blanks and brackets.
        is(
            r#"203.0.113.7 - - [10/Oct/2000:20:55:36 +0000] "\x16\x03\x01" 400 0 "-" "-""#,
            "203.0.113.7",
            971_211_336,
            "-",
        );
        is(
            r#"203.0.113.7 - a [b] c [10/Oct/2000:20:55:36 +0000] "GET /\"q\" HTTP/1.1" 200 5 "-" "say \"hi\" \\""#,
            "203.0.113.7",
            971_211_336,
            r#"say \"hi\" \\"#,
        );
        is(r#"203.0.113.7 - - [10/Oct/2000:20:55:36 +0000] """#, "203.0.113.7", 971_211_336, "none");
    }

    #[test]
    fn when_another_proxy_tells_the_client_then_it_is_noted() {
        let forwarded = |more: &str| {
            let line = format!(
                "203.0.113.7 - - [10/Oct/2000:20:55:36 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"curl/8.5.0\"{more}"
            );
            read(line.as_bytes(), &mut Clock::default()).unwrap().forwarded
        };
        assert!(forwarded(" \"198.51.100.7\"") && forwarded(" \"2001:db8::7, 10.0.0.1\""));
        for other in ["", " \"-\"", " \"10.0.0.11:8080\"", " 0.001", " \"\""] {
            assert!(!forwarded(other), "{other}");
        }
    }

    #[test]
    fn when_lines_are_of_other_formats_then_they_are_not_read() {
        for line in [
            "",
            "203.0.113.7",
            "- - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 1",
            "203.0.113.7 - - [10/Oct/2000:13:55 -0700] \"GET / HTTP/1.0\" 200 1",
            "203.0.113.7 - - [10/Oct/2000:13:55:36 -0700",
            "host.example - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 1",
            "Feb  6 12:12:56 localhost haproxy[14387]: 203.0.113.7:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212",
        ] {
            assert_eq!(shown(line), None, "{line}");
        }
    }
}
