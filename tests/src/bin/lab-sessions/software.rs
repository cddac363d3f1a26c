//! Programs and files of the parts, and what to do where one is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use balancer_tests::sessions::{
    row::{Front, Row},
    strategy::Strategy,
};

/// Where the lab's own files are: applications and configurations.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab")
}

/// Where `npm ci` has put what the Node servers are made of.
pub(crate) fn node_modules() -> Result<PathBuf> {
    let own = env::current_exe().context("the running program's path is unknown")?;
    let target = own.ancestors().find(|path| path.join("lab/node/node_modules").is_dir());
    let target = target.context(
        "what the Node servers are made of is missing (target/lab/node/node_modules): `cargo xtask lab sessions` installs it",
    )?;
    Ok(target.join("lab/node/node_modules"))
}

/// `PostgreSQL`'s programs.
pub(crate) fn postgres(program: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin").join(program)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found.pop().with_context(|| missing(program, "postgresql"))
}

/// The newest `php-fpm`.
pub(crate) fn php_fpm() -> Result<PathBuf> {
    let entries = fs::read_dir("/usr/sbin").into_iter().flatten().flatten();
    let name = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("php-fpm"));
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| name(path)).collect();
    found.sort();
    found.pop().with_context(|| missing("php-fpm", "php-fpm"))
}

/// Complains where a part of a row is missing.
pub(crate) fn ensure(row: Row) -> Result<()> {
    programs(row.strategy).iter().try_for_each(|&(name, package)| program(name, package))?;
    files(row.strategy).iter().try_for_each(|&(path, package)| file(path, package))?;
    match row.front {
        Front::Sticky | Front::Spread => Ok(()),
        Front::NginxIpHash | Front::NginxConsistent | Front::NginxCookie => program("nginx", "nginx-light"),
        Front::HaproxySource | Front::HaproxyTable | Front::HaproxyCookie => program("haproxy", "haproxy"),
    }?;
    match row.strategy {
        Strategy::PhpFiles | Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas | Strategy::PhpRedis => {
            php_fpm().map(drop)
        }
        Strategy::TomcatPostgres => postgres("postgres").map(drop),
        Strategy::NodePostgres => postgres("postgres").and_then(|_| node_modules()).map(drop),
        strategy if is_node(strategy) => node_modules().map(drop),
        _ => Ok(()),
    }
}

/// Whether its servers are Node's.
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

/// Whether its servers are PHP's.
pub(crate) const fn is_php(strategy: Strategy) -> bool {
    matches!(
        strategy,
        Strategy::PhpFiles | Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas | Strategy::PhpRedis
    )
}

/// Programs, and the packages that bring them.
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

/// Files, and the packages that bring them.
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

/// `PostgreSQL`'s driver for Java.
pub(crate) const JDBC: &str = "/usr/share/java/postgresql.jar";

fn program(name: &str, package: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    if env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
        return Ok(());
    }
    bail!(missing(name, package))
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
