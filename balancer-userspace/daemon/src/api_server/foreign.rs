//! Services may use only those programs, files and trees of etcd that the balancer's own configuration file names.
//! Members of the control socket's group may change services, but must not be able to run an arbitrary program as
//! another user, or to make the balancer read or send what only the balancer can read.

use std::{collections::HashSet, path::Path};

use balancer_config::{
    config::{CheckConfig, CheckKind, Config, FileUse, ServiceConfig},
    discover::Source,
    validate::Valid,
    value,
};
use hyper::StatusCode;

use super::failure::Failure;
use crate::configuration::Configurations;

/// A program, a file or a list that a service takes from this machine with the rights of the balancer.
#[derive(PartialEq, Eq, Hash)]
enum Taken<'a> {
    Program { command: &'a [String], user: &'a str },
    CheckFile(FileUse, &'a Path),
    DenyFile(&'a Path),
    List(&'a Source),
}

/// Refuses services that run a program as some user, or read a file or a tree of etcd for some purpose, unless a
/// service in the balancer's own configuration file does the same.
///
/// # Errors
/// Fails if there is such a service.
pub(super) async fn refuse(configurations: &Configurations, services: &Valid) -> Result<(), Failure> {
    let mut wanted = all(services).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    let own = own(configurations).await;
    let known: HashSet<Taken<'_>> = own.iter().flat_map(|own| all(&own.services)).collect();
    let Some(foreign) = wanted.find(|wanted| !known.contains(wanted)) else { return Ok(()) };
    let message = format!("nothing was changed: {} only from {}", foreign.told(), whence(configurations));
    Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message))
}

/// Refuses a configuration whose `[control]` differs from that in the balancer's own file: members of the control
/// socket's group must not be able to grant access to other users, or to make the balancer write a file.
///
/// # Errors
/// Fails if the configuration has a different `[control]`.
pub(super) async fn refuse_control(configurations: &Configurations, config: &Config) -> Result<(), Failure> {
    if own(configurations).await.is_some_and(|own| own.control == config.control) {
        return Ok(());
    }
    let message =
        format!("nothing was changed: [control] is another one, which comes only from {}", whence(configurations));
    Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, message))
}

/// The current contents of the balancer's own configuration file; `None` if the file is missing or invalid.
async fn own(configurations: &Configurations) -> Option<Config> {
    let path = configurations.own().map(Path::to_owned)?;
    configurations.load(path).await.ok()?.0.ok().map(|(config, _)| config)
}

fn whence(configurations: &Configurations) -> String {
    configurations.own().map_or_else(
        || "the file that a balancer is started with, and this one was started without".to_owned(),
        |own| format!("the balancer's own file: change {0}, then: balancer apply {0} --reread", own.display()),
    )
}

fn all(services: &Valid) -> impl Iterator<Item = Taken<'_>> {
    services.iter().flat_map(|service| of(service))
}

/// The programs, files and lists that a service takes from this machine. The pattern names every key, so that each new
/// key is judged.
fn of(service: &ServiceConfig) -> Vec<Taken<'_>> {
    let ServiceConfig {
        check: _,
        backends: _,
        deny,
        discover,
        // The other keys name neither files nor programs.
        name: _,
        renamed_from: _,
        drop_in: _,
        listen: _,
        ports: _,
        forwarding: _,
        table_size: _,
        client_prefix: _,
        remember: _,
        failback: _,
        when_all_down: _,
        when_full: _,
        slow_start: _,
        drain_timeout: _,
        drain_until: _,
        drain_grace: _,
        on_failure: _,
        withhold: _,
        snat: _,
        outage: _,
        start_down: _,
        reject: _,
        steer: _,
        assign_vip: _,
        agent: _,
        bounded_load: _,
        quic: _,
        spread_heavy: _,
        rules: _,
    } = service;
    let mut taken: Vec<Taken<'_>> = service.checks().flat_map(of_check).collect();
    taken.extend(deny.iter().map(|deny| Taken::DenyFile(&deny.file)));
    // Anybody may ask DNS servers.
    let lists = discover.iter().map(|list| &list.source).filter(|source| source.dns().is_none());
    taken.extend(lists.map(Taken::List));
    taken
}

fn of_check(check: &CheckConfig) -> Vec<Taken<'_>> {
    if let CheckKind::Exec(exec) = &check.kind {
        return vec![Taken::Program { command: &exec.command, user: &exec.user }];
    }
    check.kind.files().map(|(purpose, file)| Taken::CheckFile(purpose, file)).collect()
}

