//! The operator's steps in their order, with the result that each step must have.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};
use balancer_testkit::{
    etcd::Certificates,
    kubernetes::Kubernetes,
    topology::{Family, Topology},
};
use serde_json::json;

use crate::operator::Operator;

/// Takes a step, checks the result, and returns the notable facts.
type Step = fn(&mut Operator) -> Result<String>;

pub(crate) const STEPS: [(&str, Step); 23] = [
    ("install", install),
    ("start without a configuration", start_in_vain),
    ("start without an interface", start_without_interface),
    ("start", start),
    ("privileges", privileges),
    ("operator's group", group),
    ("journal", journal),
    ("reload", reload),
    ("reload in vain", reload_in_vain),
    ("restart", restart),
    ("kill", kill),
    ("watchdog", watchdog),
    ("assigned VIP", assigned_vip),
    ("upgrade", upgrade),
    ("upgrade to another layout of maps", upgrade_of_another_layout),
    ("upgrade to a program that does not start", upgrade_in_vain),
    ("stop and start", stop_and_start),
    ("run by hand in between", run_by_hand),
    ("programs of checks", programs_of_checks),
    ("a cluster", cluster),
    ("boot with a late network", boot),
    ("remove", remove),
    ("purge", purge),
];

const APT: &str = "DEBIAN_FRONTEND=noninteractive apt-get --quiet --quiet --yes";
/// A short watchdog interval, so that the test sees the watchdog restart the unit.
const WATCHDOG: &str = "[Service]\nWatchdogSec=3s\n";
/// Short limits, so that the test sees the systemd job end while the balancer's start continues beyond
/// `TimeoutStartSec`.
const IMPATIENT: &str = "[Unit]\nJobRunningTimeoutSec=2s\n[Service]\nTimeoutStartSec=4s\n";

fn install(operator: &mut Operator) -> Result<String> {
    let words = operator.types(&format!("{APT} install ~/balancer.deb"))?;
    ensure!(words.contains("balancer: edit /etc/balancer/balancer.toml"), "no hint: {words}");
    operator.reads("systemctl is-enabled balancer", &["disabled"])?;
    operator.reads("getent group balancer", &["balancer:x:"])?;
    operator.reads("getent passwd balancer", &["/usr/sbin/nologin"])?;
    operator.reads("stat -c '%a %U:%G' /etc/balancer/balancer.toml", &["640 root:balancer-config"])?;
    operator.types("systemd-analyze verify --man=no balancer.service").and_then(|words| {
        ensure!(words.is_empty(), "{words}");
        operator.types("dpkg-query --show balancer")
    })
}

/// systemd restarts the unit forever. Once the operator has corrected the file, the unit starts without further action
/// of the operator.
fn start_in_vain(operator: &mut Operator) -> Result<String> {
    operator.types_in_vain("systemctl start balancer")?;
    // By default, systemd gives up after five starts in ten seconds.
    operator.wait("test $(systemctl show --property=NRestarts --value balancer) -gt 6 && echo on", "on")?;
    operator.wait("systemctl is-active balancer", "activating")?;
    // The unit's status text is empty at the beginning of each start.
    operator.wait("systemctl status --no-pager balancer | grep -c 'Status: \"/etc/balancer/balancer.toml'", "1")?;
    operator.configures(100, "")?;
    operator.wait("systemctl is-active balancer", "active")?;
    let tries = operator.property("NRestarts")?;
    operator.types("systemctl stop balancer")?;
    Ok(format!("serving with the mended file, after {tries} restarts"))
}

/// One balancer process waits for the interface, even after the systemd job that started the process has ended.
fn start_without_interface(operator: &mut Operator) -> Result<String> {
    operator.machine.write("etc/systemd/system/balancer.service.d/try.conf", IMPATIENT)?;
    operator.types("systemctl daemon-reload")?;
    let absent = "sed -i 's/^interfaces = .*/interfaces = [\"late0\"]/' /etc/balancer/balancer.toml";
    operator.types(absent)?;
    operator.types_in_vain("systemctl start balancer")?;
    let (main, restarts) = (operator.property("MainPID")?, operator.property("NRestarts")?);
    thread::sleep(Duration::from_secs(5));
    operator.reads("systemctl is-active balancer", &["activating"])?;
    let status = operator.property("StatusText")?;
    ensure!(status.starts_with("interface late0 does not exist"), "{status}");
    ensure!(operator.property("MainPID")? == main, "another process");
    ensure!(operator.property("NRestarts")? == restarts, "started again");
    operator.types("ip link add late0 type veth peer name late1")?;
    operator.wait("systemctl is-active balancer", "active")?;
    ensure!(operator.property("MainPID")? == main, "another process");
    operator.types("systemctl stop balancer && balancer detach && ip link delete late0")?;

    operator.types_in_vain("systemctl start balancer")?;
    operator.configures(100, "")?;
    operator.wait("systemctl is-active balancer", "active")?;
    operator
        .types("systemctl stop balancer && rm -r /etc/systemd/system/balancer.service.d && systemctl daemon-reload")?;
    Ok(status)
}

