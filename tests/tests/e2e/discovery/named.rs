//! A real name server, BIND, which serves only the zone `internal`.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use balancer_testkit::{namespace::Namespace, process::Process};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::wait_until;

/// A name server in a temporary directory; each function receives the host of the server.
pub(crate) struct Named {
    process: Process,
    files: TempDir,
    address: IpAddr,
    serial: u32,
}

impl Named {
    /// Starts the name server with the given lines in its zone. All records have a TTL of one second.
    pub(crate) fn start(on: &Namespace, address: IpAddr, records: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        // The server runs from a copy, because AppArmor confines the program at its usual path.
        let program = files.path().join("named");
        let installed = Path::new("/usr/sbin/named");
        assert!(installed.exists(), "named is needed: cargo xtask setup, or apt-get install bind9");
        fs::copy(installed, &program).unwrap();
        let config = format!(
            "options {{ directory \"{}\"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; pid-file none; \
             session-keyfile none; recursion no; dnssec-validation no; querylog yes; minimal-responses yes; \
             rrset-order {{ order random; }}; }};\ncontrols {{}};\n\
             zone \"internal\" {{ type primary; file \"internal.zone\"; }};\n",
            files.path().display()
        );
        fs::write(files.path().join("named.conf"), config).unwrap();
        write_zone(files.path(), 1, records);
        let process = spawn(on, files.path());
        let named = Self { process, files, address, serial: 1 };
        named.await_serial(on);
        named
    }

    /// Replaces the lines of the name server's zone.
    pub(crate) fn answer(&mut self, on: &Namespace, records: &str) {
        self.serial += 1;
        write_zone(self.files.path(), self.serial, records);
        self.process.signal(Signal::SIGHUP).unwrap();
        self.await_serial(on);
    }

    /// Restarts the name server without a zone, so that every answer is `SERVFAIL`.
    pub(super) fn fail(&mut self, on: &Namespace) {
        self.process.stop().unwrap();
        fs::write(self.files.path().join("internal.zone"), "broken\n").unwrap();
        self.process = spawn(on, self.files.path());
        wait_until("it says SERVFAIL", || self.dig(on, &["internal", "SOA"]).contains("SERVFAIL"));
    }

    /// Restarts the name server with the given lines in its zone.
    pub(super) fn recover(&mut self, on: &Namespace, records: &str) {
        self.process.stop().unwrap();
        self.serial += 1;
        write_zone(self.files.path(), self.serial, records);
        self.process = spawn(on, self.files.path());
        self.await_serial(on);
    }

    /// Suspends the name server.
    pub(super) fn fall_silent(&mut self) {
        self.process.signal(Signal::SIGSTOP).unwrap();
    }

    /// Resumes the suspended name server.
    pub(super) fn speak(&mut self) {
        self.process.signal(Signal::SIGCONT).unwrap();
    }

    /// Returns how often the name server has received `question`.
    pub(super) fn times_asked(&self, question: &str) -> usize {
        let log = fs::read_to_string(self.process.log()).unwrap();
        log.lines().filter(|line| line.contains(&format!("query: {question} "))).count()
    }

    /// Waits until the name server has received the question `question` for `more` further times.
    pub(super) fn await_questions(&self, question: &str, more: usize) {
        let before = self.times_asked(question);
        wait_until("it is asked again", || self.times_asked(question) >= before + more);
    }

    /// Runs the DNS client `dig` and returns the output.
    pub(super) fn dig(&self, on: &Namespace, arguments: &[&str]) -> String {
        let mut command = on.command("dig");
        command.args([&format!("@{}", self.address), "+time=1", "+tries=1"]).args(arguments);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }

    fn await_serial(&self, on: &Namespace) {
        let serial = format!(" {} ", self.serial);
        wait_until("the zone is there", || self.dig(on, &["+short", "internal", "SOA"]).contains(&serial));
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // A suspended process must resume before it can end.
        let _ = self.process.signal(Signal::SIGCONT);
    }
}

fn write_zone(files: &Path, serial: u32, records: &str) {
    let head =
        format!("$TTL 1\n@ SOA ns.internal. root.internal. {serial} 60 60 60 1\n@ NS ns.internal.\nns A 192.0.2.1\n");
    fs::write(files.join("internal.zone"), head + records + "\n").unwrap();
}

fn spawn(on: &Namespace, files: &Path) -> Process {
    let config: PathBuf = files.join("named.conf");
    let mut command = on.command(files.join("named"));
    command.args(["-g", "-n", "1", "-c"]).arg(config);
    Process::spawn("named", &mut command, &files.join("named.log")).unwrap()
}
