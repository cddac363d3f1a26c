//! Tests of the Ansible role in `contrib/`, on a copy of the machine's system that systemd boots.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    backend::Backend,
    binaries,
    http_client::{Request, send_all},
    machine::{Machine, SHARED},
    namespace::run,
    site::start_backend,
    topology::{Family, Shape, Topology},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::wait;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The host that the role configures, and a web server and a client for the host's balancer.
struct Host {
    machine: Machine,
    files: TempDir,
    _backend: Backend,
    topology: Topology,
}

impl Host {
    fn boot() -> Self {
        let topology = Topology::new(Shape::OneLegged, Forwarding::Nat, 1).unwrap();
        let files = tempfile::tempdir().unwrap();
        let backend = start_backend(&topology, Forwarding::Nat, 1, files.path()).unwrap();
        let copy = |from: PathBuf, to: &str| {
            run(Command::new("cp").arg("--recursive").args([&from, &files.path().join(to)])).unwrap();
        };
        copy(root().join("contrib/ansible/roles"), "roles");
        copy(root().join("tests/tests/e2e/ansible_callbacks"), "callbacks");
        copy(root().join("packaging/balancer.service"), "balancer.service");
        copy(binaries::balancer().unwrap(), "balancer");
        let mut machine = Machine::copy(files.path(), topology.balancer()).unwrap();
        machine.boot().expect("systemd-nspawn is needed: cargo xtask setup, or apt-get install systemd-container");
        let host = Self { machine, files, _backend: backend, topology };
        host.template("");
        host
    }