fn start(operator: &mut Operator) -> Result<String> {
    operator.configures(100, "")?;
    operator.types("balancer check /etc/balancer/balancer.toml")?;
    operator.types("systemctl enable --now balancer")?;
    operator.reads("systemctl is-active balancer", &["active"])?;
    ensure!(operator.property("StatusText")? == "serving 2 services", "{}", operator.property("StatusText")?);
    for service in ["web", "web6"] {
        for number in 1..=2 {
            operator.types(&format!("balancer wait {service}/web{number} up --timeout 30s"))?;
        }
    }
    ensure!(operator.attached()?, "no XDP program");
    operator.under_traffic(|_| Ok(())).map(|((), traffic)| traffic)
}

fn privileges(operator: &mut Operator) -> Result<String> {
    let main = operator.property("MainPID")?;
    let status = operator.types(&format!("cat /proc/{main}/status"))?;
    // The bits of CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF.
    let capabilities: u64 = [12, 13, 38, 39].into_iter().map(|bit| 1 << bit).sum();
    let uid = operator.types("id -u balancer")?;
    ensure!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(status.contains(&format!("{set}:\t{capabilities:016x}\n")), "{status}");
    }
    ensure!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
    let words = operator.types("systemd-analyze security --no-pager --threshold=20 balancer")?;
    Ok(words.lines().last().unwrap_or_default().trim_start_matches(['→', ' ']).to_owned())
}

fn group(operator: &mut Operator) -> Result<String> {
    operator.types("useradd --groups balancer oskar && useradd eve")?;
    operator.types("runuser -u oskar -- balancer status")?;
    operator.types("runuser -u oskar -- balancer backend weight web/web2 99")?;
    let uid = operator.types("id -u oskar")?;
    operator.reads("balancer events --since 1m --json", &[&format!("\"uid\": {uid}")])?;
    operator.types("balancer backend weight web/web2 100")?;
    operator.types_in_vain("runuser -u eve -- balancer status")?;
    operator.types_in_vain("runuser -u oskar -- cat /etc/balancer/balancer.toml")?;
    operator.types_in_vain("runuser -u oskar -- ls /var/lib/balancer")?;
    Ok("its members may, others may not, and neither may read the configuration".to_owned())
}

fn journal(operator: &mut Operator) -> Result<String> {
    let read = "journalctl --no-pager --output=cat --unit=balancer --identifier=balancer";
    operator.fails(2, "reset")?;
    operator.types("balancer wait web/web2 down --timeout 30s && balancer wait web6/web2 down --timeout 30s")?;
    operator.fails(2, "ok")?;
    operator.types("balancer wait web/web2 up --timeout 30s && balancer wait web6/web2 up --timeout 30s")?;
    let all = operator.reads(read, &["attached to eth0", "web/web2 down"])?;
    ensure!(!all.contains("<6>") && !all.contains("\x1b["), "{all}");
    let warnings = operator.reads(&format!("{read} --priority=warning"), &["backend web/web2 down"])?;
    ensure!(!warnings.contains("attached to eth0"), "{warnings}");
    let errors = operator.reads(&format!("{read} --priority=err"), &["/etc/balancer/balancer.toml"])?;
    ensure!(!errors.contains("backend web/web2 down"), "{errors}");
    Ok("warnings and errors have their priority".to_owned())
}

fn reload(operator: &mut Operator) -> Result<String> {
    let main = operator.property("MainPID")?;
    let ((), traffic) = operator.under_traffic(|operator| {
        operator.configures(50, "")?;
        operator.types("systemctl reload balancer")?;
        operator.wait(
            "balancer backend list web --json | tr -d ' \\n' | grep -o '\"weight\":50' | head -n 1",
            "\"weight\":50",
        )?;
        operator.wait_property("SubState", "running")
    })?;
    ensure!(operator.property("MainPID")? == main, "another process");
    Ok(traffic)
}

