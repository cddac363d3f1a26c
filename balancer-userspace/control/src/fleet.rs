//! The state of a fleet as one of the fleet's members shows it to users.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A fleet from the point of view of one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetSnapshot {
    pub name: String,
    pub member: String,
    /// The number of the epoch that this member applies; `None`: the member applies no epoch yet.
    pub epoch: Option<u64>,
    /// The member that decides for the fleet, if this member knows it.
    pub leader: Option<String>,
    /// The members that the engine knows, by name; the list always includes this member.
    pub members: Vec<FleetMember>,
    /// The engine through which the members communicate.
    pub engine: FleetEngine,
    /// Counters of the records by which members tell each other about clients.
    pub records: FleetRecords,
    /// The number of seconds from the decision about the last epoch, by its leader's clock, until this member applied
    /// the epoch. `None`: no epoch has come since the member caught up.
    pub commit_seconds: Option<f64>,
    /// The problems of this member with the fleet, one line each.
    pub troubles: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetMember {
    pub name: String,
    /// The version of the balancer program that the member runs.
    pub version: String,
    /// The readiness of the member: `ready`, `degraded`, `not_ready` or `withdrawn`.
    pub ready: String,
    pub epoch: Option<u64>,
    /// The number of seconds for which the member has applied an outdated epoch; 0: the member applies the current
    /// epoch.
    pub lag_seconds: f64,
    /// The backends about which the member's own view differs from the fleet's view, as `service/backend`.
    pub votes_differ: Vec<String>,
    /// The number of seconds by which the clock of that member is ahead of the clock of this member; `None`: the number
    /// is unknown, or both are the same member.
    pub clock_ahead_seconds: Option<f64>,
    /// Whether the services in the member's configuration file differ from those that the fleet last applied.
    pub file_differs: bool,
    /// The member's address, as the engine reports it; empty if the engine does not report it.
    pub address: String,
}

/// The engine from the point of view of this member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEngine {
    /// Whether the member can use the engine.
    pub reachable: bool,
    /// The endpoint of the engine that the member uses, or used last.
    pub endpoint: Option<String>,
    pub version: String,
    /// The leader of the engine's cluster, in hexadecimal; `None`: the leader is unknown.
    pub leader: Option<String>,
    /// The last error that prevented a session with the engine; `None` while a session exists.
    pub trouble: Option<String>,
    /// The number of bytes that the member has sent to the engine since the start.
    pub bytes_sent: u64,
    /// The number of bytes that the member has received from the engine since the start.
    pub bytes_received: u64,
    /// The engine's own message that says why it refuses writes; `None`: as far as this member knows, the engine
    /// accepts writes.
    pub denial: Option<String>,
    /// The size of the engine's database on disk.
    pub database_bytes: u64,
    /// The maximum size of the engine's database, if the engine reports it.
    pub database_quota_bytes: Option<u64>,
    /// Warnings on which an operator should act before the engine fails, one sentence each.
    pub warnings: Vec<String>,
}

/// Counters of records about clients since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecords {
    /// The number of records that this member has sent to other members.
    pub told: u64,
    /// The number of applied records from other members, for clients that this member did not know or knew at another
    /// backend.
    pub taken_over: u64,
    /// The number of records that this member did not apply, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The number of clients that members had recorded at two different backends.
    pub conflicts: u64,
}

impl FleetSnapshot {
    /// The backends about which the view of some members differs from the fleet's view, with the number of such
    /// members.
    #[must_use]
    pub fn votes_that_differ(&self) -> BTreeMap<&str, usize> {
        let mut votes = BTreeMap::new();
        for name in self.members.iter().flat_map(|member| &member.votes_differ) {
            *votes.entry(name.as_str()).or_default() += 1;
        }
        votes
    }

    /// For tests: a fleet of two members, one of which applies an old epoch.
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