    /// Writes the template of the configuration, with additional `lines` for each service.
    fn template(&self, lines: &str) {
        let mut text = "interfaces = [\"eth0\"]\non_exit = \"keep\"\n".to_owned();
        for (family, name) in Family::BOTH.into_iter().zip(["web", "web6"]) {
            let vip = SocketAddr::new(self.topology.vip(family), 80);
            let backend = SocketAddr::new(self.topology.backend_address(family, 0), 8080);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nforwarding = \"nat\"\ncheck = {{ type = \"none\" }}\n{lines}\n\
                 [[service.backend]]\nname = \"web1\"\naddress = \"{backend}\"\nweight = {{{{ weight | default(100) }}}}\n"
            );
        }
        fs::write(self.files.path().join("balancer.toml.j2"), text).unwrap();
    }

    /// Runs a playbook with the role and the given variables, and returns Ansible's report.
    fn play(&self, variables: &str, options: &[&str]) -> Value {
        let playbook = format!("- hosts: localhost\n  roles:\n    - role: balancer\n      vars: {{{variables}}}\n");
        fs::write(self.files.path().join("play.yml"), playbook).unwrap();
        let mut command = self.machine.command("ansible-playbook").unwrap();
        command
            .env("ANSIBLE_ROLES_PATH", format!("{SHARED}/roles"))
            .env("ANSIBLE_CALLBACK_PLUGINS", format!("{SHARED}/callbacks"))
            .env("ANSIBLE_LOAD_CALLBACK_PLUGINS", "1")
            .env("ANSIBLE_STDOUT_CALLBACK", "collected")
            .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
            .env("ANSIBLE_DEPRECATION_WARNINGS", "0")
            .args(["--connection", "local", "--inventory", "localhost,"])
            .args(options)
            .arg(format!("{SHARED}/play.yml"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let begin = text.find('{').unwrap_or_else(|| unreachable!("the program prints no JSON: {output:?}"));
        serde_json::from_str(&text[begin..]).unwrap()
    }

    /// Runs the playbook, which must succeed, and returns the number of changes.
    #[track_caller]
    fn plays(&self, variables: &str, options: &[&str]) -> u64 {
        let done = self.play(variables, options);
        let stats = &done["stats"]["localhost"];
        assert!(stats["failures"] == 0 && stats["unreachable"] == 0, "{done:#}");
        stats["changed"].as_u64().unwrap()
    }

    /// Runs a command on the machine, which must succeed, and returns the output.
    #[track_caller]
    fn says(&self, line: &str) -> String {
        let (words, success) = self.machine.shell(line).unwrap();
        assert!(success, "{line}: {words}");
        words.trim().to_owned()
    }

    fn main_process(&self) -> String {
        assert_eq!(self.says("systemctl is-active balancer"), "active");
        self.says("systemctl show --property=MainPID --value balancer")
    }

    fn weight(&self) -> String {
        self.says("balancer backend list web --json | tr -d ' \\n' | grep -o '\"weight\":[0-9]*' | head -n 1")
    }

    fn answers(&self) {
        for family in Family::BOTH {
            let source = SocketAddr::new(self.topology.client_address(family, 1), 0);
            let request = Request::new(source, SocketAddr::new(self.topology.vip(family), 80));
            let answers = || {
                send_all(self.topology.client(), std::slice::from_ref(&request), 1).unwrap().iter().all(Result::is_ok)
            };
            wait("clients get no answer", answers);
        }
    }
}

const PROGRAM: &str = "balancer_binary: /opt/shared/balancer, balancer_unit: /opt/shared/balancer.service, \
                       balancer_config: /opt/shared/balancer.toml.j2";

#[test]
fn when_the_role_installs_the_program_then_it_serves_and_changes_are_reloaded_or_refused() {
    let host = Host::boot();
    assert!(host.plays(PROGRAM, &[]) > 0);
    let main = host.main_process();
    host.answers();
    assert_eq!(host.says("systemctl is-enabled balancer"), "enabled");
    assert_eq!(host.says("stat -c '%a %U:%G' /etc/balancer/balancer.toml"), "640 root:balancer-config");
    assert_eq!(host.plays(PROGRAM, &[]), 0, "a repetition changes something");

    let lighter = format!("{PROGRAM}, weight: 50, balancer_operators: [nobody]");
    assert!(host.plays(&lighter, &["--check"]) > 0);
    assert_eq!(host.weight(), "\"weight\":100", "a check has changed something");
    assert!(host.plays(&lighter, &[]) > 0);
    assert_eq!((host.weight(), host.main_process()), ("\"weight\":50".to_owned(), main.clone()), "not by a reload");
    assert!(host.says("id -Gn nobody").split(' ').any(|group| group == "balancer"));

    // The role does not install an invalid file.
    host.template("forwardign = \"dsr\"");
    let refused = host.play(&lighter, &[]);
    assert_eq!(refused["stats"]["localhost"]["failures"], 1, "{refused:#}");
    assert!(refused.to_string().contains(r#"did you mean \"forwarding\""#), "{refused:#}");
    assert!(!host.says("cat /etc/balancer/balancer.toml").contains("forwardign"));
    assert_eq!(host.main_process(), main);
    // The role also fails if the running balancer cannot apply a valid file.
    host.template("");
    let file = host.files.path().join("balancer.toml.j2");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("state_file = \"/var/lib/balancer/other.json\"\n{text}")).unwrap();
    assert_eq!(host.play(&lighter, &[])["stats"]["localhost"]["failures"], 1);
    assert_eq!(host.main_process(), main);
    fs::write(&file, text).unwrap();
    host.plays(&lighter, &[]);

    // The role replaces the running balancer by a balancer from another program file.
    let program = host.files.path().join("balancer");
    let mut bytes = fs::read(&program).unwrap();
    bytes.push(0);
    fs::write(&program, bytes).unwrap();
    assert!(host.plays(&lighter, &[]) > 0);
    assert_ne!(host.main_process(), main);
    host.answers();
}

#[test]
fn when_the_role_installs_the_package_then_it_serves_and_a_second_time_nothing_changes() {
    let host = Host::boot();
    let tree = host.files.path().join("tree");
    for directory in ["DEBIAN", "usr/sbin", "lib/systemd/system", "etc/balancer"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    let control = "Package: balancer\nVersion: 0.1.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\n\
                   Description: for a test\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    fs::write(tree.join("DEBIAN/conffiles"), "/etc/balancer/balancer.toml\n").unwrap();
    let packaging = root().join("packaging");
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        fs::copy(packaging.join("debian").join(script), tree.join("DEBIAN").join(script)).unwrap();
    }
    run(Command::new("chmod").arg("--recursive").arg("u=rwX,go=rX").arg(&tree)).unwrap();
    run(Command::new("sh").arg("-c").arg("chmod 755 DEBIAN/p*").current_dir(&tree)).unwrap();
    fs::copy(packaging.join("balancer.toml"), tree.join("etc/balancer/balancer.toml")).unwrap();
    fs::copy(packaging.join("balancer.service"), tree.join("lib/systemd/system/balancer.service")).unwrap();
    fs::copy(host.files.path().join("balancer"), tree.join("usr/sbin/balancer")).unwrap();
    let package = host.files.path().join("balancer.deb");
    run(Command::new("dpkg-deb").args(["-Znone", "--root-owner-group", "--build"]).args([&tree, &package])).unwrap();

    let variables = "balancer_package: /opt/shared/balancer.deb, balancer_config: /opt/shared/balancer.toml.j2";
    assert!(host.plays(variables, &[]) > 0);
    host.main_process();
    host.answers();
    assert_eq!(host.says("stat -c '%a %U:%G' /etc/balancer/balancer.toml"), "640 root:balancer-config");
    assert_eq!(host.plays(variables, &[]), 0, "a repetition changes something");
}
