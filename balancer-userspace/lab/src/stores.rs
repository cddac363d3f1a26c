//! The stores in which web servers keep sessions: Redis, memcached, `PostgreSQL`, and the programs for their high
//! availability.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_demo::namespace::{Namespace, run};

use crate::{
    hosts::{Hosts, STORE_VIP, StoreHost},
    part::Part,
    software,
    strategy::Strategy,
};

pub(crate) const REDIS: u16 = 6379;
pub(crate) const SENTINEL: u16 = 26379;
pub(crate) const MEMCACHED: u16 = 11211;
pub(crate) const POSTGRES: u16 = 5432;
/// The memory limit of a memcached server, in megabytes.
const MEGABYTES: usize = 16;
/// The size in bytes of each value with which the lab fills a store's memory.
const JUNK: usize = 500_000;
/// The maximum time to wait for a store's answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The kind of store that a host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Redis,
    Replica,
    Memcached,
    Postgres,
    /// The host runs no store.
    Nothing,
}

/// The number of store hosts that a strategy needs.
pub(crate) const fn hosts_of(strategy: Strategy) -> u8 {
    match strategy {
        Strategy::NodeRedisSentinel | Strategy::NodeRedisHaproxy => 3,
        Strategy::NodeRedisKeepalived | Strategy::PhpMemcachedReplicas => 2,
        Strategy::PhpMemcached
        | Strategy::PhpRedis
        | Strategy::NodeRedis
        | Strategy::TomcatPostgres
        | Strategy::NodePostgres => 1,
        _ => 0,
    }
}

const fn kinds(strategy: Strategy) -> &'static [Kind] {
    match strategy {
        Strategy::NodeRedisSentinel | Strategy::NodeRedisHaproxy => &[Kind::Redis, Kind::Replica, Kind::Nothing],
        Strategy::NodeRedisKeepalived => &[Kind::Redis, Kind::Replica],
        Strategy::PhpMemcachedReplicas => &[Kind::Memcached, Kind::Memcached],
        Strategy::PhpMemcached => &[Kind::Memcached],
        Strategy::PhpRedis | Strategy::NodeRedis => &[Kind::Redis],
        Strategy::TomcatPostgres | Strategy::NodePostgres => &[Kind::Postgres],
        _ => &[],
    }
}

/// The running stores of a strategy.
#[derive(Debug)]
pub(crate) struct Stores {
    strategy: Strategy,
    stores: Vec<Option<Part>>,
    /// The running sentinels, proxies and similar programs.
    helpers: Vec<Part>,
}

impl Stores {
    /// Starts the stores of a strategy, and waits until they are ready.
    pub(crate) fn start(strategy: Strategy, hosts: &Hosts) -> Result<Self> {
        let mut this = Self { strategy, stores: Vec::new(), helpers: Vec::new() };
        for (index, &kind) in kinds(strategy).iter().enumerate() {
            if kind == Kind::Postgres {
                make_database(&hosts.stores[index].namespace, &hosts.directory("postgres")?)?;
            }
            let part = this.start_one(hosts, index)?;
            this.stores.push(part);
        }
        match strategy {
            Strategy::NodeRedisSentinel => this.start_sentinels(hosts)?,
            Strategy::NodeRedisHaproxy => {
                this.start_sentinels(hosts)?;
                this.start_haproxy(hosts)?;
            }
            Strategy::NodeRedisKeepalived => this.start_keepalived(hosts)?,
            Strategy::NodePostgres | Strategy::TomcatPostgres => make_tables(&hosts.stores[0])?,
            _ => {}
        }
        Ok(this)
    }

    /// Returns the addresses of stores for the configurations of web servers, as `HOST:PORT`.
    pub(crate) fn endpoints(&self, hosts: &Hosts) -> Vec<String> {
        let at = |port: u16| hosts.stores.iter().map(|store| format!("{}:{port}", store.address)).collect();
        match self.strategy {
            Strategy::NodeRedisSentinel => at(SENTINEL),
            Strategy::NodeRedisHaproxy => vec![format!("{}:{REDIS}", hosts.stores[2].address)],
            Strategy::NodeRedisKeepalived => vec![format!("{STORE_VIP}:{REDIS}")],
            Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas => at(MEMCACHED),
            Strategy::TomcatPostgres | Strategy::NodePostgres => at(POSTGRES),
            _ => at(REDIS),
        }
    }

