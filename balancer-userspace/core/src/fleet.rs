//! A fleet as one of its members shows it to users.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A fleet as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetSnapshot {
    /// The fleet's name.
    pub name: String,
    /// This member's name.
    pub member: String,
    /// The number of the epoch that it applies; `None`: it has none yet.
    pub epoch: Option<u64>,
    /// The member that decides, if one is known.
    pub leader: Option<String>,
    /// Those that the engine knows, by name; this one always.
    pub members: Vec<FleetMember>,
    /// The engine that the members speak through.
    pub engine: FleetEngine,
    /// Counts of the records by which members tell each other of clients.
    pub records: FleetRecords,
    /// Seconds from when the last epoch was decided, on its leader's clock, until it was applied here; `None`: none was
    /// since it is in step.
    pub commit_seconds: Option<f64>,
    /// Problems of this member in the fleet, a line each.
    pub troubles: Vec<String>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetMember {
    /// The name of the member.
    pub name: String,
    /// The balancer's version.
    pub version: String,
    /// `ready`, `degraded`, `not_ready` or `withdrawn`.
    pub ready: String,
    /// The number of the epoch that it applies.
    pub epoch: Option<u64>,
    /// How long it has applied another epoch than the one that holds; 0: it applies that.
    pub lag_seconds: f64,
    /// Backends of which it sees something else than the fleet holds, as `service/backend`.
    pub votes_differ: Vec<String>,
    /// How far its clock is ahead of this one's; `None`: that is not known, or it is this one's.
    #[serde(default)]
    pub clock_ahead_seconds: Option<f64>,
    /// Whether its configuration file says other services than the fleet's last one.
    #[serde(default)]
    pub file_differs: bool,
    /// The member's address, as the engine sees it; empty where the engine does not say.
    #[serde(default)]
    pub address: String,
}

/// The engine as seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEngine {
    /// Whether it can be used.
    pub reachable: bool,
    /// The endpoint in use, or the last one that was.
    pub endpoint: Option<String>,
    /// The version of the engine.
    pub version: String,
    /// The server that leads its cluster, in hexadecimal; `None`: none is known.
    pub leader: Option<String>,
    /// The last obstacle to a session with the engine; `None` while there is a session.
    pub trouble: Option<String>,
    /// Bytes sent to it since the start.
    pub bytes_sent: u64,
    /// Bytes received from it since the start.
    pub bytes_received: u64,
    /// Why it takes no writes, in its own words; `None`: it does, as far as is known.
    #[serde(default)]
    pub denial: Option<String>,
    /// The size of the server's database on disk.
    pub database_bytes: u64,
    /// How large the database may become, where the server tells.
    #[serde(default)]
    pub database_quota_bytes: Option<u64>,
    /// Warnings to act on before the engine fails, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Records since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecords {
    /// Told to others.
    pub told: u64,
    /// Taken over from others: for clients that were not known here, or were known at another backend.
    pub taken_over: u64,
    /// Not taken over, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Clients that were found at two backends.
    pub conflicts: u64,
}

impl FleetSnapshot {
    /// Backends of which members see something else than the fleet holds: how many do.
    #[must_use]
    pub fn votes_that_differ(&self) -> BTreeMap<&str, usize> {
        let mut votes = BTreeMap::new();
        for name in self.members.iter().flat_map(|member| &member.votes_differ) {
            *votes.entry(name.as_str()).or_default() += 1;
        }
        votes
    }

    /// A fleet of two, of which one is behind, for tests.
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