fn reload_in_vain(operator: &mut Operator) -> Result<String> {
    let ((), traffic) = operator.under_traffic(|operator| {
        operator.configures(50, "interface = [\"eth1\"]")?;
        operator.types_in_vain("systemctl reload balancer")?;
        operator.reads("journalctl --no-pager --unit=balancer --priority=err --lines=3", &["balancer.toml:3: "])?;
        // A reload of the configuration cannot change the state file's path.
        operator.configures(50, "state_file = \"/var/lib/balancer/other.json\"")?;
        operator.types_in_vain("systemctl reload balancer")?;
        operator.wait(
            "systemctl show --property=StatusText --value balancer | grep -c '^the last reload changed nothing: state_file'",
            "1",
        )?;
        operator.configures(100, "")?;
        operator.types("systemctl reload balancer")?;
        operator.wait_property("StatusText", "serving 2 services")?;
        operator.wait_property("ActiveState", "active")
    })?;
    Ok(traffic)
}

fn restart(operator: &mut Operator) -> Result<String> {
    let ((), traffic) = operator.under_traffic(|operator| {
        for _ in 0..6 {
            let main = operator.property("MainPID")?;
            operator.types("systemctl restart balancer")?;
            operator.new_main_process(&main)?;
        }
        Ok(())
    })?;
    Ok(traffic)
}

fn kill(operator: &mut Operator) -> Result<String> {
    let ((), traffic) = operator.under_traffic(|operator| {
        let (main, restarts) = (operator.property("MainPID")?, operator.property("NRestarts")?);
        operator.types("systemctl kill --signal=KILL balancer")?;
        operator.wait_restarted(&restarts)?;
        operator.new_main_process(&main)?;
        let adopted = format!("took over the maps that process {main} left");
        operator.reads("journalctl --no-pager --unit=balancer", &[&adopted]).map(|_| ())
    })?;
    Ok(traffic)
}

fn watchdog(operator: &mut Operator) -> Result<String> {
    operator.machine.write("etc/systemd/system/balancer.service.d/try.conf", WATCHDOG)?;
    operator.types("systemctl daemon-reload && systemctl restart balancer")?;
    let ((), traffic) = operator.under_traffic(|operator| {
        // In this step, the balancer notifies the watchdog in time.
        let (main, restarts) = (operator.property("MainPID")?, operator.property("NRestarts")?);
        thread::sleep(Duration::from_secs(7));
        ensure!(operator.property("MainPID")? == main, "killed though it was alive");
        operator.types(&format!("kill -STOP {main}"))?;
        operator.wait_restarted(&restarts)?;
        operator.new_main_process(&main)?;
        operator.reads("journalctl --no-pager --unit=balancer", &["Watchdog timeout"]).map(|_| ())
    })?;
    operator.types(
        "rm -r /etc/systemd/system/balancer.service.d && systemctl daemon-reload && systemctl restart balancer",
    )?;
    Ok(traffic)
}

fn assigned_vip(operator: &mut Operator) -> Result<String> {
    operator.configures(
        100,
        "[[service]]\nname = \"own\"\naddress = \"10.2.0.99:80\"\nforwarding = \"nat\"\nassign_vip = true\n\
        [[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.11:8081\"\n",
    )?;
    operator.types("systemctl restart balancer")?;
    operator.reads("ip address show dev eth0", &["10.2.0.99/32"])?;
    operator.types("systemctl stop balancer")?;
    operator.reads("ip address show dev eth0", &["10.2.0.99/32"])?;
    operator.types("systemctl start balancer")?;
    operator.configures(100, "")?;
    operator.types("systemctl restart balancer")?;
    let words = operator.types("ip address show dev eth0")?;
    ensure!(!words.contains("10.2.0.99"), "{words}");
    Ok("came, stayed over a stop, went with its service".to_owned())
}

