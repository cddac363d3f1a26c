//! Converts configurations of nginx, HAProxy and `ipvsadm` to the balancer's: text in, text out.

mod address;
mod haproxy;
mod ipvsadm;
mod nginx;
mod service;
mod valid;
mod writer;

use std::fmt::{self, Display, Formatter};

pub use service::{Conversion, NotUnderstood};

/// The program that a configuration belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `nginx.conf`, or the output of `nginx -T`.
    Nginx,
    /// `haproxy.cfg` and files in its style.
    Haproxy,
    /// The output of `ipvsadm -Sn`.
    Ipvsadm,
}

impl Display for Dialect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Ipvsadm => "ipvsadm",
        })
    }
}

impl Dialect {
    /// Guesses by the first words of lines.
    #[must_use]
    pub fn guess(text: &str) -> Option<Self> {
        let firsts = || text.lines().map(|line| line.split_whitespace().next().unwrap_or_default());
        if firsts().any(|word| ["-A", "--add-service"].contains(&word)) {
            return Some(Self::Ipvsadm);
        }
        let is_section = |word: &str| ["global", "defaults", "frontend", "backend", "listen"].contains(&word);
        // nginx ends directives with ; and opens blocks with {.
        if text.contains('{') && text.contains('}') && !firsts().any(|word| word.starts_with("virtual_server")) {
            let blocks = ["http", "stream", "upstream", "server"];
            if firsts().any(|word| blocks.contains(&word.trim_end_matches('{'))) && text.contains(';') {
                return Some(Self::Nginx);
            }
        }
        firsts().any(is_section).then_some(Self::Haproxy)
    }
}

/// Reads the files that a pattern of `include` names: each with its name and text.
pub type Include<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<(String, String)>, String>;

/// Converts files of one dialect, given as name and text.
///
/// # Errors
///
/// The text is not of that dialect, or has nothing in it that could become a service.
pub fn convert(
    dialect: Dialect,
    files: &[(String, String)],
    include: Include<'_>,
) -> Result<Conversion, NotUnderstood> {
    let mut conversion = match dialect {
        Dialect::Nginx => nginx::convert(files, include)?,
        Dialect::Haproxy => haproxy::convert(files)?,
        Dialect::Ipvsadm => ipvsadm::convert(files)?,
    };
    conversion.make_valid();
    if conversion.services().is_empty() {
        return Err(conversion.nothing(dialect));
    }
    Ok(conversion)
}
