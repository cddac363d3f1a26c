//! Tests, through the command line, of the control listener for other machines; and tests of the audit file.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{binaries, site::Site, topology::Shape};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::wait;

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The certificate files of the balancer and of the users.
pub(crate) struct Certificates {
    directory: TempDir,
    authority: Authority,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let this = Self { directory: tempfile::tempdir().unwrap(), authority: authority() };
        fs::write(this.path("ca.pem"), this.authority.pem()).unwrap();
        this.sign("server", "127.0.0.1", &this.authority);
        for (name, dns) in
            [("prometheus", "metrics.example"), ("deploy", "deploy"), ("admin", "admin"), ("stranger", "x")]
        {
            this.sign(name, dns, &this.authority);
        }
        this.sign("impostor", "admin", &authority());
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a certificate for machines with these names or addresses, signed by the authority that clients trust.
    pub(crate) fn sign_for(&self, name: &str, names: Vec<String>) {
        self.write(name, names, &self.authority);
    }

    fn sign(&self, name: &str, dns: &str, authority: &Authority) {
        self.write(name, vec![dns.to_owned()], authority);
    }

    fn write(&self, name: &str, names: Vec<String>, authority: &Authority) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        fs::write(self.path(&format!("{name}.pem")), params.signed_by(&key, authority).unwrap().pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Returns the lines of the `[control]` table in the configuration.
    fn lines(&self, roles: &str) -> String {
        let at = |name| self.path(name).display().to_string();
        let (cert, key, ca) = (at("server.pem"), at("server.key"), at("ca.pem"));
        format!(
            "listen = \"127.0.0.1:9661\"\ncert = \"{cert}\"\nkey = \"{key}\"\nclient_ca = \"{ca}\"\naudit = \"{}\"\n\
             roles = {{ {roles} }}\n",
            at("audit.log")
        )
    }

    /// Runs a command with the certificate of the user `name`.
    fn ask(&self, site: &Site, name: &str, words: &str) -> Output {
        let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
        command.env("BALANCER_SERVER", "https://127.0.0.1:9661").env("BALANCER_CA", self.path("ca.pem"));
        command.env("BALANCER_CERT", self.path(&format!("{name}.pem")));
        command.arg("--key").arg(self.path(&format!("{name}.key"))).args(words.split(' '));
        command.output().unwrap()
    }

    fn code(&self, site: &Site, name: &str, words: &str) -> (Option<i32>, String) {
        let output = self.ask(site, name, words);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn audited(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("audit.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const ROLES: &str = "\"metrics.example\" = \"read\", deploy = \"drain\", admin = \"all\"";

fn site() -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.on_exit = "keep";
        Ok(())
    })
    .unwrap()
}

fn write(site: &Site, original: &str, lines: &str) -> String {
    fs::write(site.config(), original.replace("[control]\n", &format!("[control]\n{lines}"))).unwrap();
    site.config().display().to_string()
}

fn ready(site: &Site) -> String {
    String::from_utf8(site.output(&["ready"]).unwrap().stdout).unwrap()
}

#[test]
fn when_a_certificate_has_a_role_then_the_command_line_may_what_it_says_and_the_audit_file_has_it() {
    let mut site = site();
    let certificates = Certificates::new();
    let original = fs::read_to_string(site.config()).unwrap();
    let path = write(&site, &original, &certificates.lines(ROLES));
    let answer = site.cli(&["apply", &path]).unwrap();
    assert!(answer.contains("control.audit, control.listen changed"), "{answer}");
    for restarted in [false, true] {
        if restarted {
            site.kill_and_restart_with_the_file_as_it_is().unwrap();
        }
        wait("it does not answer", || certificates.code(&site, "admin", "status").0 == Some(0));
        for (name, [reads, drains, changes]) in
            [("prometheus", [0, 1, 1]), ("deploy", [0, 0, 1]), ("admin", [0, 0, 0]), ("stranger", [1, 1, 1])]
        {
            for (words, expected) in [
                ("stats", reads),
                ("plan backend drain web/web1", reads),
                ("backend weight web/web1 50", drains),
                ("backend drain web/web1", drains),
                ("backend ready web/web1", drains),
                ("health force web/web1 up", changes),
            ] {
                let (code, why) = certificates.code(&site, name, words);
                assert_eq!(code, Some(expected), "{name} {words}: {why}");
                let role = if name == "stranger" { "CN=stranger has no role" } else { "has the role" };
                assert!(expected == 0 || why.contains(role), "{why}");
            }
        }
        let (code, why) = certificates.code(&site, "impostor", "status");
        assert!(code != Some(0) && why.contains("received fatal alert"), "{why}");
        site.cli(&["backend", "weight", "web/web1", "100"]).unwrap();
    }
    let (code, why) = certificates.code(&site, "admin", "doctor");
    assert!(code == Some(2) && why.contains("doctor looks at the machine that it runs on"), "{why}");

    // The audit file records each change with the user, the request and the result. A read request appears in the file
    // only if the balancer refused it.
    let audited = certificates.audited();
    let has = |via: &str, who: &str, request: &str, status: u16, result: &str| {
        audited.iter().any(|line| {
            line["via"] == via
                && line.to_string().contains(who)
                && line["request"].as_str().unwrap().contains(request)
                && line["status"] == status
                && line["result"].as_str().unwrap().contains(result)
        })
    };
    let weight = "PUT /v1/services/web/backends/web1/weight";
    assert!(has("tls", "CN=deploy", weight, 200, "weight 100 → 50"), "{audited:?}");
    assert!(has("tls", "127.0.0.1:", weight, 403, "CN=prometheus has the role \"read\""), "{audited:?}");
    assert!(has("tls", "CN=stranger", "GET /v1/stats", 403, "has no role"), "{audited:?}");
    assert!(has("socket", "\"uid\":0", weight, 200, "weight 50 → 100"), "{audited:?}");
    assert!(audited.iter().all(|line| line["status"] == 403 || !line["request"].as_str().unwrap().starts_with("GET")));
    assert!(!audited.iter().any(|line| line["request"] == "POST /v1/plan" && line["status"] == 200));
    let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert!(log.contains("the certificate CN=deploy at 127.0.0.1:"), "who changed something is not in the log");

    // The new file takes one role away from a user and gives another role.
    site.cli(&["apply", &write(&site, &original, &certificates.lines("stranger = \"drain\", admin = \"read\""))])
        .unwrap();
    assert_eq!(certificates.code(&site, "deploy", "stats").0, Some(1));
    assert_eq!(certificates.code(&site, "admin", "backend weight web/web1 100").0, Some(1));
    assert_eq!(certificates.code(&site, "stranger", "backend weight web/web1 100").0, Some(0));
    site.cli(&["apply", &write(&site, &original, "")]).unwrap();
    wait("it answers still", || certificates.code(&site, "stranger", "status").0 == Some(3));
}

#[test]
fn when_the_address_a_certificate_or_the_audit_file_is_bad_then_it_steers_and_is_degraded() {
    let mut site = site();
    let certificates = Certificates::new();
    let original = fs::read_to_string(site.config()).unwrap();
    let path = write(&site, &original, &certificates.lines(ROLES));

    // A running balancer refuses a file with a listen address or a certificate file that it cannot use.
    let taken = site.topology().balancer().run_in_thread(|| TcpListener::bind("127.0.0.1:9661").unwrap()).unwrap();
    let why = site.cli(&["apply", &path]).unwrap_err().to_string();
    assert!(why.contains("the control listener on 127.0.0.1:9661: another program listens there"), "{why}");
    fs::remove_file(certificates.path("server.key")).unwrap();
    let why = site.cli(&["apply", &path]).unwrap_err().to_string();
    assert!(why.contains("[control] key ") && why.contains("server.key cannot be read: No such file"), "{why}");

    // A balancer that starts with such a file runs without the control listener.
    site.restart_with_the_file_as_it_is().unwrap();
    assert!(ready(&site).starts_with("degraded: [control] key "), "{}", ready(&site));
    certificates.sign("server", "127.0.0.1", &certificates.authority);
    wait("nothing is said of the address", || {
        ready(&site).starts_with("degraded: the control listener on 127.0.0.1:9661")
    });
    drop(taken);
    wait("it stays degraded", || ready(&site) == "ready\n");
    assert_eq!(certificates.code(&site, "admin", "status").0, Some(0));

    // The balancer reports a certificate file that has become invalid, and continues with the earlier certificates.
    fs::write(certificates.path("server.pem"), "").unwrap();
    wait("it is not degraded", || ready(&site).contains("keeps its previous certificates"));
    assert_eq!(certificates.code(&site, "admin", "status").0, Some(0));
    certificates.sign("server", "127.0.0.1", &certificates.authority);
    wait("it stays degraded", || ready(&site) == "ready\n");

    // First logrotate renames the audit file, then a directory takes the name of the audit file.
    let rotated = certificates.path("audit.log.1");
    site.cli(&["backend", "weight", "web/web1", "7"]).unwrap();
    wait("nothing is audited", || certificates.audited().len() == 1);
    fs::rename(certificates.path("audit.log"), &rotated).unwrap();
    fs::create_dir(certificates.path("audit.log")).unwrap();
    site.cli(&["backend", "weight", "web/web1", "8"]).unwrap();
    wait("it is not degraded", || ready(&site).starts_with("degraded: cannot write the audit file "));
    fs::remove_dir(certificates.path("audit.log")).unwrap();
    wait("it stays degraded", || ready(&site) == "ready\n");
    assert!(certificates.audited()[0]["result"].as_str().unwrap().contains("7 → 8"));
    assert!(holds(&rotated, "100 → 7"));
}

fn holds(file: &Path, words: &str) -> bool {
    fs::read_to_string(file).unwrap().contains(words)
}
