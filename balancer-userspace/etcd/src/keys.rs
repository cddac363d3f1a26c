//! The keys below a prefix, and the checks of the keys and values that the driver finds in etcd.

use balancer_fleet::engine::{Entry, LONGEST_VALUE, Revision};

use crate::message::KeyValue;

/// The maximum total size in bytes of the keys and values in a copy or an answer.
pub(crate) const MOST: usize = 256 << 20;

/// The memory overhead of an entry in bytes, in addition to key and value.
const OVERHEAD: usize = 64;

/// The prefix of all keys that a driver reads or writes.
#[derive(Clone, Debug)]
pub(crate) struct Keys(String);

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self(prefix.to_owned())
    }

    /// Returns the full key in etcd, with the prefix.
    pub(crate) fn full(&self, key: &str) -> Vec<u8> {
        [self.0.as_bytes(), key.as_bytes()].concat()
    }

    /// Returns the key without the prefix; `None` if the key lacks the prefix or is not UTF-8.
    pub(crate) fn own(&self, full: &[u8]) -> Option<String> {
        let own = full.strip_prefix(self.0.as_bytes())?;
        String::from_utf8(own.to_vec()).ok()
    }

    /// Decides whether the driver passes on a key and its value.
    pub(crate) fn judge(&self, found: KeyValue) -> Verdict {
        let Some(key) = self.own(&found.key) else { return Verdict::Nameless };
        if found.value.len() > LONGEST_VALUE {
            return Verdict::TooLong(key);
        }
        Verdict::Good(Entry {
            key,
            value: found.value,
            created: Revision(found.create_revision),
            modified: Revision(found.mod_revision),
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good(Entry),
    /// The value is longer than any value that a member writes.
    TooLong(String),
    /// The key lacks the prefix, or is not UTF-8.
    Nameless,
}

/// Returns the size in bytes with which an entry counts towards [`MOST`].
pub(crate) fn weight(entry: &Entry) -> usize {
    entry.key.len() + entry.value.len() + OVERHEAD
}

/// The exclusive end of the range of all keys with this prefix.
pub(crate) fn end(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte < u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        // If there is no such end, the range includes all keys after the prefix.
        None => vec![0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(key: &[u8], length: usize) -> KeyValue {
        KeyValue { key: key.to_vec(), value: vec![0; length], create_revision: 3, mod_revision: 4 }
    }

    #[test]
    fn when_a_key_is_below_the_prefix_then_it_has_a_name() {
        let keys = Keys::new("/balancer/site1/");
        assert_eq!(keys.full("live/a"), b"/balancer/site1/live/a");
        assert_eq!(keys.own(b"/balancer/site1/live/a").as_deref(), Some("live/a"));
        for foreign in [&b"/balancer/site10/live/a"[..], b"/balancer/", b"", b"/balancer/site1/live/\xff"] {
            assert_eq!(keys.own(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn when_a_prefix_is_given_then_the_range_ends_behind_it() {
        for (prefix, expected) in [(&b"a/"[..], &b"a0"[..]), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")] {
            assert_eq!(end(prefix), expected, "{prefix:?}");
        }
    }

    #[test]
    fn when_a_value_cannot_be_passed_on_then_its_key_is_named_if_possible() {
        let keys = Keys::new("/balancer/f/");
        let entry = Entry {
            key: "live/a".to_owned(),
            value: vec![0; LONGEST_VALUE],
            created: Revision(3),
            modified: Revision(4),
        };
        assert_eq!(keys.judge(found(b"/balancer/f/live/a", LONGEST_VALUE)), Verdict::Good(entry));
        let too_long = keys.judge(found(b"/balancer/f/live/a", LONGEST_VALUE + 1));
        assert_eq!(too_long, Verdict::TooLong("live/a".to_owned()));
        assert_eq!(keys.judge(found(b"/balancer/f/live/\xc3", 1)), Verdict::Nameless);
        assert_eq!(keys.judge(found(b"/elsewhere/a", 1)), Verdict::Nameless);
    }
}
