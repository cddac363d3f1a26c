//! The programs whose configurations the importer reads.

use std::{
    fmt::{self, Display, Formatter},
    str::FromStr,
};

/// A program whose configuration the importer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// nginx: `nginx.conf`, or the output of `nginx -T`.
    Nginx,
    /// HAProxy: `haproxy.cfg`, and files in the same format.
    Haproxy,
    /// keepalived: `keepalived.conf`, and the files that it includes.
    Keepalived,
    /// ipvsadm: the output of `ipvsadm -Sn`.
    Ipvsadm,
}

impl Display for Dialect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Keepalived => "keepalived",
            Self::Ipvsadm => "ipvsadm",
        })
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|dialect| dialect.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not read; give nginx, haproxy, keepalived or ipvsadm"))
    }
}

impl Dialect {
    /// All dialects, in the order in which the documentation lists them.
    pub const ALL: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Keepalived, Self::Ipvsadm];

    /// Whether the program is a proxy, so that the servers see the program's address instead of the client's.
    pub(crate) fn is_proxy(self) -> bool {
        matches!(self, Self::Nginx | Self::Haproxy)
    }

    /// The name of the program as its authors write it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Keepalived => "keepalived",
            Self::Ipvsadm => "IPVS",
        }
    }

    /// The message that the text contains nothing that can be converted.
    pub(crate) fn lacks(self) -> &'static str {
        match self {
            Self::Nginx => "it has no `server` that listens; give nginx.conf, or the output of `nginx -T`",
            Self::Haproxy => "it has no `frontend` or `listen`; give all files that HAProxy reads with -f",
            Self::Keepalived => "it has no `virtual_server`; give keepalived.conf",
            Self::Ipvsadm => "it has no service; give the output of `ipvsadm -Sn`",
        }
    }

    /// Guesses the dialect of a text from the first words of the lines.
    #[must_use]
    pub fn guess(text: &str) -> Option<Self> {
        let has = |words: &[&str]| {
            let mut firsts = text.lines().map(|line| line.split_whitespace().next().unwrap_or_default());
            firsts.any(|first| words.contains(&first.trim_end_matches('{')))
        };
        if has(&["-A", "--add-service"]) {
            Some(Self::Ipvsadm)
        } else if has(&["virtual_server", "virtual_server_group", "vrrp_instance", "global_defs"]) {
            Some(Self::Keepalived)
        } else if text.lines().any(opens_block_of_nginx) {
            Some(Self::Nginx)
        } else if has(&["global", "defaults", "frontend", "backend", "listen"]) {
            Some(Self::Haproxy)
        } else {
            None
        }
    }
}

/// Whether the line opens an nginx block such as `http {` or `upstream NAME {`. HAProxy's configuration also has lines
/// that begin with `server`, but it has no blocks.
fn opens_block_of_nginx(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim();
    let (head, rest) = line.split_once('{').map_or((line, None), |(head, rest)| (head, Some(rest)));
    let words: Vec<&str> = head.split_whitespace().collect();
    match (words.as_slice(), rest) {
        // The opening brace may be in the next line.
        (["http" | "stream" | "server" | "events"], _) => true,
        (["upstream", _], rest) => rest.is_some(),
        _ => false,
    }
}
