//! Checks may use only those programs and files of this machine that the balancer's own configuration file names.
//! Members of the control socket's group may change services, but must not be able to run an arbitrary program as
//! another user, or to make the balancer send a file that only the balancer can read.

use std::{collections::HashSet, path::Path};

use balancer_config::{
    config::{CheckConfig, CheckKind, Config, FileUse},
    validate::Valid,
    value,
};
use hyper::StatusCode;

use super::failure::Failure;
use crate::configuration::Configurations;

/// A program or file that a check takes from this machine.
#[derive(PartialEq, Eq, Hash)]
enum Taken<'a> {
    Program { command: &'a [String], user: &'a str },
    File(FileUse, &'a Path),
}

/// Refuses services in which a check runs a program as some user, or reads a file for some purpose, unless a
/// check in the balancer's own configuration file does the same with this program or file.
///
/// # Errors
/// Fails if a service has such a check.
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
    services.iter().flat_map(|service| service.checks()).flat_map(of)
}

fn of(check: &CheckConfig) -> Vec<Taken<'_>> {
    if let CheckKind::Exec(exec) = &check.kind {
        return vec![Taken::Program { command: &exec.command, user: &exec.user }];
    }
    check.kind.files().map(|(purpose, file)| Taken::File(purpose, file)).collect()
}

impl Taken<'_> {
    /// The message that the program or file is new, and that only the balancer's own configuration file may introduce
    /// it.
    fn told(&self) -> String {
        match self {
            Self::Program { command, user } => format!(
                "the check that runs {} as {} is new, and programs come",
                value::quoted(&command.join(" ")),
                value::quoted(user)
            ),
            Self::File(purpose, file) => {
                format!("{purpose} {} is new, and files of checks come", file.display())
            }
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
        format!(
            "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\naddress = \"198.51.100.10:443\"\nforwarding = \"nat\"\n\
             check = {{ {check} }}\n[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\n"
        )
    }

    /// Returns the refusal of a configuration with the check `wanted`, if the balancer's own file has the check `own`.
    async fn refused(own: Option<&str>, wanted: &str) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("own.toml");
        let mut configurations = Configurations::default();
        if let Some(own) = own {
            fs::write(&path, text(own)).unwrap();
            configurations = configurations.of(path);
        }
        let wanted = file::parse("web.toml".as_ref(), text(wanted).as_bytes()).unwrap().0;
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
}