fn upgrade(operator: &mut Operator) -> Result<String> {
    let before = operator.types("dpkg-query --show --showformat '${Version}' balancer")?;
    let ((), traffic) = operator.under_traffic(|operator| {
        let main = operator.property("MainPID")?;
        operator.types(&format!("{APT} install ~/upgrade.deb"))?;
        operator.new_main_process(&main)?;
        operator.reads(
            "readlink /proc/$(systemctl show --property=MainPID --value balancer)/exe",
            &["/usr/sbin/balancer"],
        )?;
        operator.reads("systemctl is-enabled balancer", &["enabled"]).map(|_| ())
    })?;
    let after = operator.types("dpkg-query --show --showformat '${Version}' balancer")?;
    ensure!(before != after, "still {before}");
    Ok(format!("{before} → {after}; {traffic}"))
}

/// Builds a package from the contents of the upgrade package, which the shell command `line` changes first. The new
/// package is not compressed, because compression takes half a minute.
fn repack(operator: &Operator, name: &str, line: &str) -> Result<()> {
    operator.types(&format!(
        "rm -rf ~/contents && dpkg-deb --raw-extract ~/upgrade.deb ~/contents && cd ~/contents && {line} && \
         dpkg-deb -Znone --build ~/contents ~/{name} && rm -r ~/contents"
    ))?;
    Ok(())
}

fn upgrade_of_another_layout(operator: &mut Operator) -> Result<String> {
    repack(operator, "layout.deb", "sed -i 's/^layout=.*/layout=9999/' DEBIAN/preinst")?;
    let main = operator.property("MainPID")?;
    let (words, traffic) =
        operator.under_traffic(|operator| operator.types_in_vain("dpkg --install ~/layout.deb 2>&1"))?;
    for part in ["needs layout 9999", "Nothing has been changed", "balancer detach"] {
        ensure!(words.contains(part), "the refusal does not say {part:?}: {words}");
    }
    ensure!(operator.property("MainPID")? == main, "another process");
    operator.reads("dpkg-query --show --showformat '${db:Status-Abbrev}' balancer", &["ii"])?;
    Ok(format!("refused in words; {traffic}"))
}

fn upgrade_in_vain(operator: &mut Operator) -> Result<String> {
    let program = "printf '#!/bin/sh\\nexit 1\\n' > usr/sbin/balancer";
    repack(operator, "broken.deb", program)?;
    let ((), traffic) = operator.under_traffic(|operator| {
        let words = operator.types_in_vain("dpkg --install ~/broken.deb 2>&1")?;
        for part in ["the new program does not start", "nothing checks the backends"] {
            ensure!(words.contains(part), "the upgrade does not say {part:?}: {words}");
        }
        operator.types("dpkg --install ~/upgrade.deb && systemctl reset-failed balancer; systemctl start balancer")?;
        operator.types("balancer wait web/web1 up --timeout 30s").map(|_| ())
    })?;
    Ok(traffic)
}

fn stop_and_start(operator: &mut Operator) -> Result<String> {
    let ((), traffic) = operator.under_traffic(|operator| {
        operator.types("systemctl stop balancer")?;
        ensure!(!operator.machine.shell("ls /run/balancer")?.1, "/run/balancer is there");
        ensure!(operator.attached()?, "the program is gone");
        thread::sleep(Duration::from_secs(2));
        operator.types("systemctl start balancer")?;
        operator.types("balancer status").map(|_| ())
    })?;
    Ok(traffic)
}

/// Runs the balancer as root, so that root owns the files and pinned maps.
fn run_by_hand(operator: &mut Operator) -> Result<String> {
    let ((), traffic) = operator.under_traffic(|operator| {
        operator.types("systemctl stop balancer")?;
        operator.types(
            "mkdir -p /run/balancer; balancer run --config /etc/balancer/balancer.toml >~/by-hand.log 2>&1 & echo $! >~/by-hand.pid",
        )?;
        operator.wait("balancer status >/dev/null && echo serving", "serving")?;
        operator.types("balancer backend weight web/web1 90")?;
        operator.types("kill $(cat ~/by-hand.pid)")?;
        operator.wait("kill -0 $(cat ~/by-hand.pid) 2>/dev/null || echo gone", "gone")?;
        operator.reads("stat -c %U /var/lib/balancer/state.json", &["root"])?;
        operator.types("systemctl start balancer")?;
        operator.types("balancer backend weight web/web1 100").map(|_| ())
    })?;
    operator.reads("stat -c %U /var/lib/balancer/state.json", &["balancer"])?;
    operator.reads("find /sys/fs/bpf/balancer ! -user balancer | wc -l", &["0"])?;
    Ok(traffic)
}