    /// Restarts the first store gracefully.
    pub(crate) fn restart(&mut self, hosts: &Hosts) -> Result<()> {
        let slot = self.stores.first_mut().context("there is no store")?;
        if let Some(part) = slot {
            if kinds(self.strategy).first() == Some(&Kind::Postgres) {
                // The signal requests a "fast" shutdown: PostgreSQL does not wait for its clients.
                part.signal_alone(nix::sys::signal::Signal::SIGINT)?;
            }
            part.stop()?;
        }
        *slot = None;
        self.stores[0] = self.start_one(hosts, 0)?;
        Ok(())
    }

    /// Kills the process of the first store.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut part = self.stores.first_mut().and_then(Option::take).context("there is no store")?;
        part.kill()
    }

    /// Fills the memory of the stores, or frees it.
    pub(crate) fn fill(&self, hosts: &Hosts, full: bool) -> Result<()> {
        for (kind, store) in kinds(self.strategy).iter().zip(&hosts.stores) {
            match kind {
                Kind::Redis | Kind::Replica => {
                    let limit = if full { "1" } else { "0" };
                    let said = ask(store, REDIS, &[&format!("CONFIG SET maxmemory {limit}")])?;
                    ensure!(said == "+OK", "Redis does not take a limit: {said}");
                }
                Kind::Memcached if full => flood(store)?,
                Kind::Memcached | Kind::Nothing => {}
                Kind::Postgres => bail!("a full PostgreSQL is not played"),
            }
        }
        Ok(())
    }

    fn start_one(&self, hosts: &Hosts, index: usize) -> Result<Option<Part>> {
        let (store, logs) = (&hosts.stores[index], hosts.files());
        let name = format!("{}-store{}", self.name(index), index + 1);
        match kinds(self.strategy)[index] {
            Kind::Nothing => Ok(None),
            Kind::Memcached => {
                let mut command = store.namespace.command("memcached");
                command.args([
                    "-u",
                    "root",
                    "-l",
                    "0.0.0.0",
                    "-m",
                    &MEGABYTES.to_string(),
                    "-p",
                    &MEMCACHED.to_string(),
                ]);
                let mut part = Part::start(&name, &mut command, logs)?;
                part.wait("answering", || ask(store, MEMCACHED, &["version"]).is_ok())?;
                Ok(Some(part))
            }
            kind @ (Kind::Redis | Kind::Replica) => {
                let directory = hosts.directory(&name)?;
                let mut command = store.namespace.command("redis-server");
                command.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--port", &REDIS.to_string(), "--dir"]);
                command.arg(directory);
                if kind == Kind::Replica {
                    let first = hosts.stores[0].address.to_string();
                    command.args(["--replicaof", &first, &REDIS.to_string()]);
                }
                let mut part = Part::start(&name, &mut command, logs)?;
                part.wait("answering", || ask(store, REDIS, &["PING"]).is_ok_and(|said| said == "+PONG"))?;
                if kind == Kind::Replica {
                    let linked = |line: &str| line == "master_link_status:up";
                    part.wait("a replica", || redis_info(store).is_ok_and(|info| info.lines().any(linked)))?;
                }
                Ok(Some(part))
            }
            Kind::Postgres => {
                let data = hosts.files().join("postgres/data");
                let mut command = store.namespace.command("setpriv");
                command.args(UNPRIVILEGED).arg(software::postgres("postgres")?);
                command.arg("-D").arg(data).args([
                    "-h",
                    "0.0.0.0",
                    "-c",
                    "unix_socket_directories=",
                    "-c",
                    "synchronous_commit=off",
                ]);
                command.args(["-p", &POSTGRES.to_string()]);
                let mut part = Part::start(&name, &mut command, logs)?;
                part.wait("answering", || sql(store, "postgres", "SELECT 1").is_ok())?;
                Ok(Some(part))
            }
        }
    }

    fn name(&self, index: usize) -> &'static str {
        match kinds(self.strategy)[index] {
            Kind::Redis | Kind::Replica => "redis",
            Kind::Memcached => "memcached",
            Kind::Postgres => "postgres",
            Kind::Nothing => "none",
        }
    }

    fn start_sentinels(&mut self, hosts: &Hosts) -> Result<()> {
        for (number, store) in (1..).zip(&hosts.stores) {
            let name = format!("sentinel{number}");
            let directory = hosts.directory(&name)?;
            let config = directory.join("sentinel.conf");
            let text = format!(
                "port {SENTINEL}\nbind 0.0.0.0\nprotected-mode no\ndir {}\nsentinel monitor lab {} {REDIS} 2\n\
                 sentinel down-after-milliseconds lab 1000\nsentinel failover-timeout lab 5000\n",
                directory.display(),
                hosts.stores[0].address
            );
            fs::write(&config, text).with_context(|| config.display().to_string())?;
            let mut part = Part::start(&name, store.namespace.command("redis-sentinel").arg(&config), hosts.files())?;
            part.wait("answering", || ask(store, SENTINEL, &["PING"]).is_ok_and(|said| said == "+PONG"))?;
            self.helpers.push(part);
        }
        // The sentinels can fail over only after they have found each other and the replica.
        for store in &hosts.stores {
            let last = self.helpers.last_mut().context("no sentinel")?;
            let known = |line: &str| line.contains("slaves=1,sentinels=3");
            last.wait("a quorum", || redis_info_at(store, SENTINEL).is_ok_and(|info| info.lines().any(known)))?;
        }
        Ok(())
    }

    fn start_haproxy(&mut self, hosts: &Hosts) -> Result<()> {
        let config = hosts.files().join("redis-haproxy.cfg");
        let (first, second) = (hosts.stores[0].address, hosts.stores[1].address);
        let text = format!(
            "defaults\n mode tcp\n timeout connect 1s\n timeout client 1h\n timeout server 1h\n\
             listen redis\n bind 0.0.0.0:{REDIS}\n option tcp-check\n tcp-check connect\n tcp-check send PING\\r\\n\n \
             tcp-check expect string +PONG\n tcp-check send info\\ replication\\r\\n\n tcp-check expect string role:master\n \
             default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions\n \
             server redis1 {first}:{REDIS} check\n server redis2 {second}:{REDIS} check\n"
        );
        fs::write(&config, text).with_context(|| config.display().to_string())?;
        let store = &hosts.stores[2];
        let mut command = store.namespace.command("haproxy");
        let mut part = Part::start("redis-haproxy", command.arg("-db").arg("-f").arg(&config), hosts.files())?;
        part.wait("leading to Redis", || ask(store, REDIS, &["PING"]).is_ok_and(|said| said == "+PONG"))?;
        self.helpers.push(part);
        Ok(())
    }

    fn start_keepalived(&mut self, hosts: &Hosts) -> Result<()> {
        let promote = hosts.files().join("promote");
        let text = format!("#!/bin/sh\nexec timeout 2 redis-cli -p {REDIS} replicaof no one\n");
        script(&promote, &text)?;
        let check = hosts.files().join("redis-is-well");
        script(&check, &format!("#!/bin/sh\nexec timeout 2 redis-cli -p {REDIS} ping | grep -q PONG\n"))?;
        for (index, store) in hosts.stores.iter().enumerate() {
            let config = hosts.files().join(format!("redis-keepalived{}.conf", index + 1));
            let (own, other) = (store.address, hosts.stores[1 - index].address);
            // The promoted store stays the primary, because the previous primary has missed changes.
            let text = format!(
                "global_defs {{\n script_user root\n}}\nvrrp_script redis {{\n script \"{}\"\n interval 1\n timeout 3\n fall 2\n \
                 rise 1\n}}\nvrrp_instance redis {{\n state BACKUP\n nopreempt\n interface eth0\n virtual_router_id 52\n \
                 priority {}\n advert_int 1\n unicast_src_ip {own}\n unicast_peer {{\n {other}\n }}\n virtual_ipaddress {{\n \
                 {STORE_VIP}/32 dev eth0\n }}\n track_script {{\n redis\n }}\n notify_master \"{}\"\n}}\n",
                check.display(),
                150 - 50 * index,
                promote.display(),
            );
            fs::write(&config, text).with_context(|| config.display().to_string())?;
            let mut command = store.namespace.command("keepalived");
            command.args(["--dont-fork", "--log-console", "--vrrp"]).arg("-f").arg(&config);
            command.arg("-p").arg(config.with_extension("pid")).arg("-r").arg(config.with_extension("vrrp-pid"));
            let mut part = Part::start(&format!("redis-keepalived{}", index + 1), &mut command, hosts.files())?;
            if index == 0 {
                let address = format!("{STORE_VIP}/32");
                part.wait("the owner of Redis' address", || {
                    store.namespace.ip("-4 addr show dev eth0").is_ok_and(|text| text.contains(&address))
                })?;
            }
            self.helpers.push(part);
        }
        Ok(())
    }
}

