//! The ways of keeping sessions.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The server program, and where it keeps sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Node and Express: `MemoryStore`.
    NodeMemory,
    /// Tomcat: `StandardManager`.
    TomcatMemory,
    /// PHP-FPM: files of each server.
    PhpFiles,
    /// Tomcat without cookies: the session's id is in the URL.
    TomcatUrl,
    /// Tomcat: `DeltaManager`, every session on every server.
    TomcatDelta,
    /// `DeltaManager` with three servers.
    TomcatDelta3,
    /// `DeltaManager` with six servers.
    TomcatDelta6,
    /// `DeltaManager` with nine servers.
    TomcatDelta9,
    /// Tomcat: `BackupManager`, every session on one other server.
    TomcatBackup,
    /// Tomcat: `PersistentManager`, with a copy in a directory that all servers share.
    TomcatFile,
    /// PHP: two memcached servers with a replica of each session, and locking.
    PhpMemcachedReplicas,
    /// PHP: one memcached server.
    PhpMemcached,
    /// PHP: Redis.
    PhpRedis,
    /// Node: `connect-redis`.
    NodeRedis,
    /// Node: `connect-redis`; Redis with a replica, under Sentinel.
    NodeRedisSentinel,
    /// Node: `connect-redis`; Redis with a replica, reached through `HAProxy`.
    NodeRedisHaproxy,
    /// Node: `connect-redis`; Redis with a replica, whose address keepalived moves.
    NodeRedisKeepalived,
    /// Tomcat: `PersistentManager` with `DataSourceStore`, in `PostgreSQL`.
    TomcatPostgres,
    /// Node: `connect-pg-simple`, in `PostgreSQL`.
    NodePostgres,
    /// Node: `cookie-session`, signed.
    NodeCookie,
    /// Node: `client-sessions`, encrypted.
    NodeEncryptedCookie,
}

/// Where a strategy keeps sessions, which decides how failures affect them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Home {
    /// On one server.
    OneServer,
    /// On several servers, which exchange sessions.
    Servers,
    /// In one store outside the servers.
    Store,
    /// In several stores.
    Stores,
    /// At the client.
    Client,
}

impl Strategy {
    /// Returns the server program and its way of keeping sessions.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::NodeMemory => "Node/Express, MemoryStore",
            Self::TomcatMemory => "Tomcat, StandardManager",
            Self::PhpFiles => "PHP-FPM, files",
            Self::TomcatUrl => "Tomcat, ;jsessionid= in the URL",
            Self::TomcatDelta => "Tomcat, DeltaManager, 5 servers",
            Self::TomcatDelta3 => "Tomcat, DeltaManager, 3 servers",
            Self::TomcatDelta6 => "Tomcat, DeltaManager, 6 servers",
            Self::TomcatDelta9 => "Tomcat, DeltaManager, 9 servers",
            Self::TomcatBackup => "Tomcat, BackupManager, 5 servers",
            Self::TomcatFile => "Tomcat, PersistentManager, shared directory",
            Self::PhpMemcachedReplicas => "PHP-FPM, 2 memcached, replicas",
            Self::PhpMemcached => "PHP-FPM, memcached",
            Self::PhpRedis => "PHP-FPM, Redis",
            Self::NodeRedis => "Node/Express, Redis",
            Self::NodeRedisSentinel => "Node/Express, Redis under Sentinel",
            Self::NodeRedisHaproxy => "Node/Express, Redis behind HAProxy",
            Self::NodeRedisKeepalived => "Node/Express, Redis under keepalived",
            Self::TomcatPostgres => "Tomcat, DataSourceStore, PostgreSQL",
            Self::NodePostgres => "Node/Express, PostgreSQL",
            Self::NodeCookie => "Node/Express, signed cookie",
            Self::NodeEncryptedCookie => "Node/Express, encrypted cookie",
        }
    }

    /// Where the sessions are.
    #[must_use]
    pub const fn home(self) -> Home {
        match self {
            Self::NodeMemory | Self::TomcatMemory | Self::PhpFiles | Self::TomcatUrl => Home::OneServer,
            Self::TomcatDelta | Self::TomcatDelta3 | Self::TomcatDelta6 | Self::TomcatDelta9 | Self::TomcatBackup => {
                Home::Servers
            }
            Self::PhpMemcached
            | Self::PhpRedis
            | Self::NodeRedis
            | Self::TomcatPostgres
            | Self::NodePostgres
            | Self::TomcatFile => Home::Store,
            Self::PhpMemcachedReplicas
            | Self::NodeRedisSentinel
            | Self::NodeRedisHaproxy
            | Self::NodeRedisKeepalived => Home::Stores,
            Self::NodeCookie | Self::NodeEncryptedCookie => Home::Client,
        }
    }

    /// The number of servers in the balancer's configuration.
    #[must_use]
    pub const fn servers(self) -> u16 {
        if matches!(self, Self::TomcatDelta3) {
            3
        } else if matches!(self, Self::TomcatDelta6) {
            6
        } else if matches!(self, Self::TomcatDelta9) {
            9
        } else {
            4
        }
    }

    /// The number of additional servers that run and can be added.
    #[must_use]
    pub const fn spares(self) -> u16 {
        if self.is_growth() { 0 } else { 1 }
    }

    /// Whether the strategy only shows the cost of more servers.
    #[must_use]
    pub const fn is_growth(self) -> bool {
        matches!(self, Self::TomcatDelta3 | Self::TomcatDelta6 | Self::TomcatDelta9)
    }

    /// Whether the lab plays all events with another strategy that has the same home.
    #[must_use]
    pub const fn is_variation(self) -> bool {
        matches!(
            self,
            Self::PhpFiles
                | Self::TomcatUrl
                | Self::TomcatDelta
                | Self::TomcatFile
                | Self::PhpMemcached
                | Self::PhpRedis
                | Self::NodeRedisSentinel
                | Self::NodeRedisHaproxy
                | Self::NodeRedisKeepalived
                | Self::NodePostgres
                | Self::NodeEncryptedCookie
        )
    }

    /// Whether the lab plays events of balancers with this strategy, for all strategies that have the same home.
    #[must_use]
    pub const fn stands_for_its_kind(self) -> bool {
        matches!(
            self,
            Self::NodeMemory | Self::TomcatBackup | Self::NodeRedis | Self::PhpMemcachedReplicas | Self::NodeCookie
        )
    }

    /// Whether clients refuse cookies.
    #[must_use]
    pub const fn refuses_cookies(self) -> bool {
        matches!(self, Self::TomcatUrl)
    }

    /// Whether a store exists that can be restarted, cut off or filled.
    #[must_use]
    pub const fn has_store(self) -> bool {
        matches!(self.home(), Home::Store | Home::Stores) && !matches!(self, Self::TomcatFile)
    }

    /// Whether the store can be full.
    #[must_use]
    pub const fn store_can_be_full(self) -> bool {
        self.has_store() && !matches!(self, Self::TomcatPostgres | Self::NodePostgres)
    }
}