/// Only with an additional file of the package, the unit may start programs as another user.
fn programs_of_checks(operator: &mut Operator) -> Result<String> {
    let place = "/etc/systemd/system/balancer.service.d";
    operator.types(
        "sed -i 's/check = { type = \"http\".*/check = { type = \"exec\", command = [\"sh\", \"-c\", \
         \"test $(id -un) = nobody \\&\\& test $BALANCER_BACKEND = web1\"], interval = \"500ms\", timeout = \"500ms\" }/' \
         /etc/balancer/balancer.toml",
    )?;
    operator.types("systemctl restart balancer")?;
    operator.wait(
        "journalctl --no-pager --unit=balancer --priority=warning --lines=20 | grep -c -m 1 'without CAP_KILL, CAP_SETGID, CAP_SETUID'",
        "1",
    )?;
    operator
        .types(&format!("install -D -m 0644 -t {place} /usr/share/doc/balancer/contrib/systemd/exec-checks.conf"))?;
    operator.types("systemctl daemon-reload && systemctl restart balancer")?;
    for service in ["web", "web6"] {
        // `web2` may still have known clients, which can keep `web2` from the state `down`.
        operator.wait(&format!("balancer backend list {service} | grep -c 'web2 .*exit code 1$'"), "1")?;
        operator.types(&format!("balancer wait {service}/web1 up --timeout 30s"))?;
    }
    operator.configures(100, "")?;
    operator.types(&format!("rm -r {place} && systemctl daemon-reload && systemctl restart balancer"))?;
    operator.types("balancer wait web/web2 up --timeout 30s && balancer wait web6/web2 up --timeout 30s")?;
    Ok("refused without the addition, run as nobody with it".to_owned())
}

/// The test adds a unit that gives the interface its name, addresses and routes three seconds after `network.target`.
fn boot(operator: &mut Operator) -> Result<String> {
    let routes = |family: &str| -> Result<String> {
        let all = operator.types(&format!("ip {family} route show dev eth0"))?;
        let through = all.lines().filter(|line| line.contains(" via "));
        Ok(through.map(|line| format!("ip {family} route replace {line} dev eth0\n")).collect())
    };
    let addresses: String = Family::BOTH.map(own_address).concat();
    let script = format!(
        "#!/bin/sh -e\nsleep 3\nip link set late0 name eth0\nip link set eth0 up\n{addresses}{}{}",
        routes("-4")?,
        routes("-6")?
    );
    operator.machine.write("usr/local/sbin/late-network", &script)?;
    operator.machine.write(
        "etc/systemd/system/late-network.service",
        "[Unit]\nBefore=network-online.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/usr/local/sbin/late-network\n[Install]\nWantedBy=network-online.target\n",
    )?;
    operator.types("chmod 755 /usr/local/sbin/late-network && systemctl --quiet enable late-network")?;
    operator.machine.halt()?;
    // A reboot of a real machine resets its network. In the test, a reboot does not reset the namespace's network, so
    // this step resets the network.
    for family in ["ipv4", "ipv6"] {
        operator.topology.balancer().sysctl(&format!("net/{family}/conf/eth0/forwarding"), "0")?;
    }
    operator.topology.balancer().ip("link set eth0 down")?;
    operator.topology.balancer().ip("link set eth0 name late0")?;
    operator.machine.boot()?;
    operator.reads("systemctl is-active late-network balancer", &["active\nactive"])?;
    ensure!(operator.property("NRestarts")? == "0", "restarted {} times", operator.property("NRestarts")?);
    for backend in ["web/web1", "web/web2", "web6/web1", "web6/web2"] {
        operator.types(&format!("balancer wait {backend} up --timeout 30s"))?;
    }
    operator.under_traffic(|_| Ok(())).map(|((), traffic)| traffic)
}

fn own_address(family: Family) -> String {
    let (address, length) = Topology::balancer_address(family);
    let nodad = if family == Family::V6 { " nodad" } else { "" };
    format!("ip address replace {address}/{length} dev eth0{nodad}\n")
}

fn remove(operator: &mut Operator) -> Result<String> {
    operator.types(&format!("{APT} remove balancer"))?;
    ensure!(!operator.attached()?, "the XDP program is still there");
    nothing_runs(operator)?;
    ensure!(operator.machine.has("etc/balancer/balancer.toml"), "the configuration is gone");
    operator.reads("dpkg-query --show --showformat '${Status}' balancer", &["deinstall ok config-files"])
}

