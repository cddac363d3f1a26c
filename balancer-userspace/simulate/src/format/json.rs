//! Parses `{"time": "2000-10-10T13:55:36-07:00", "remote_addr": "203.0.113.7", …}`.

use std::{fmt, net::IpAddr};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Hit;
use crate::{
    address,
    time::{self, Clock},
};

/// The names of fields that usually contain the client's address.
pub(super) const FIELDS: [&str; 14] = [
    "remote_addr",
    "client_ip",
    "clientip",
    "remote_ip",
    "request.remote_ip",
    "ClientHost",
    "ClientAddr",
    "client_addr",
    "client.ip",
    "remoteAddr",
    "remote_address",
    "client",
    "ip",
    "src",
];

/// The names of fields in the outermost object that usually contain the time.
const TIMES: [&str; 11] = [
    "time",
    "ts",
    "timestamp",
    "@timestamp",
    "time_iso8601",
    "time_local",
    "StartUTC",
    "start_time",
    "date",
    "msec",
    "datetime",
];

pub(super) fn read<'a>(line: &'a [u8], field: &str, clock: &mut Clock) -> Option<Hit<'a>> {
    let forwarded = field.to_ascii_lowercase().contains("forwarded");
    let mut found = Found { address: None, at: None, forwarded, clock };
    let mut json = serde_json::Deserializer::from_slice(line);
    Inside { path: Some(field), is_outermost: true, found: &mut found }.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(Hit { address: found.address?, at: found.at, agent: None, requests: 1, forwarded: found.forwarded })
}

struct Found<'c> {
    address: Option<IpAddr>,
    at: Option<i64>,
    /// Whether another proxy has told the address.
    forwarded: bool,
    clock: &'c mut Clock,
}

/// Searches a JSON value for the address at the end of the path; `None` if the wanted value is a time.
struct Inside<'p, 'f, 'c> {
    path: Option<&'p str>,
    is_outermost: bool,
    found: &'f mut Found<'c>,
}

/// Reads an object's key, which it compares with the path and does not store.
struct Key<'p> {
    path: &'p str,
    is_outermost: bool,
}

enum Meaning<'p> {
    /// The key matches, and this is the remaining path; empty at the address.
    Path(&'p str),
    Time,
    Other,
}

impl<'p> Key<'p> {
    fn meaning(&self, key: &str) -> Meaning<'p> {
        // The key itself may contain dots.
        if key == self.path {
            return Meaning::Path("");
        }
        match self.path.strip_prefix(key).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => Meaning::Path(rest),
            None if self.is_outermost && TIMES.contains(&key) => Meaning::Time,
            None => Meaning::Other,
        }
    }
}

impl<'de, 'p> DeserializeSeed<'de> for Key<'p> {
    type Value = Meaning<'p>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Key<'p> {
    type Value = Meaning<'p>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.meaning(key))
    }
}

impl<'de> DeserializeSeed<'de> for Inside<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inside<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let path = self.path.unwrap_or_default();
        while let Some(meaning) = map.next_key_seed(Key { path, is_outermost: self.is_outermost })? {
            let path = match meaning {
                Meaning::Path(path) => Some(path),
                Meaning::Time => None,
                Meaning::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value_seed(Inside { path, is_outermost: false, found: &mut *self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        match self.path {
            // The address is the first in a list, such as the list in X-Forwarded-For.
            Some("") => {
                let (first, rest) = text.split_once(',').map_or((text, None), |(first, rest)| (first, Some(rest)));
                self.found.address = address::with_port(first.trim().as_bytes());
                self.found.forwarded |= rest.is_some();
            }
            Some(_) => {}
            None => self.found.at = self.found.at.or_else(|| self.found.time(text)),
        }
        Ok(())
    }

    fn visit_f64<E>(self, seconds: f64) -> Result<(), E> {
        self.number(seconds);
        Ok(())
    }

    fn visit_u64<E>(self, seconds: u64) -> Result<(), E> {
        self.number(seconds as f64);
        Ok(())
    }

    fn visit_i64<E>(self, seconds: i64) -> Result<(), E> {
        self.number(seconds as f64);
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

impl Inside<'_, '_, '_> {
    fn number(self, seconds: f64) {
        if self.path.is_none() {
            self.found.at = self.found.at.or(Some(self::seconds(seconds)));
        }
    }
}

impl Found<'_> {
    fn time(&mut self, text: &str) -> Option<i64> {
        let bytes = text.as_bytes();
        time::rfc3339(bytes)
            .or_else(|| self.clock.read(bytes, bytes.get(21..)))
            .or_else(|| text.parse::<f64>().ok().map(seconds))
    }
}

/// Converts a number for a time to seconds. If the number in seconds would be in the distant future, it is in
/// milliseconds, which some programs write.
const fn seconds(number: f64) -> i64 {
    (if number >= 1e11 { number / 1000.0 } else { number }) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, field: &str) -> Option<(String, Option<i64>)> {
        let hit = read(line.as_bytes(), field, &mut Clock::default())?;
        Some((hit.address.to_string(), hit.at))
    }

    /// The lines are examples from the manuals of nginx, Caddy and Traefik.
    #[test]
    fn when_lines_are_json_then_they_are_read() {
        let is =
            |line, field, address: &str, at| assert_eq!(shown(line, field), Some((address.to_owned(), at)), "{line}");
        is(
            r#"{"time_iso8601":"2000-10-10T13:55:36-07:00","remote_addr":"203.0.113.7","request":"GET / HTTP/1.1","status":200,"upstream":null}"#,
            "remote_addr",
            "203.0.113.7",
            Some(971_211_336),
        );
        is(
            r#"{"level":"info","ts":971211336.123,"request":{"remote_ip":"2001:db8::7","headers":{"User-Agent":["curl/8.5.0"]}},"ok":true}"#,
            "request.remote_ip",
            "2001:db8::7",
            Some(971_211_336),
        );
        is(
            r#"{"ClientAddr":"203.0.113.7:50000","StartUTC":"2000-10-10T20:55:36.5Z"}"#,
            "ClientAddr",
            "203.0.113.7",
            Some(971_211_336),
        );
        is(r#"{"client.ip":"203.0.113.7","time":"971211336000"}"#, "client.ip", "203.0.113.7", Some(971_211_336));
        is(r#"{"ip":"203.0.113.7, 10.0.0.1","msec":971211336000}"#, "ip", "203.0.113.7", Some(971_211_336));
        is(r#"{"ip":"203.0.113.\u0037","time":"10/Oct/2000:13:55:36 -0700"}"#, "ip", "203.0.113.7", Some(971_211_336));
        is(r#"{"ip":"203.0.113.7","request":{"time":5}}"#, "ip", "203.0.113.7", None);
    }

    #[test]
    fn when_lines_are_no_json_objects_with_an_address_then_they_are_not_read() {
        for line in [
            "",
            "{}",
            "[]",
            "{\"ip\":1}",
            "{\"ip\":\"-\"}",
            "{\"ip\":\"203.0.113.7\"",
            "{\"ip\":\"203.0.113.7\"} x",
            "{\"ip\":{\"a\":1}}",
        ] {
            assert_eq!(shown(line, "ip"), None, "{line}");
        }
    }
}
