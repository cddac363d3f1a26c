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

/// The programs, files and lists that a service takes from this machine. A test judges every key of the configuration.
fn of(service: &ServiceConfig) -> impl Iterator<Item = Taken<'_>> {
    let denied = service.deny.iter().map(|deny| Taken::DenyFile(&deny.file));
    // Anybody may ask DNS servers.
    let lists = service.discover.iter().map(|list| &list.source).filter(|source| source.dns().is_none());
    service.checks().flat_map(of_check).chain(denied).chain(lists.map(Taken::List))
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
    use std::{collections::BTreeSet, fs};

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

    /// The judgement of all keys of a section.
    struct Judged {
        /// The head of the section.
        head: &'static str,
        /// The keys without which the section has no other keys.
        needs: &'static str,
        /// The keys that make the balancer use no program, file or secret of its machine.
        harmless: &'static str,
        /// The keys that do, each with a value and with the keys that it needs.
        taken: &'static [(&'static str, &'static str)],
    }

    const SERVICE: &str = "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:443\"\nforwarding = \"snat\"\n";
    const BACKEND: &str = "[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\n";
    const ETCD: &str = "etcd = \"/x/\"\nendpoints = [\"https://192.0.2.1:2379\"]";

    const OF_SERVICES: &[Judged] = &[
        Judged {
            head: "",
            needs: "",
            harmless: "name renamed_from address protocol listen ports forwarding table_size client_prefix remember \
                       failback when_all_down when_full slow_start drain on_failure outage withhold restart_grace snat \
                       idle start_down reject steer assign_vip deny agent bounded_load quic spread_heavy expect check \
                       backend discover rule",
            taken: &[],
        },
        Judged { head: "[service.client_prefix]", needs: "", harmless: "v4 v6", taken: &[] },
        Judged { head: "[service.drain]", needs: "", harmless: "timeout until grace", taken: &[] },
        Judged { head: "[service.on_failure]", needs: "", harmless: "hard soft", taken: &[] },
        Judged { head: "[service.outage]", needs: "", harmless: "share hold", taken: &[] },
        Judged { head: "[service.snat]", needs: "", harmless: "addresses ports", taken: &[] },
        Judged { head: "[service.idle]", needs: "", harmless: "tcp udp udp_once half_open closing", taken: &[] },
        Judged { head: "[service.deny]", needs: "", harmless: "", taken: &[("file", "file = \"DENIED\"")] },
        Judged { head: "[service.agent]", needs: "port = 1", harmless: "port interval", taken: &[] },
        Judged { head: "[service.bounded_load]", needs: "factor = 1.25", harmless: "factor by", taken: &[] },
        Judged {
            head: "[service.quic]",
            needs: "format = \"draft\"",
            harmless: "format learn config server_id_length nonce_length key",
            taken: &[],
        },
        Judged {
            head: "[[service.backend]]",
            needs: "name = \"web2\"\naddress = \"10.0.0.2\"",
            harmless: "name renamed_from address address6 weight backup max_clients max_connections quic_server_id check",
            taken: &[("check", "check = { type = \"exec\", command = [\"/bin/true\"] }")],
        },
        Judged {
            head: "[[service.rule]]",
            needs: "prefix = \"192.0.2.0/24\"\naction = \"deny\"",
            harmless: "prefix action backend ttl",
            taken: &[],
        },
        Judged {
            head: "[[service.discover]]",
            needs: ETCD,
            harmless: "min keep port family servers endpoints",
            taken: &[
                ("file", "file = \"DENIED\""),
                ("etcd", ""),
                ("ca", "ca = \"/etc/x\""),
                ("cert", "cert = \"/etc/x\"\nkey = \"/etc/y\""),
                ("key", "key = \"/etc/x\"\ncert = \"/etc/y\""),
            ],
        },
        Judged {
            head: "[[service.discover]]",
            needs: "dns = \"_http._tcp.web.internal\"",
            // This source has no `file` and no `endpoints` with certificates.
            harmless: "dns dns_a min keep port family servers file endpoints ca cert key",
            taken: &[],
        },
        Judged {
            head: "[service.check]",
            needs: "type = \"https\"",
            harmless: "type via port interval timeout fast_interval passive fall rise http2 method path host \
                       expect_status expect_body expect_body_regex tls_verify sni service send expect expect_regex name \
                       record expect_rcode user",
            taken: &[
                ("headers", "headers = { A = { file = \"/etc/x\" } }"),
                ("ca_file", "ca_file = \"/etc/x\""),
                ("client_cert", "client_cert = \"/etc/x\""),
                ("client_key", "client_key = \"/etc/x\"\nclient_cert = \"/etc/y\""),
                ("command", "type = \"exec\"\ncommand = [\"/bin/true\"]"),
            ],
        },
    ];

    /// The keys of a configuration file outside of services. A drop-in has none of them. With `apply`, the balancer
    /// adopts the first ones, refuses others, and takes `control` only from its own file.
    const OF_FILES: &str = "interfaces xdp_mode on_exit metrics statistics state_file client_table flow_table hash fleet \
                            control service";

    /// The keys that the section knows, from the message about an unknown key.
    fn known(text: &str) -> BTreeSet<String> {
        let errors = file::parse("web.toml".as_ref(), text.as_bytes()).unwrap_err().to_string();
        let line = errors.lines().find(|line| line.contains("unknown key \"zzzzzzzz\"")).expect(&errors).to_owned();
        let (_, known) = line.split_once("known keys: ").expect(&line);
        known.split(", ").map(str::to_owned).collect()
    }

    fn words(text: &str) -> impl Iterator<Item = String> {
        text.split_whitespace().map(str::to_owned)
    }

    /// Fails for a new key of the configuration that nobody has judged.
    #[tokio::test]
    async fn when_a_key_names_a_program_a_file_or_a_secret_then_only_the_own_file_may_introduce_it() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("list.json");
        fs::write(&list, "[]").unwrap();
        for Judged { head, needs, harmless, taken } in OF_SERVICES {
            let text = |keys: &str| format!("{SERVICE}{head}\n{keys}\n");
            let judged = words(harmless).chain(taken.iter().map(|(key, _)| (*key).to_owned()));
            assert_eq!(known(&text(&format!("{needs}\nzzzzzzzz = 1"))), judged.collect(), "{head}");
            for (key, keys) in *taken {
                let needs = if keys.contains("file = \"DENIED\"") || keys.starts_with("type") { "" } else { needs };
                let (keys, list) = (format!("{needs}\n{keys}"), list.display().to_string());
                let wanted = format!("interfaces = [\"eth0\"]\n{}", text(&keys.replace("DENIED", &list)));
                let backend = if head.contains("backend") { "" } else { BACKEND };
                let why = refused_text(None, &format!("{wanted}{backend}")).await;
                assert!(why.is_some_and(|why| why.contains("nothing was changed: ")), "{head} {key}");
            }
        }
        assert_eq!(known(&format!("zzzzzzzz = 1\n{SERVICE}")), words(OF_FILES).collect());
        for key in words(OF_FILES).filter(|key| key != "service") {
            let drop_in = format!("{key} = 1\n{SERVICE}{BACKEND}");
            let errors = file::parse_drop_in("more", "more.toml".as_ref(), drop_in.as_bytes()).unwrap_err().to_string();
            assert!(errors.contains(&key), "{errors}");
        }
    }
}
