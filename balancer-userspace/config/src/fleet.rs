//! A fleet: several balancers that serve the same services together.

use std::time::Duration;

use crate::{etcd::EtcdServers, value};

/// The default time for which the balancer continues to steer after it has withdrawn its VIPs.
pub const LINGER: Duration = Duration::from_secs(3);

/// The section `[fleet]`: the balancers that serve the same services, and the engine through which they agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The fleet's name, 1–63 characters of `[A-Za-z0-9._-]`, which is part of the keys in the engine.
    pub name: String,
    /// This member's name, with the same valid characters as the fleet's name; `None`: the name of the host.
    pub member: Option<String>,
    /// The servers of the engine, and how to reach them.
    pub etcd: EtcdServers,
    /// The time for which a silent member still belongs to the fleet: whole seconds, 1 s to 1 min.
    pub lease: Duration,
    /// Whether members share known clients in addition to verdicts and configuration.
    pub share_clients: bool,
    /// How the member treats its VIPs when it cannot reach the engine for longer than the lease.
    pub when_alone: WhenAlone,
    /// The time for which the member continues to steer after it has withdrawn its VIPs at an orderly end, up to 1 min.
    pub linger: Duration,
}

impl Fleet {
    /// This member's name: the value of `member`, or the name of the host.
    ///
    /// # Errors
    /// Returns an error of one line if the name of the host is not a valid member name.
    pub fn member_name(&self) -> Result<String, String> {
        if let Some(member) = &self.member {
            return Ok(member.clone());
        }
        let host = nix::unistd::gethostname().map_err(|error| format!("cannot read the host's name: {error}"))?;
        member_of(&host.to_string_lossy())
    }
}

fn member_of(host: &str) -> Result<String, String> {
    let unfit = |wrong| format!("the host's name is not valid as the member's name ({wrong}): give [fleet] member");
    value::name(host).map_err(unfit)
}

/// The behaviour of a member while it cannot reach the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenAlone {
    /// The member continues to announce its VIPs.
    Serve,
    /// The member withdraws its VIPs.
    Withdraw,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_member_has_no_name_then_it_has_its_hosts() {
        assert_eq!(member_of("lb1.example.com"), Ok("lb1.example.com".to_owned()));
        for host in ["", "lb 1", &"a".repeat(64)] {
            let error = member_of(host).unwrap_err();
            assert!(error.ends_with(": give [fleet] member"), "{error}");
        }
    }
}
