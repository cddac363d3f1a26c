//! Parses `… haproxy[14387]: ADDRESS:PORT [06/Feb/2009:12:12:51.443] FRONTEND …` and `… Connect from ADDRESS:PORT to
//! …`.

use std::net::IpAddr;

use memchr::{memchr, memchr_iter, memmem, memrchr};

use super::Hit;
use crate::{address, time::Clock};

const CONNECT: &[u8] = b"Connect from ";

pub(super) fn read<'a>(line: &'a [u8], clock: &mut Clock) -> Option<Hit<'a>> {
    let accepted = memchr_iter(b'[', line).find_map(|open| {
        // The time contains milliseconds and no time zone; HAProxy writes the local time of its machine.
        let [time @ .., b']'] = line.get(open + 1..open + 26)? else { return None };
        let at = (time.get(20) == Some(&b'.')).then(|| clock.read(time, None)).flatten()?;
        let before = line.get(..open)?.strip_suffix(b" ")?;
        let first = memrchr(b' ', before).map_or(0, |blank| blank + 1);
        Some((client(before.get(first..)?)?, Some(at)))
    });
    let (address, at) = match accepted {
        Some(accepted) => accepted,
        None => {
            let rest = line.get(memmem::find(line, CONNECT)? + CONNECT.len()..)?;
            (client(rest.get(..memchr(b' ', rest)?)?)?, None)
        }
    };
    Some(Hit { address, at, agent: None, requests: 1, forwarded: false })
}

/// The client's port always follows the last colon, because HAProxy writes IPv6 addresses without brackets.
fn client(text: &[u8]) -> Option<IpAddr> {
    address::parse(text.get(..memrchr(b':', text)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> Option<(String, Option<i64>)> {
        let hit = read(line.as_bytes(), &mut Clock::default())?;
        Some((hit.address.to_string(), hit.at))
    }

    fn is(line: &str, address: &str, at: Option<i64>) {
        assert_eq!(shown(line), Some((address.to_owned(), at)), "{line}");
    }

    /// The lines are examples from HAProxy's configuration manual, section 8.2, and peculiar lines from real logs.
    #[test]
    fn when_lines_are_of_haproxy_then_they_are_read() {
        is(
            "Feb  6 12:12:09 localhost haproxy[14385]: Connect from 10.0.1.2:33312 to 10.0.3.31:8012 (www/HTTP)",
            "10.0.1.2",
            None,
        );
        is(
            "Feb  6 12:12:56 localhost haproxy[14387]: 10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0",
            "10.0.1.2",
            Some(1_233_922_371),
        );
        is(
            "Feb  6 12:14:14 localhost haproxy[14389]: 10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {1wt.eu} {} \"GET /index.html HTTP/1.1\"",
            "10.0.1.2",
            Some(1_233_922_454),
        );
        // These lines contain captured headers with blanks, brackets and addresses, or no server, or are from standard
        // output and not from syslog.
        is(
            "203.0.113.7:4000 [06/Feb/2009:12:14:14.655] http-in~ http-in/<NOSRV> -1/-1/-1/-1/0 400 212 - - PR-- 1/1/0/0/0 0/0 {a b|198.51.100.9:80 [x]||} \"<BADREQ>\"",
            "203.0.113.7",
            Some(1_233_922_454),
        );
        is(
            "<134>1 2009-02-06T12:14:14+01:00 lb1 haproxy 14389 - - 2001:db8::7:4000 [06/Feb/2009:12:14:14.655] fe be/s 0/0/0/0/0 200 1 - - ---- 1/1/0/0/0 0/0 \"GET / HTTP/1.1\"",
            "2001:db8::7",
            Some(1_233_922_454),
        );
        is(
            "haproxy[1]: ::ffff:203.0.113.7:4000 [06/Feb/2009:12:14:14.655] fe/1: SSL handshake failure",
            "203.0.113.7",
            Some(1_233_922_454),
        );
    }

    #[test]
    fn when_lines_are_of_other_formats_then_they_are_not_read() {
        for line in [
            "",
            "Feb  6 12:12:09 localhost haproxy[14385]: Server web/web1 is DOWN, reason: Layer4 connection problem",
            "Feb  6 12:12:09 localhost haproxy[14385]: unix:1 [06/Feb/2009:12:14:14.655] fe be/s 0/0/0 1 -- 0/0/0/0/0 0/0",
            "203.0.113.7 - - [10/Oct/2000:13:55:36 -0700] \"GET / HTTP/1.0\" 200 2326 \"-\" \"curl/8.5.0\"",
            "203.0.113.7 [06/Feb/2009:12:14:14.655] fe",
            "[",
        ] {
            assert_eq!(shown(line), None, "{line}");
        }
    }
}
