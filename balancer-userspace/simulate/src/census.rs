//! Counts the clients that occur in a log.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use foldhash::{HashMap, HashMapExt as _, fast::FixedState};
use std::hash::BuildHasher as _;

use crate::{
    address::masked,
    format::{Hit, Reader},
    gaps::Gaps,
    lines::{Lines, Piece},
};

/// The maximum number of characters that a message quotes from an unreadable line.
const SHOWN: usize = 120;

/// The counts of an address in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The number of requests from the address.
    pub requests: u32,
    /// The time of the last request from the address, in seconds since 1970; 0 if the log contains no times.
    pub last: u32,
    /// A bit set with one bit for each user agent of the address, chosen by a hash of the user agent. Two user agents
    /// have the same bit with a probability of 1/32.
    agents: u32,
}

impl Client {
    /// Whether requests with several user agents came from the address.
    #[must_use]
    pub const fn has_several_agents(&self) -> bool {
        self.agents.count_ones() > 1
    }
}

/// A line that the reader could not parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The number of the line in its file, counted from 1; empty lines do not count.
    pub line: u64,
    /// The beginning of the line.
    pub text: String,
}

/// The numbers of parsed and of unreadable lines in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The number of lines that are not empty.
    pub lines: u64,
    /// The number of unreadable lines.
    pub unreadable: u64,
    /// The first unreadable line.
    pub first: Option<Unreadable>,
}

/// The clients in one or several logs.
#[derive(Clone, Debug, Default)]
pub struct Census {
    v4: HashMap<u32, Client>,
    v6: HashMap<u128, Client>,
    pub requests: u64,
    /// The earliest and the latest time in the logs, in seconds since 1970; `None` if the logs contain no times.
    pub times: Option<(u32, u32)>,
    /// The pauses between successive requests of the same client.
    pub gaps: Gaps,
    /// Whether at least one line contains a user agent.
    pub has_agents: bool,
    /// The number of requests whose lines contain no time.
    pub timeless: u64,
    /// The number of requests whose clients another proxy has told.
    pub forwarded: u64,
}

impl Census {
    /// Counts the clients in those lines that `reader` can parse.
    ///
    /// # Errors
    /// Fails if the log cannot be read.
    pub fn read(&mut self, lines: Lines<impl Read>, reader: &mut Reader) -> io::Result<Tally> {
        let mut tally = Tally::default();
        lines.each(|piece| {
            tally.lines += 1;
            let text = match piece {
                Piece::Line(line) => match reader.read(line) {
                    Some(hit) => return self.count(&hit),
                    None => line,
                },
                Piece::TooLong => b"(a line of more than 1 MiB)",
            };
            tally.unreadable += 1;
            if tally.first.is_none() {
                tally.first = Some(Unreadable { line: tally.lines, text: shown(text) });
            }
        })?;
        Ok(tally)
    }

    /// Counts the requests of one line.
    pub fn count(&mut self, hit: &Hit<'_>) {
        let client = match hit.address {
            IpAddr::V4(address) => self.v4.entry(address.to_bits()).or_default(),
            IpAddr::V6(address) => self.v6.entry(address.to_bits()).or_default(),
        };
        client.requests = client.requests.saturating_add(hit.requests);
        self.requests += u64::from(hit.requests);
        if hit.forwarded {
            self.forwarded += u64::from(hit.requests);
        }
        if let Some(agent) = hit.agent {
            self.has_agents = true;
            // The seed of the hash is fixed, so that each run gives the same result.
            client.agents |= 1 << (FixedState::default().hash_one(agent) % 32);
        }
        let Some(at) = hit.at.and_then(|at| u32::try_from(at).ok()).filter(|&at| at > 0) else {
            self.timeless += u64::from(hit.requests);
            return;
        };
        // Servers write a line when the request ends, so a line may have an earlier time than the line before it.
        if client.last != 0 && at > client.last {
            self.gaps.count(at - client.last);
        }
        client.last = client.last.max(at);
        let (first, last) = self.times.unwrap_or((at, at));
        self.times = Some((first.min(at), last.max(at)));
    }

