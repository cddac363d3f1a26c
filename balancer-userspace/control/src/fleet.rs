//! The state of a fleet as one of its members shows it to users.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A fleet as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetSnapshot {
    /// The fleet's name.
    pub name: String,
    /// This member's name.
    pub member: String,
    /// The number of the epoch that this member applies; `None`: it applies none yet.
    pub epoch: Option<u64>,
    /// The member that decides, if it is known.
    pub leader: Option<String>,
    /// The members that the engine knows, by name; always includes this one.
    pub members: Vec<FleetMember>,
    /// The engine through which the members communicate.
    pub engine: FleetEngine,
    /// Counters of the records by which members inform each other about clients.
    pub records: FleetRecords,
    /// The number of seconds from the decision of the last epoch, by its leader's clock, until this member applied it;
    /// `None` if there was no epoch since the member came into step.
    pub commit_seconds: Option<f64>,
    /// The problems of this member in the fleet, one line each.
    pub troubles: Vec<String>,
}

/// A member of the fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetMember {
    /// The name of the member.
    pub name: String,
    /// The version of the member's balancer.
    pub version: String,
    /// The readiness of the member: `ready`, `degraded`, `not_ready` or `withdrawn`.
    pub ready: String,
    /// The number of the epoch that the member applies.
    pub epoch: Option<u64>,
    /// The number of seconds for which the member has applied an outdated epoch; 0: it applies the current one.
    pub lag_seconds: f64,
    /// Backends about which the member's own view differs from the fleet's, as `service/backend`.
    pub votes_differ: Vec<String>,
    /// The number of seconds by which the member's clock is ahead of this member's; `None`: unknown, or this member
    /// itself.
    #[serde(default)]
    pub clock_ahead_seconds: Option<f64>,
    /// Whether the member's configuration file lists services other than those that the fleet last applied.
    #[serde(default)]
    pub file_differs: bool,
    /// The member's address as the engine sees it; empty if the engine does not report it.
    #[serde(default)]
    pub address: String,
}

/// The engine as seen from this member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEngine {
    /// Whether the member can use the engine.
    pub reachable: bool,
    /// The current endpoint, or the last one.
    pub endpoint: Option<String>,
    /// The version of the engine.
    pub version: String,
    /// The leader of the engine's cluster, in hexadecimal; `None`: unknown.
    pub leader: Option<String>,
    /// The last obstacle to a session with the engine; `None` while a session exists.
    pub trouble: Option<String>,
    /// The number of bytes sent to the engine since the start.
    pub bytes_sent: u64,
    /// The number of bytes received from the engine since the start.
    pub bytes_received: u64,
    /// Why the engine refuses writes, in its own words; `None`: it accepts them, as far as this member knows.
    #[serde(default)]
    pub denial: Option<String>,
    /// The size of the server's database on disk.
    pub database_bytes: u64,
    /// The maximum size of the database, if the server reports it.
    #[serde(default)]
    pub database_quota_bytes: Option<u64>,
    /// Warnings that an operator should act on before the engine fails, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Counters of records since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecords {
    /// The number of records sent to other members.
    pub told: u64,
    /// The number of records from other members that were applied, for clients that were unknown here or known at
    /// another backend.
    pub taken_over: u64,
    /// The number of records that were not applied, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The number of clients that were recorded at two backends.
    pub conflicts: u64,
}

impl FleetSnapshot {
    /// The backends about which members' views differ from the fleet's, with the number of such members.
    #[must_use]
    pub fn votes_that_differ(&self) -> BTreeMap<&str, usize> {
        let mut votes = BTreeMap::new();
        for name in self.members.iter().flat_map(|member| &member.votes_differ) {
            *votes.entry(name.as_str()).or_default() += 1;
        }
        votes
    }

    /// A fleet of two members, one of which is behind, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn example() -> Self {
        let member = |name: &str, ready: &str, epoch, lag_seconds| FleetMember {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            ready: ready.to_owned(),
            epoch: Some(epoch),
            lag_seconds,
            votes_differ: Vec::new(),
            clock_ahead_seconds: (name != "lb1").then_some(0.25),
            file_differs: false,
            address: "192.0.2.11".to_owned(),
        };
        let mut members = vec![member("lb1", "ready", 7, 0.0), member("lb2", "degraded", 6, 2.5)];
        members[1].votes_differ = vec!["web/web2".to_owned()];
        Self {
            name: "site1".to_owned(),
            member: "lb1".to_owned(),
            epoch: Some(7),
            leader: Some("lb1".to_owned()),
            members,
            engine: FleetEngine {
                reachable: true,
                endpoint: Some("https://192.0.2.1:2379".to_owned()),
                version: "3.5.16".to_owned(),
                leader: Some("8e9e05c52164694d".to_owned()),
                trouble: None,
                bytes_sent: 4_000,
                bytes_received: 9_000,
                denial: None,
                database_bytes: 20_480,
                database_quota_bytes: Some(2 << 30),
                warnings: Vec::new(),
            },
            records: FleetRecords { told: 90, taken_over: 80, dropped: [("full".to_owned(), 1)].into(), conflicts: 2 },
            commit_seconds: Some(0.125),
            troubles: Vec::new(),
        }
    }
}
