//! The strategies by which web servers store sessions.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The program of the web servers, and where it stores sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Sessions in the memory of Node with Express: `MemoryStore`.
    NodeMemory,
    /// Sessions in the memory of Tomcat: `StandardManager`.
    TomcatMemory,
    /// Sessions of PHP-FPM in files of each server.
    PhpFiles,
    /// Sessions in the memory of Tomcat, without cookies: the URL contains the session's id.
    TomcatUrl,
    /// Sessions on every server of a Tomcat cluster: `DeltaManager`.
    TomcatDelta,
    /// Tomcat's `DeltaManager` with three servers.
    TomcatDelta3,
    /// Tomcat's `DeltaManager` with six servers.
    TomcatDelta6,
    /// Tomcat's `DeltaManager` with nine servers.
    TomcatDelta9,
    /// Sessions of Tomcat with a copy on one other server: `BackupManager`.
    TomcatBackup,
    /// Sessions of Tomcat with a copy in a directory that all servers share: `PersistentManager`.
    TomcatFile,
    /// Sessions of PHP in two memcached servers, with a replica of each session, and with locking.
    PhpMemcachedReplicas,
    /// Sessions of PHP in one memcached server.
    PhpMemcached,
    /// Sessions of PHP in Redis.
    PhpRedis,
    /// Sessions of Node in Redis: `connect-redis`.
    NodeRedis,
    /// Sessions of Node in Redis with a replica, which Sentinel supervises: `connect-redis`.
    NodeRedisSentinel,
    /// Sessions of Node in Redis with a replica, which servers reach through `HAProxy`: `connect-redis`.
    NodeRedisHaproxy,
    /// Sessions of Node in Redis with a replica, whose address keepalived moves: `connect-redis`.
    NodeRedisKeepalived,
    /// Sessions of Tomcat in `PostgreSQL`: `PersistentManager` with `DataSourceStore`.
    TomcatPostgres,
    /// Sessions of Node in `PostgreSQL`: `connect-pg-simple`.
    NodePostgres,
    /// Sessions of Node in signed cookies: `cookie-session`.
    NodeCookie,
    /// Sessions of Node in encrypted cookies: `client-sessions`.
    NodeEncryptedCookie,
}

/// The location of sessions, which determines how failures affect the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Home {
    /// Each session is on one web server.
    OneServer,
    /// Each session is on several web servers, which exchange sessions.
    Servers,
    /// The sessions are in one store, and not on the web servers.
    Store,
    /// The sessions are in several stores, and not on the web servers.
    Stores,
    /// The client stores the session itself.
    Client,
}

impl Strategy {
    /// Returns the title of the strategy: the program of the web servers, and where it stores sessions.
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

    /// Returns the location of the strategy's sessions.
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

    /// The number of additional web servers that run, so that an event can add them.
    #[must_use]
    pub const fn spares(self) -> u16 {
        if self.is_growth() { 0 } else { 1 }
    }

    /// Whether the lab uses the strategy only to show the cost of more servers.
    #[must_use]
    pub const fn is_growth(self) -> bool {
        matches!(self, Self::TomcatDelta3 | Self::TomcatDelta6 | Self::TomcatDelta9)
    }

    /// Whether another strategy with the same location of sessions represents this strategy in all events.
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

    /// Whether this strategy represents all strategies with the same location of sessions, in events at balancers.
    #[must_use]
    pub const fn stands_for_its_kind(self) -> bool {
        matches!(
            self,
            Self::NodeMemory | Self::TomcatBackup | Self::NodeRedis | Self::PhpMemcachedReplicas | Self::NodeCookie
        )
    }

    /// Whether the clients of this strategy refuse cookies.
    #[must_use]
    pub const fn refuses_cookies(self) -> bool {
        matches!(self, Self::TomcatUrl)
    }

    /// Whether there is a store that the lab can restart, disconnect or fill.
    #[must_use]
    pub const fn has_store(self) -> bool {
        matches!(self.home(), Home::Store | Home::Stores) && !matches!(self, Self::TomcatFile)
    }

    /// Whether the lab can fill the store.
    #[must_use]
    pub const fn store_can_be_full(self) -> bool {
        self.has_store() && !matches!(self, Self::TomcatPostgres | Self::NodePostgres)
    }
}
