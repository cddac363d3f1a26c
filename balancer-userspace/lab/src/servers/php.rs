//! Runs web servers with PHP-FPM behind nginx, both on the same host.

use std::fs;

use anyhow::{Context as _, Result};

use super::{PORT, Setting};
use crate::{part::Part, software, strategy::Strategy};

pub(super) fn start(setting: &Setting<'_>, number: u16) -> Result<Vec<Part>> {
    let name = format!("web{number}");
    let directory = setting.hosts.directory(&name)?;
    let files = directory.join("sessions");
    fs::create_dir_all(&files)?;
    let at = |file: &str| directory.join(file).display().to_string();
    let values: Vec<String> = settings(setting, &files.display().to_string())
        .into_iter()
        .map(|(key, value)| format!("php_admin_value[{key}] = {value}\n"))
        .collect();
    let fpm = format!(
        "[global]\nerror_log = {}\ndaemonize = no\n[www]\nuser = root\ngroup = root\nlisten = {}\npm = static\n\
         pm.max_children = 4\n{}",
        at("fpm.log"),
        at("fpm.sock"),
        values.concat()
    );
    let nginx = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {};\nerror_log {} error;\nevents {{ worker_connections 512; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {};\nfastcgi_temp_path {};\nproxy_temp_path {};\nuwsgi_temp_path {};\n\
         scgi_temp_path {};\nserver {{\nlisten {PORT};\nserver_name {name};\nlocation / {{\n\
         fastcgi_param QUERY_STRING $query_string;\nfastcgi_param REQUEST_METHOD $request_method;\n\
         fastcgi_param CONTENT_TYPE $content_type;\nfastcgi_param CONTENT_LENGTH $content_length;\n\
         fastcgi_param REQUEST_URI $request_uri;\nfastcgi_param SERVER_PROTOCOL $server_protocol;\n\
         fastcgi_param REMOTE_ADDR $remote_addr;\nfastcgi_param SERVER_NAME {name};\nfastcgi_param SCRIPT_FILENAME {};\n\
         fastcgi_pass unix:{};\n}}\n}}\n}}\n",
        at("nginx.pid"),
        at("nginx.log"),
        at("body"),
        at("fastcgi"),
        at("proxy"),
        at("uwsgi"),
        at("scgi"),
        at("index.php"),
        at("fpm.sock"),
    );
    for (file, text) in [("fpm.conf", fpm.as_str()), ("nginx.conf", &nginx), ("index.php", software::own::PHP)] {
        fs::write(at(file), text).with_context(|| at(file))?;
    }
    let host = &setting.hosts.topology.backends()[usize::from(number) - 1];
    let mut fpm = host.command(software::php_fpm()?);
    fpm.args(["--nodaemonize", "--allow-to-run-as-root", "--fpm-config", &at("fpm.conf")]);
    let mut nginx = host.command("nginx");
    nginx.args(["-c", &at("nginx.conf"), "-e", &at("nginx.log")]);
    let logs = setting.hosts.files();
    let fpm = Part::start(&format!("{name}-php-fpm"), &mut fpm, logs)?;
    Ok(vec![fpm, Part::start(&format!("{name}-nginx"), &mut nginx, logs)?])
}

/// The settings for sessions in PHP.
fn settings(setting: &Setting<'_>, files: &str) -> Vec<(&'static str, String)> {
    let mut settings = vec![("session.gc_maxlifetime", "3600".to_owned()), ("session.use_strict_mode", "0".to_owned())];
    let (handler, path) = match setting.strategy {
        Strategy::PhpMemcached | Strategy::PhpMemcachedReplicas => ("memcached", setting.endpoints.join(",")),
        Strategy::PhpRedis => {
            let servers: Vec<String> = setting.endpoints.iter().map(|at| format!("tcp://{at}?timeout=1")).collect();
            ("redis", servers.join(","))
        }
        _ => ("files", files.to_owned()),
    };
    settings.extend([("session.save_handler", handler.to_owned()), ("session.save_path", format!("\"{path}\""))]);
    match setting.strategy {
        Strategy::PhpMemcachedReplicas => settings.extend([
            // The replication of sessions needs memcached's binary protocol.
            ("memcached.sess_binary_protocol", "1".to_owned()),
            ("memcached.sess_number_of_replicas", "1".to_owned()),
            ("memcached.sess_randomize_replica_read", "0".to_owned()),
            ("memcached.sess_remove_failed_servers", "1".to_owned()),
            ("memcached.sess_connect_timeout", "500".to_owned()),
            ("memcached.sess_locking", "1".to_owned()),
            ("memcached.sess_lock_expire", "5".to_owned()),
        ]),
        Strategy::PhpMemcached => settings.push(("memcached.sess_locking", "1".to_owned())),
        Strategy::PhpRedis => settings
            .extend([("redis.session.locking_enabled", "1".to_owned()), ("redis.session.lock_expire", "5".to_owned())]),
        _ => {}
    }
    settings
}
