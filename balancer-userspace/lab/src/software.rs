//! Finds the programs and files that the lab needs, and explains how to install those that are missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{event::Event, row::Row, strategy::Strategy};
use anyhow::{Context as _, Result, bail, ensure};
use balancer_demo::needs;

/// The lab's own applications and configurations.
pub(crate) mod own {
    pub(crate) const NODE: &str = include_str!("../parts/node/app.js");
    pub(crate) const PHP: &str = include_str!("../parts/php/index.php");
    pub(crate) const TOMCAT: &str = include_str!("../parts/tomcat/server.xml");
    pub(crate) const TOMCAT_PAGE: &str = include_str!("../parts/tomcat/session.jsp");
    pub(crate) const TOMCAT_APPLICATION: &str = include_str!("../parts/tomcat/web.xml");
    pub(crate) const TABLES: &str = include_str!("../parts/sessions.sql");
    /// The list of the Node application's packages, which npm installs.
    pub(super) const NODE_PACKAGE: &str = include_str!("../parts/node/package.json");
}

/// Returns the directory in which npm has installed the packages of the Node servers: `asked`, or the directory that
/// the set-up of a checkout uses.
pub(crate) fn node_modules(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        let path = path.canonicalize().with_context(|| path.display().to_string())?;
        ensure!(path.join("express").is_dir(), "{} has no express: {}", path.display(), npm_install());
        return Ok(path);
    }
    let own = env::current_exe().context("the running program's path is unknown")?;
    let mut places = own.ancestors().map(|path| path.join("lab/node/node_modules"));
    places.find(|path| path.is_dir()).with_context(|| {
        format!(
            "what the Node servers are made of is missing: `cargo xtask lab sessions` installs it, or {}",
            npm_install()
        )
    })
}

/// Explains how to install the packages of the Node servers.
fn npm_install() -> String {
    let package: serde_json::Value = serde_json::from_str(own::NODE_PACKAGE).unwrap_or_default();
    let wanted = package["dependencies"].as_object().into_iter().flatten();
    let wanted: Vec<String> =
        wanted.map(|(name, version)| format!("{name}@{}", version.as_str().unwrap_or_default())).collect();
    format!("`npm install --prefix DIRECTORY {}`, and --node-modules DIRECTORY/node_modules", wanted.join(" "))
}

/// Finds a program of `PostgreSQL`.
pub(crate) fn postgres(program: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin").join(program)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found.pop().with_context(|| missing(program, "postgresql"))
}

/// Finds the newest installed `php-fpm`.
pub(crate) fn php_fpm() -> Result<PathBuf> {
    let entries = fs::read_dir("/usr/sbin").into_iter().flatten().flatten();
    let name = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("php-fpm"));
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| name(path)).collect();
    found.sort();
    found.pop().with_context(|| missing("php-fpm", "php-fpm"))
}

/// Fails if a program or file that a row needs is missing.
pub(crate) fn ensure_parts(row: Row, events: &[Event], modules: Option<&Path>) -> Result<()> {
    for event in events {
        let routing = match event {
            Event::Standby => ("keepalived", "keepalived"),
            Event::Member => ("bird", "bird2"),
            _ => continue,
        };
        [("etcd", "etcd-server"), routing].iter().try_for_each(|&(name, package)| program(name, package))?;
    }
    programs(row.strategy).iter().try_for_each(|&(name, package)| program(name, package))?;
    files(row.strategy).iter().try_for_each(|&(path, package)| file(path, package))?;
    if let Some(rule) = row.front.rule() {
        let (name, package) = rule.program();
        program(name, package)?;
    }
    match row.strategy {
        Strategy::PhpFiles | Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas | Strategy::PhpRedis => {
            php_fpm().map(drop)
        }
        Strategy::TomcatPostgres => postgres("postgres").map(drop),
        Strategy::NodePostgres => postgres("postgres").and_then(|_| node_modules(modules)).map(drop),
        strategy if is_node(strategy) => node_modules(modules).map(drop),
        _ => Ok(()),
    }
}

/// Whether the servers of the strategy run Node.
pub(crate) const fn is_node(strategy: Strategy) -> bool {
    matches!(
        strategy,
        Strategy::NodeMemory
            | Strategy::NodeRedis
            | Strategy::NodeRedisSentinel
            | Strategy::NodeRedisHaproxy
            | Strategy::NodeRedisKeepalived
            | Strategy::NodePostgres
            | Strategy::NodeCookie
            | Strategy::NodeEncryptedCookie
    )
}

/// Whether the servers of the strategy run PHP.
pub(crate) const fn is_php(strategy: Strategy) -> bool {
    matches!(
        strategy,
        Strategy::PhpFiles | Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas | Strategy::PhpRedis
    )
}

/// The programs that a strategy requires, with their Debian packages.
fn programs(strategy: Strategy) -> Vec<(&'static str, &'static str)> {
    let mut programs = Vec::new();
    if is_node(strategy) {
        programs.push(("node", "nodejs"));
    } else if is_php(strategy) {
        programs.push(("nginx", "nginx-light"));
    } else {
        programs.push(("java", "default-jre-headless"));
    }
    match strategy {
        Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas => programs.push(("memcached", "memcached")),
        Strategy::PhpRedis | Strategy::NodeRedis => programs.push(("redis-server", "redis-server")),
        Strategy::NodeRedisSentinel => programs.push(("redis-sentinel", "redis-sentinel")),
        Strategy::NodeRedisHaproxy => programs.extend([("redis-sentinel", "redis-sentinel"), ("haproxy", "haproxy")]),
        Strategy::NodeRedisKeepalived => {
            programs.extend([("redis-server", "redis-server"), ("keepalived", "keepalived")]);
        }
        Strategy::TomcatPostgres | Strategy::NodePostgres => programs.push(("setpriv", "util-linux")),
        _ => {}
    }
    programs
}

/// The files that a strategy requires, with their Debian packages.
fn files(strategy: Strategy) -> Vec<(&'static str, &'static str)> {
    let mut files = Vec::new();
    if !is_node(strategy) && !is_php(strategy) {
        files.extend([
            ("/usr/share/tomcat10/bin/bootstrap.jar", "tomcat10-common"),
            ("/usr/share/tomcat10/lib/catalina-tribes.jar", "libtomcat10-java"),
        ]);
    }
    if strategy == Strategy::TomcatPostgres {
        files.push((JDBC, "libpostgresql-jdbc-java"));
    }
    files
}

/// The path of the file with `PostgreSQL`'s driver for Java.
pub(crate) const JDBC: &str = "/usr/share/java/postgresql.jar";

fn program(name: &str, package: &str) -> Result<()> {
    ensure!(needs::is_installed(name), missing(name, package));
    Ok(())
}

fn file(path: &str, package: &str) -> Result<()> {
    if Path::new(path).is_file() {
        return Ok(());
    }
    bail!(missing(path, package))
}

fn missing(what: &str, package: &str) -> String {
    format!("{what} is missing: `cargo xtask lab sessions` installs it, or `apt-get install {package}`")
}