fn script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).with_context(|| path.display().to_string())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| path.display().to_string())
}

/// Sends lines to a store, and returns the first line of the answer.
fn ask(store: &StoreHost, port: u16, lines: &[&str]) -> Result<String> {
    let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
    store.namespace.run_in_thread(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        for line in lines {
            stream.write_all(format!("{line}\r\n").as_bytes())?;
        }
        let mut said = String::new();
        BufReader::new(stream).read_line(&mut said)?;
        Ok(said.trim_end().to_owned())
    })?
}

fn redis_info(store: &StoreHost) -> Result<String> {
    redis_info_at(store, REDIS)
}

fn redis_info_at(store: &StoreHost, port: u16) -> Result<String> {
    let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
    store.namespace.run_in_thread(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let section = if port == REDIS { "replication" } else { "sentinel" };
        stream.write_all(format!("INFO {section}\r\n").as_bytes())?;
        let mut answer = BufReader::new(stream);
        let mut length = String::new();
        answer.read_line(&mut length)?;
        let length = length.trim().strip_prefix('$').context("no text")?.parse()?;
        let mut said = String::new();
        answer.take(length).read_to_string(&mut said)?;
        Ok(said)
    })?
}

/// Stores twice as much data as fits into the store's memory.
fn flood(store: &StoreHost) -> Result<()> {
    let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), MEMCACHED);
    store.namespace.run_in_thread(|| -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let junk = "x".repeat(JUNK);
        for number in 0..2 * (MEGABYTES << 20) / JUNK {
            stream.write_all(format!("set junk{number} 0 0 {JUNK}\r\n{junk}\r\n").as_bytes())?;
            let mut said = String::new();
            answers.read_line(&mut said)?;
        }
        Ok(())
    })?
}

