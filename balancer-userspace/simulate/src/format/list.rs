//! Parses lines of the form `ADDRESS` or `NUMBER ADDRESS`.

use std::str;

use super::Hit;
use crate::address;

pub(super) fn read(line: &[u8]) -> Option<Hit<'_>> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (first, second) = (words.next()?, words.next());
    let (number, text) = match second {
        Some(text) => (str::from_utf8(first).ok()?.parse().ok()?, text),
        None => (1, first),
    };
    let address = address::with_port(text).filter(|_| words.next().is_none() && number > 0)?;
    Some(Hit { address, at: None, agent: None, requests: number, forwarded: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_line_has_an_address_then_a_number_before_it_counts_requests() {
        let shown = |line: &'static str| read(line.as_bytes()).map(|hit| (hit.address.to_string(), hit.requests));
        let is =
            |line, address: &str, requests| assert_eq!(shown(line), Some((address.to_owned(), requests)), "{line}");
        is("203.0.113.7", "203.0.113.7", 1);
        is("  203.0.113.7:50000 ", "203.0.113.7", 1);
        is("2001:db8::7", "2001:db8::7", 1);
        is("     12 203.0.113.7", "203.0.113.7", 12);
        for line in [
            "",
            "203.0.113.7 203.0.113.8",
            "0 203.0.113.7",
            "-1 203.0.113.7",
            "1 203.0.113.7 x",
            "# 203.0.113.7",
            "host.example",
        ] {
            assert_eq!(shown(line), None, "{line}");
        }
    }
}
