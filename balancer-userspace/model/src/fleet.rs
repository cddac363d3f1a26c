//! Several balancers that answer as one.

use std::{path::PathBuf, time::Duration};

use crate::value;

/// How long steering goes on after VIPs are gone, where nothing else is said.
pub const LINGER: Duration = Duration::from_secs(3);

/// `[fleet]`: the balancers that serve the same services, and the engine by which they agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The fleet's name, 1–63 of `[A-Za-z0-9._-]`: a part of the engine's keys.
    pub name: String,
    /// This member's name, as above; `None`: the host's.
    pub member: Option<String>,
    /// URLs of the engine, `http` or `https`, without a path: at least one, none twice.
    pub endpoints: Vec<String>,
    /// Certificates that the engine's are signed by; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// This member's certificate; there is a `key` then.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// How long a silent member still counts: whole seconds, 1 s to 1 min.
    pub lease: Duration,
    /// Whether members tell each other of their clients, beside verdicts and configuration.
    pub share_clients: bool,
    /// What becomes of VIPs while the engine is out of reach for longer than the lease.
    pub when_alone: WhenAlone,
    /// How long steering goes on at an orderly end once the VIPs are gone, up to 1 min.
    pub linger: Duration,
}

impl Fleet {
    /// This member's name: `member`, or the host's.
    ///
    /// # Errors
    /// One line, where the host's name is none that a member can have.
    pub fn member_name(&self) -> Result<String, String> {
        if let Some(member) = &self.member {
            return Ok(member.clone());
        }
        let host = nix::unistd::gethostname().map_err(|error| format!("the host's name cannot be read: {error}"))?;
        member_of(&host.to_string_lossy())
    }
}

fn member_of(host: &str) -> Result<String, String> {
    value::name(host).map_err(|wrong| format!("the host's name cannot be the member's ({wrong}): give [fleet] member"))
}

/// What a member does that cannot reach the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAlone {
    /// It goes on announcing its VIPs.
    Serve,
    /// It takes them away.
    Withdraw,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_called_as_its_host_unless_it_has_a_name() {
        assert_eq!(member_of("lb1.example.com"), Ok("lb1.example.com".to_owned()));
        for host in ["", "lb 1", &"a".repeat(64)] {
            let error = member_of(host).unwrap_err();
            assert!(error.ends_with(": give [fleet] member"), "{error}");
        }
    }
}