    /// Returns all clients with their addresses, in no particular order.
    pub fn clients(&self) -> impl Iterator<Item = (IpAddr, Client)> {
        let v4 = self.v4.iter().map(|(&bits, &client)| (IpAddr::V4(Ipv4Addr::from_bits(bits)), client));
        let v6 = self.v6.iter().map(|(&bits, &client)| (IpAddr::V6(Ipv6Addr::from_bits(bits)), client));
        v4.chain(v6)
    }

    /// The number of IPv4 addresses and the number of IPv6 addresses.
    #[must_use]
    pub fn addresses(&self) -> (u64, u64) {
        (self.v4.len() as u64, self.v6.len() as u64)
    }
}

/// Returns the beginning of a line in a form that is safe for terminals, without control characters that a client may
/// have sent.
#[must_use]
pub fn shown(line: &[u8]) -> String {
    let start = line.get(..SHOWN).unwrap_or(line);
    String::from_utf8_lossy(start)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// The numbers of addresses and requests of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The number of addresses in the network that occur in the log.
    pub addresses: u64,
    /// The number of requests from addresses in the network.
    pub requests: u64,
}

impl Census {
    /// Returns the networks with these prefix lengths (IPv4, IPv6), with their counts.
    #[must_use]
    pub fn networks(&self, v4: u8, v6: u8) -> HashMap<IpAddr, Network> {
        let mut networks = HashMap::new();
        for (address, client) in self.clients() {
            let network: &mut Network = networks.entry(masked(address, v4, v6)).or_default();
            network.addresses += 1;
            network.requests += u64::from(client.requests);
        }
        networks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Format;

    fn census(format: Format, log: &str) -> (Census, Tally) {
        let mut census = Census::default();
        let lines = Lines::new(log.as_bytes()).unwrap();
        let tally = census.read(lines, &mut Reader::new(format)).unwrap();
        (census, tally)
    }

    proptest! {
        #[test]
        fn when_a_log_is_counted_then_totals_agree(hosts in prop::collection::vec((0u8..8, any::<bool>(), 0u32..5), 0..200)) {
            let mut log = String::new();
            for (host, is_v6, number) in &hosts {
                log += &match (number, is_v6) {
                    (0, _) => "nothing\n".to_owned(),
                    (number, false) => format!("{number} 203.0.113.{host}\n"),
                    (number, true) => format!("{number} 2001:db8:{host}::1\n"),
                };
            }
            let (census, tally) = census(Format::List, &log);
            let requests: u64 = hosts.iter().map(|&(_, _, number)| u64::from(number)).sum();
            prop_assert_eq!(census.requests, requests);
            prop_assert_eq!(census.clients().map(|(_, client)| u64::from(client.requests)).sum::<u64>(), requests);
            prop_assert_eq!(census.clients().count() as u64, census.addresses().0 + census.addresses().1);
            prop_assert_eq!(tally.lines, hosts.len() as u64);
            prop_assert_eq!(tally.unreadable, hosts.iter().filter(|&&(_, _, number)| number == 0).count() as u64);
            let networks = census.networks(24, 56);
            prop_assert_eq!(networks.values().map(|network| network.requests).sum::<u64>(), requests);
        }
    }

    #[test]
    fn when_a_client_has_several_requests_then_its_times_pauses_and_programs_are_counted() {
        let line = |address: &str, time: &str, agent: &str| {
            format!("{address} - - [10/Oct/2000:{time} +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"{agent}\"\n")
        };
        let log = [
            line("203.0.113.7", "12:00:00", "curl"),
            line("203.0.113.8", "12:00:01", "curl"),
            line("203.0.113.7", "12:00:00", "curl"),
            line("203.0.113.7", "12:10:00", "wget"),
            line("203.0.113.7", "12:09:00", "wget"),
            "what\x1b[2J\n".to_owned(),
        ];
        let (census, tally) = census(Format::Combined, &log.concat());
        assert_eq!((census.gaps.total(), census.gaps.at_least(590)), (1, 1));
        assert_eq!(census.times.map(|(first, last)| last - first), Some(600));
        let several: Vec<IpAddr> =
            census.clients().filter(|(_, client)| client.has_several_agents()).map(|(address, _)| address).collect();
        assert_eq!(several, ["203.0.113.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(tally.first, Some(Unreadable { line: 6, text: "what\u{fffd}[2J".to_owned() }));
    }
}
