//! etcd, one member or several, each where it is told: all in one namespace, or one in each.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{
    namespace::{Namespace, run},
    process::Process,
};

/// How long members may take to agree that they are well.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where clients are answered, and where members speak with each other.
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

/// Several members that are one etcd. They end with it.
pub struct EtcdCluster {
    members: Vec<Member>,
    certificates: Option<Certificates>,
    directory: TempDir,
}

struct Member {
    name: String,
    address: IpAddr,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// What is to be started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether clients speak TLS, and show a certificate.
    pub tls: bool,
    /// More arguments of `etcd`.
    pub arguments: Vec<String>,
}

impl EtcdCluster {
    /// Starts a member at each address, in the namespace that has it, and waits until all are well. They end with the
    /// thread that calls this at the latest.
    ///
    /// # Errors
    /// When a program cannot be started, or they do not agree within 30 s.
    pub fn start(places: &[(&Namespace, IpAddr)], options: &Options) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let addresses: Vec<IpAddr> = places.iter().map(|&(_, address)| address).collect();
        let certificates = if options.tls { Some(Certificates::make(directory.path(), &addresses)?) } else { None };
        let initial: Vec<String> = (1..)
            .zip(&addresses)
            .map(|(number, &address)| format!("etcd{number}={}", url("http", address, PEERS)))
            .collect();
        let mut this = Self { members: Vec::new(), certificates, directory };
        for (number, &address) in (1..).zip(&addresses) {
            let name = format!("etcd{number}");
            let mut arguments = this.arguments(&name, address, &initial.join(","));
            arguments.extend_from_slice(&options.arguments);
            this.members.push(Member { name, address, arguments, process: None });
        }
        for (index, &(namespace, _)) in places.iter().enumerate() {
            this.start_member(index, namespace)?;
        }
        for &(namespace, address) in places {
            this.wait_until_well(namespace, address)?;
        }
        Ok(this)
    }

    /// URLs for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| self.endpoint(member.address)).collect()
    }

    /// Files for clients, where TLS is spoken.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Starts a member again, with what it knew.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_member(&mut self, index: usize, namespace: &Namespace) -> Result<()> {
        let log = self.directory.path().join(format!("{}.log", self.members[index].name));
        let member = &mut self.members[index];
        let mut command = namespace.command("etcd");
        command.args(&member.arguments);
        member.process = Some(Process::spawn(&member.name, &mut command, &log)?);
        Ok(())
    }

    /// Takes away what all members know, as if their disks were new. None may run.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn lose_disks(&self) -> Result<()> {
        for member in &self.members {
            ensure!(member.process.is_none(), "{} still runs", member.name);
            let data = self.directory.path().join(&member.name);
            fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
        }
        Ok(())
    }

    /// Kills a member, as a power failure does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        match self.members[index].process.take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Stops a member without closing its connections.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&mut self, index: usize) -> Result<()> {
        self.signal(index, Signal::SIGSTOP)
    }

    /// Lets a frozen member go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&mut self, index: usize) -> Result<()> {
        self.signal(index, Signal::SIGCONT)
    }

    /// Waits until a member says that it can do a linearizable read.
    ///
    /// # Errors
    /// When it does not within 30 s.
    pub fn wait_until_well(&self, namespace: &Namespace, address: IpAddr) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match run(self.client(namespace, address).args(["endpoint", "health"])) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let logs = self.members.iter().filter_map(|member| member.process.as_ref()?.tail(5).ok());
                    bail!("etcd at {address} is not well: {error:#}\n{}", logs.collect::<Vec<_>>().join("\n"));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The member that leads the others.
    ///
    /// # Errors
    /// When none says that it does.
    pub fn leader(&self, namespace: &Namespace) -> Result<usize> {
        let id = |value: &serde_json::Value| value.as_u64();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()) {
            let mut status = self.client(namespace, member.address);
            let said: serde_json::Value =
                serde_json::from_str(&run(status.args(["endpoint", "status", "-w", "json"]))?)?;
            let status = &said[0]["Status"];
            if id(&status["leader"]).is_some_and(|leader| Some(leader) == id(&status["header"]["member_id"])) {
                return Ok(index);
            }
        }
        bail!("no etcd says that it leads")
    }

    /// `etcdctl`, asking the member at this address.
    #[must_use]
    pub fn client(&self, namespace: &Namespace, address: IpAddr) -> Command {
        let mut command = namespace.command("etcdctl");
        command.env("ETCDCTL_API", "3");
        command.arg(format!("--endpoints={}", self.endpoint(address))).arg("--command-timeout=5s");
        if let Some(certificates) = &self.certificates {
            for (name, path) in [("cacert", &certificates.ca), ("cert", &certificates.cert), ("key", &certificates.key)]
            {
                command.arg(format!("--{name}={}", path.display()));
            }
        }
        command
    }

    fn endpoint(&self, address: IpAddr) -> String {
        url(if self.certificates.is_some() { "https" } else { "http" }, address, CLIENTS)
    }

    fn arguments(&self, name: &str, address: IpAddr, initial: &str) -> Vec<String> {
        let (clients, peers) = (self.endpoint(address), url("http", address, PEERS));
        let data = self.directory.path().join(name).display().to_string();
        let mut arguments: Vec<String> = [
            ("name", name),
            ("data-dir", &data),
            ("listen-client-urls", &clients),
            ("advertise-client-urls", &clients),
            ("listen-peer-urls", &peers),
            ("initial-advertise-peer-urls", &peers),
            ("initial-cluster", initial),
            ("initial-cluster-state", "new"),
            ("logger", "zap"),
            ("log-level", "warn"),
        ]
        .map(|(name, value)| format!("--{name}={value}"))
        .into();
        if let Some(certificates) = &self.certificates {
            arguments.push("--client-cert-auth".to_owned());
            for (name, path) in [
                ("trusted-ca-file", &certificates.ca),
                ("cert-file", &certificates.server_cert),
                ("key-file", &certificates.server_key),
            ] {
                arguments.push(format!("--{name}={}", path.display()));
            }
        }
        arguments
    }

    fn signal(&mut self, index: usize, signal: Signal) -> Result<()> {
        self.members[index].process.as_mut().context("it does not run")?.signal(signal)
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        // There is nothing to keep, and a frozen process would not hear a request to end.
        for member in &mut self.members {
            if let Some(mut process) = member.process.take()
                && let Err(error) = process.kill()
            {
                eprintln!("{} is left running: {error:#}", member.name);
            }
        }
    }
}

/// Files in PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// What all of them are signed by.
    pub ca: PathBuf,
    /// A client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    server_cert: PathBuf,
    server_key: PathBuf,
}

impl Certificates {
    /// Makes an authority, and what it signs, in `directory`.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn make(directory: &Path, servers: &[IpAddr]) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string()).map(|()| path)
        };
        let signed = |name: &str, names: Vec<String>| {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
            let cert = write(&format!("{name}.pem"), certificate.pem())?;
            anyhow::Ok((cert, write(&format!("{name}.key"), key.serialize_pem())?))
        };
        let (server_cert, server_key) = signed("server", servers.iter().map(ToString::to_string).collect())?;
        let (cert, key) = signed("client", vec!["balancer".to_owned()])?;
        Ok(Self { ca: write("ca.pem", authority.pem())?, cert, key, server_cert, server_key })
    }
}

fn url(scheme: &str, address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(address) => format!("{scheme}://{address}:{port}"),
        IpAddr::V6(address) => format!("{scheme}://[{address}]:{port}"),
    }
}