/// The arguments of `setpriv` that make the following command run as the database's user.
const UNPRIVILEGED: [&str; 4] = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"];

fn make_database(host: &Namespace, directory: &Path) -> Result<()> {
    let user = nix::unistd::User::from_name("postgres")?;
    let user = user.context("there is no user postgres: `apt-get install postgresql` makes it")?;
    std::os::unix::fs::chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let data = directory.join("data");
    let mut command = host.command("setpriv");
    command.args(UNPRIVILEGED).arg(software::postgres("initdb")?).arg("-D").arg(&data);
    run(command.args(["-U", "lab", "-A", "trust", "--no-sync", "--no-instructions"]))?;
    let rules = data.join("pg_hba.conf");
    let mut text = fs::read_to_string(&rules)?;
    text += "host all all 0.0.0.0/0 trust\n";
    fs::write(&rules, text).with_context(|| rules.display().to_string())
}

fn make_tables(store: &StoreHost) -> Result<()> {
    sql(store, "postgres", "CREATE DATABASE lab")?;
    sql(store, "lab", software::own::TABLES)
}

fn sql(store: &StoreHost, database: &str, text: &str) -> Result<()> {
    let mut command: Command = store.namespace.command(software::postgres("psql")?);
    let host = IpAddr::from([127, 0, 0, 1]).to_string();
    command.args(["-q", "-v", "ON_ERROR_STOP=1", "-U", "lab", "-h", &host, "-d", database, "-c", text]);
    run(&mut command).map(drop)
}