fn purge(operator: &mut Operator) -> Result<String> {
    operator.types(&format!("{APT} purge balancer"))?;
    nothing_runs(operator)?;
    for path in ["etc/balancer", "var/lib/balancer", "usr/sbin/balancer", "usr/share/doc/balancer"] {
        ensure!(!operator.machine.has(path), "/{path} is left");
    }
    let left = operator.types(
        "find / -xdev -path /proc -prune -o -path /root -prune -o -path '/var/log/*' -prune \
         -o -path '/var/cache/*' -prune -o -name '*balancer*' -print",
    )?;
    ensure!(left.is_empty(), "left behind: {left}");
    operator.types_in_vain("getent group balancer || getent group balancer-config || getent group balancer-readers")?;
    Ok("nothing is left".to_owned())
}

/// Runs the controller for Kubernetes in its unit, against a stand-in for the API server.
fn cluster(operator: &mut Operator) -> Result<String> {
    operator.configures(100, "")?;
    operator.types("systemctl restart balancer")?;
    operator.types(&format!("{APT} install ~/kubernetes.deb"))?;
    operator.reads("systemctl is-enabled balancer-kubernetes", &["disabled"])?;
    let words = operator.types("systemd-analyze verify --man=no balancer-kubernetes.service")?;
    ensure!(words.is_empty(), "{words}");
    let api = operator.topology.balancer().run_in_thread(Kubernetes::start)??;
    // If no authority is configured, the controller uses the certificate authorities of the machine, which has none.
    let files = tempfile::tempdir()?;
    let authority = fs::read_to_string(Certificates::make(files.path(), &[])?.ca)?;
    operator.machine.write("etc/balancer/authority.pem", &authority)?;
    let named = "\"certificate-authority\":\"/etc/balancer/authority.pem\",\"server\":";
    let kubeconfig = api.kubeconfig().replacen("\"server\":", named, 1);
    operator.machine.write("etc/balancer/kubeconfig", &kubeconfig)?;
    operator.types("chgrp balancer /etc/balancer/kubeconfig && chmod 640 /etc/balancer/kubeconfig")?;
    let options = "OPTIONS=\"--kubeconfig=/etc/balancer/kubeconfig --pool=198.51.100.200/32\"\n";
    operator.machine.write("etc/default/balancer-kubernetes", options)?;
    api.put(
        "services",
        json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"type": "LoadBalancer",
            "loadBalancerClass": "sticky.balancer/xdp", "ports": [{"port": 80, "protocol": "TCP"}]}}),
    );
    operator.types("systemctl enable --now balancer-kubernetes")?;
    operator.wait("balancer status | grep -q 'k8s[.]shop[.]web' && echo served", "served")?;
    operator.types("systemctl reload balancer && systemctl restart balancer")?;
    operator.wait("balancer status | grep -q 'k8s[.]shop[.]web' && echo served", "served")?;
    api.delete("services", "shop", "web");
    operator.wait("balancer status | grep -q 'k8s[.]shop' || echo gone", "gone")?;
    let security = operator.types("systemd-analyze security --no-pager --threshold=20 balancer-kubernetes")?;
    operator.types(&format!(
        "{APT} purge balancer-kubernetes && rm /etc/balancer/kubeconfig /etc/balancer/authority.pem"
    ))?;
    ensure!(!operator.machine.has("usr/sbin/balancer-kubernetes"), "the program is left");
    operator.configures(100, "")?;
    operator.types("systemctl reload balancer")?;
    Ok(security.lines().last().unwrap_or_default().trim_start_matches(['→', ' ']).to_owned())
}

fn nothing_runs(operator: &Operator) -> Result<()> {
    // The directory with pinned maps also contains entries of the kernel.
    let pins = operator.types("ls -A /sys/fs/bpf")?;
    ensure!(!pins.contains("balancer"), "pinned: {pins}");
    ensure!(!operator.machine.shell("ls /run/balancer")?.1, "/run/balancer is there");
    ensure!(!operator.machine.shell("systemctl cat balancer")?.1, "the unit is there");
    let switches =
        operator.types("cat /proc/sys/net/ipv4/conf/eth0/forwarding /proc/sys/net/ipv6/conf/eth0/forwarding")?;
    ensure!(switches == "0\n0", "forwarding is {switches:?}");
    Ok(())
}