impl Taken<'_> {
    /// The message that the service takes something new, and that only the balancer's own configuration file may
    /// introduce it.
    fn told(&self) -> String {
        match self {
            Self::Program { command, user } => format!(
                "the check that runs {} as {} is new, and programs come",
                value::quoted(&command.join(" ")),
                value::quoted(user)
            ),
            Self::CheckFile(purpose, file) => {
                format!("{purpose} {} is new, and files of checks come", file.display())
            }
            Self::DenyFile(file) => {
                format!("the list of denied prefixes {} is new, and files come", file.display())
            }
            Self::List(source) => format!("the list of targets in {source} is new, and files and trees of etcd come"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use balancer_config::file;

    use super::*;

    const TOKEN: &str = "type = \"https\", headers = { Authorization = { file = \"/etc/token\" } }";
    const ROOTS: &str = "type = \"https\", ca_file = \"/etc/ca.pem\"";
    const CERT: &str = "type = \"grpcs\", client_cert = \"/etc/cert.pem\"";
    const KEY: &str = "type = \"grpcs\", client_cert = \"/etc/cert.pem\", client_key = \"/etc/ca.pem\"";

    fn text(check: &str) -> String {
        service(&format!("check = {{ {check} }}"))
    }

    fn service(keys: &str) -> String {
        format!(
            "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:443\"\nforwarding = \"nat\"\n\
             {keys}\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\n"
        )
    }

    /// Returns the refusal of a configuration with the check `wanted`, if the balancer's own file has the check `own`.
    async fn refused(own: Option<&str>, wanted: &str) -> Option<String> {
        refused_text(own.map(text), &text(wanted)).await
    }

    /// Returns the refusal of the configuration `wanted`, if the balancer's own file has the text `own`.
    async fn refused_text(own: Option<String>, wanted: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own.toml");
        let mut configurations = Configurations::default();
        if let Some(own) = own {
            fs::write(&path, own).unwrap();
            configurations = configurations.of(path);
        }
        let wanted = file::parse("web.toml".as_ref(), wanted.as_bytes()).unwrap().0;
        refuse(&configurations, &wanted.services).await.err().map(|failure| format!("{failure:?}"))
    }

    #[tokio::test]
    async fn when_a_check_needs_a_file_then_the_own_file_must_name_it_for_that_purpose() {
        let swapped = TOKEN.replace("/etc/token", "/etc/ca.pem");
        for (own, wanted) in [(Some(TOKEN), TOKEN), (Some(ROOTS), ROOTS), (None, "type = \"tcp\"")] {
            assert_eq!(refused(own, wanted).await, None, "{own:?} {wanted}");
        }
        for (own, wanted, words) in [
            (
                None,
                TOKEN,
                "the header whose value is in /etc/token is new, and files of checks come only from the file",
            ),
            (Some(ROOTS), TOKEN, "the header whose value is in /etc/token is new"),
            (
                Some(TOKEN),
                ROOTS,
                "the ca_file /etc/ca.pem is new, and files of checks come only from the balancer's own file",
            ),
            (Some(ROOTS), &swapped, "the header whose value is in /etc/ca.pem is new"),
            (Some(ROOTS), CERT, "the client_cert /etc/cert.pem is new, and files of checks come"),
            (Some(CERT), KEY, "the client_key /etc/ca.pem is new, and files of checks come"),
        ] {
            let why = refused(own, wanted).await.unwrap_or_default();
            assert!(why.contains(words), "{why}");
        }
    }
    #[tokio::test]
    async fn when_a_service_reads_a_file_or_a_tree_then_the_own_file_must_name_it_for_that_purpose() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("prefixes");
        fs::write(&file, "192.0.2.0/24\n").unwrap();
        let deny = service(&format!("deny = {{ file = \"{}\" }}", file.display()));
        let list = |source: &str| service(&format!("[[service.discover]]\n{source}\n"));
        let from_file = list(&format!("file = \"{}\"", file.display()));
        let tree = list("etcd = \"/services/web\"\nendpoints = [\"http://192.0.2.1:2379\"]");
        let dns = list("dns = \"_web._tcp.example.com\"");
        assert_eq!(refused_text(None, &dns).await, None);
        for (wanted, words) in [
            (&deny, "the list of denied prefixes "),
            (&from_file, "the list of targets in "),
            (&tree, "the list of targets in etcd /services/web/ is new"),
        ] {
            assert_eq!(refused_text(Some(wanted.clone()), wanted).await, None);
            for own in [None, Some(dns.clone()), Some(text(TOKEN))] {
                let why = refused_text(own, wanted).await.unwrap_or_default();
                assert!(why.contains(words), "{why}");
            }
        }
        let why = refused_text(Some(deny), &from_file).await.unwrap_or_default();
        assert!(why.contains("the list of targets in "), "a file of denied prefixes is no file of targets: {why}");
    }
}
