//! Runs web servers with Tomcat 10.

use std::{fmt::Write as _, fs, os::unix::fs::symlink};

use anyhow::{Context as _, Result};

use super::Setting;
use crate::{hosts::server_address, part::Part, software, strategy::Strategy};

const HOME: &str = "/usr/share/tomcat10";
/// The port on which Tomcat servers exchange sessions.
const CLUSTER: u16 = 4000;

pub(super) fn start(setting: &Setting<'_>, number: u16) -> Result<Vec<Part>> {
    let name = format!("web{number}");
    let base = setting.hosts.directory(&name)?;
    for directory in ["conf", "logs", "temp", "work", "lib", "webapps/ROOT/WEB-INF"] {
        fs::create_dir_all(base.join(directory))?;
    }
    let cluster = cluster(setting, number)?;
    let text = software::own::TOMCAT.replace("@CLUSTER@", &cluster).replace("@CONTEXT@", &context(setting)?);
    for (file, text) in [
        ("webapps/ROOT/session.jsp", software::own::TOMCAT_PAGE),
        ("webapps/ROOT/WEB-INF/web.xml", software::own::TOMCAT_APPLICATION),
        ("conf/server.xml", &text),
    ] {
        fs::write(base.join(file), text).with_context(|| base.join(file).display().to_string())?;
    }
    let driver = base.join("lib/postgresql.jar");
    if setting.strategy == Strategy::TomcatPostgres && !driver.exists() {
        symlink(software::JDBC, &driver)?;
    }
    let mut command = setting.hosts.topology.backends()[usize::from(number) - 1].command("java");
    command.args(["-Xms48m", "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
    command.args([format!("-Dlab.name={name}"), format!("-Dcatalina.home={HOME}")]);
    command.arg(format!("-Dcatalina.base={}", base.display()));
    command.arg(format!("-Djava.io.tmpdir={}", base.join("temp").display()));
    command.arg("-cp").arg(format!("{HOME}/bin/bootstrap.jar:{HOME}/bin/tomcat-juli.jar"));
    command.args(["org.apache.catalina.startup.Bootstrap", "start"]);
    Ok(vec![Part::start(&format!("{name}-tomcat"), &mut command, setting.hosts.files())?])
}

/// Returns the configuration of Tomcat's session manager for this strategy.
fn context(setting: &Setting<'_>) -> Result<String> {
    Ok(match setting.strategy {
        Strategy::TomcatFile => {
            let shared = setting.hosts.directory("shared")?;
            format!(
                "<Manager className=\"org.apache.catalina.session.PersistentManager\" maxIdleBackup=\"0\" saveOnRestart=\"true\" \
                 processExpiresFrequency=\"1\">\n<Store className=\"org.apache.catalina.session.FileStore\" directory=\"{}\"/>\n</Manager>",
                shared.display()
            )
        }
        Strategy::TomcatPostgres => {
            let at = setting.endpoints.first().context("a database is missing")?;
            format!(
                "<Resource name=\"jdbc/lab\" auth=\"Container\" type=\"javax.sql.DataSource\" \
                 factory=\"org.apache.tomcat.jdbc.pool.DataSourceFactory\" driverClassName=\"org.postgresql.Driver\" \
                 url=\"jdbc:postgresql://{at}/lab?connectTimeout=1&amp;socketTimeout=2\" username=\"lab\" password=\"\" \
                 maxActive=\"8\" testOnBorrow=\"true\" validationQuery=\"SELECT 1\" validationInterval=\"500\"/>\n\
                 <Valve className=\"org.apache.catalina.valves.PersistentValve\"/>\n\
                 <Manager className=\"org.apache.catalina.session.PersistentManager\" maxIdleBackup=\"0\" saveOnRestart=\"true\">\n\
                 <Store className=\"org.apache.catalina.session.DataSourceStore\" dataSourceName=\"jdbc/lab\" \
                 localDataSource=\"true\" sessionTable=\"tomcat_sessions\" sessionIdCol=\"session_id\" \
                 sessionAppCol=\"app_name\" sessionDataCol=\"session_data\" sessionValidCol=\"valid_session\" \
                 sessionMaxInactiveCol=\"max_inactive\" sessionLastAccessedCol=\"last_access\"/>\n</Manager>"
            )
        }
        _ => String::new(),
    })
}

/// Returns the configuration by which Tomcat servers find each other and exchange sessions.
fn cluster(setting: &Setting<'_>, number: u16) -> Result<String> {
    let manager = match setting.strategy {
        Strategy::TomcatDelta | Strategy::TomcatDelta3 | Strategy::TomcatDelta6 | Strategy::TomcatDelta9 => {
            "org.apache.catalina.ha.session.DeltaManager"
        }
        Strategy::TomcatBackup => "org.apache.catalina.ha.session.BackupManager",
        _ => return Ok(String::new()),
    };
    // DeltaManager is the only manager that fetches all sessions when it starts.
    let transfer = if setting.strategy == Strategy::TomcatBackup { "" } else { " stateTransferTimeout=\"10\"" };
    let own = u8::try_from(number)?;
    let member = |element: &str, number: u8| {
        format!(
            "<{element} className=\"org.apache.catalina.tribes.membership.StaticMember\" host=\"{}\" port=\"{CLUSTER}\" \
             uniqueId=\"{{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,{number}}}\"/>\n",
            server_address(number)
        )
    };
    let mut members = member("LocalMember", own);
    for other in (1..=u8::try_from(setting.servers)?).filter(|&other| other != own) {
        members += &member("Member", other);
    }
    let mut text = format!(
        "<Cluster className=\"org.apache.catalina.ha.tcp.SimpleTcpCluster\" channelSendOptions=\"6\">\n\
         <Manager className=\"{manager}\" notifyListenersOnReplication=\"true\"{transfer}/>\n\
         <Channel className=\"org.apache.catalina.tribes.group.GroupChannel\">\n\
         <Membership className=\"org.apache.catalina.tribes.membership.StaticMembershipService\">\n{members}</Membership>\n"
    );
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "<Receiver className=\"org.apache.catalina.tribes.transport.nio.NioReceiver\" address=\"{}\" port=\"{CLUSTER}\" \
         autoBind=\"0\" maxThreads=\"6\"/>\n\
         <Sender className=\"org.apache.catalina.tribes.transport.ReplicationTransmitter\">\n\
         <Transport className=\"org.apache.catalina.tribes.transport.nio.PooledParallelSender\" timeout=\"1000\"/>\n</Sender>\n\
         <Interceptor className=\"org.apache.catalina.tribes.group.interceptors.TcpPingInterceptor\"/>\n\
         <Interceptor className=\"org.apache.catalina.tribes.group.interceptors.TcpFailureDetector\"/>\n</Channel>\n\
         <Valve className=\"org.apache.catalina.ha.tcp.ReplicationValve\" filter=\"\"/>\n</Cluster>",
        server_address(own)
    );
    Ok(text)
}
