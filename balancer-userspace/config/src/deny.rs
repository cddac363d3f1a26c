//! Deny lists: files with one prefix on each line.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{listeners::Family, value, words::grouped};

/// The maximum number of prefixes in a deny list.
pub const MAX_DENIED: usize = 1 << 20;

/// The setting `deny` of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyConfig {
    /// The absolute path of the file with the prefixes.
    pub file: PathBuf,
}

/// The prefixes of a deny list; each prefix occurs once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    v4: Box<[Ipv4Net]>,
    v6: Box<[Ipv6Net]>,
}

impl DenyList {
    /// Parses the text of a deny list.
    ///
    /// # Errors
    /// Returns the first error in the text, with its line.
    pub fn parse(text: &[u8]) -> Result<Self, (Option<usize>, String)> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (number, line) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let line = str::from_utf8(line)
                .map_err(|_| (Some(number), "not UTF-8 text; save the file as UTF-8".to_owned()))?;
            let written = line.split_once('#').map_or(line, |(written, _)| written).trim();
            if written.is_empty() {
                continue;
            }
            match prefix(written).map_err(|error| (Some(number), error))? {
                IpNet::V4(net) => v4.push(net),
                IpNet::V6(net) => v6.push(net),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        let list = Self { v4: v4.into(), v6: v6.into() };
        if list.len() > MAX_DENIED {
            let most = grouped(MAX_DENIED as u64);
            return Err((
                None,
                format!("has {} prefixes, and {most} are possible; aggregate some", grouped(list.len() as u64)),
            ));
        }
        Ok(list)
    }

    /// The number of prefixes in the list.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether the list contains no prefixes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prefixes of one address family, in ascending order.
    pub fn of(&self, family: Family) -> impl Iterator<Item = IpNet> {
        let (v4, v6) = match family {
            Family::V4 => (&*self.v4, [].as_slice()),
            Family::V6 => ([].as_slice(), &*self.v6),
        };
        v4.iter().copied().map(IpNet::V4).chain(v6.iter().copied().map(IpNet::V6))
    }

    /// Whether the list contains exactly this prefix.
    #[must_use]
    pub fn contains(&self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(net) => self.v4.binary_search(&net).is_ok(),
            IpNet::V6(net) => self.v6.binary_search(&net).is_ok(),
        }
    }

    /// The longest prefix of the list that contains an address.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<IpNet> {
        let bits = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS } as u8;
        let prefixes = (0..=bits).rev().filter_map(|length| Some(IpNet::new(address, length).ok()?.trunc()));
        { prefixes }.find(|prefix| self.contains(*prefix))
    }
}

/// Parses one line of the list. The error message does not quote the line, because a caller of the API may name any
/// file and must not learn the file's contents.
fn prefix(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().map(IpNet::from);
    let prefix = text.parse::<IpNet>().or_else(|_| one()).map_err(|_| {
        "this is no prefix; write ADDR/LENGTH, such as 192.0.2.0/24 or 2001:db8::/32, or ADDR, and comments behind #".to_owned()
    })?;
    if prefix.trunc() == prefix { Ok(prefix) } else { Err(value::host_bits(prefix)) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let list = DenyList::parse(text.as_bytes()).unwrap();
        [Family::V4, Family::V6].iter().flat_map(|family| list.of(*family)).map(|net| net.to_string()).collect()
    }

    #[test]
    fn when_a_list_has_comments_and_repetitions_then_each_prefix_is_there_once() {
        let text =
            "# a list\n203.0.113.0/24\n\n 192.0.2.7 # one address\r\n2001:db8::/32\n203.0.113.0/24\n192.0.2.7/32";
        assert_eq!(shown(text), ["192.0.2.7/32", "203.0.113.0/24", "2001:db8::/32"]);
        assert_eq!(shown(""), [""; 0]);
    }

    #[test]
    fn when_a_line_is_wrong_then_it_is_named_and_what_would_be_right() {
        let refused = |text: &[u8]| DenyList::parse(text).unwrap_err();
        assert_eq!(
            refused(b"192.0.2.0/24\n192.0.2/24\n"),
            (
                Some(2),
                "this is no prefix; write ADDR/LENGTH, such as 192.0.2.0/24 or 2001:db8::/32, or ADDR, and comments behind #"
                    .to_owned()
            )
        );
        let (line, text) = refused(b"\n\n192.0.2.1/24\n");
        assert_eq!(line, Some(3));
        assert!(text.starts_with("192.0.2.1/24 has bits set behind its first 24; write 192.0.2.0/24"), "{text}");
        assert_eq!(refused(b"\xff\n").0, Some(1));
    }

    #[test]
    fn when_several_prefixes_hold_an_address_then_the_longest_is_found() {
        let list = DenyList::parse(b"10.0.0.0/8\n10.1.0.0/16\n2001:db8::/32\n").unwrap();
        let longest = |address: &str| list.longest(address.parse().unwrap()).map(|net| net.to_string());
        assert_eq!(longest("10.1.2.3").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(longest("10.2.2.3").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(longest("2001:db8::1").as_deref(), Some("2001:db8::/32"));
        assert_eq!(longest("11.0.0.1"), None);
    }

    #[test]
    fn when_there_are_more_prefixes_than_fit_then_the_list_is_refused() {
        let mut text = String::new();
        for number in 0..=MAX_DENIED as u32 {
            let _ = writeln!(text, "{}", Ipv4Addr::from(number));
        }
        let (line, text) = DenyList::parse(text.as_bytes()).unwrap_err();
        assert_eq!((line, text.as_str()), (None, "has 1,048,577 prefixes, and 1,048,576 are possible; aggregate some"));
    }
}
