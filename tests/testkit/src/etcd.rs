//! An etcd cluster of one or more members, which run in one namespace or in a namespace for each member.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_demo::etcd::{Server, Tls, servers};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{
    namespace::{Namespace, run},
    pace::patience,
};

/// The time limit for members to become healthy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The common name of the client's certificate, which etcd uses as the user name.
pub const CLIENT: &str = "client";

/// The running members of an etcd cluster; dropping the value ends all members.
pub struct EtcdCluster {
    members: Vec<Server>,
    certificates: Option<Certificates>,
    directory: TempDir,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether clients use TLS with a certificate.
    pub tls: bool,
    /// Additional command-line arguments of `etcd`.
    pub arguments: Vec<String>,
}

impl EtcdCluster {
    /// Starts a member at each address, in the namespace that has this address, and waits until all members are
    /// healthy. The members end no later than the calling thread.
    ///
    /// # Errors
    /// Fails if a program cannot be started, or the members do not form a cluster within 30 s.
    pub fn start(places: &[(&Namespace, IpAddr)], options: &Options) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let addresses: Vec<IpAddr> = places.iter().map(|&(_, address)| address).collect();
        let certificates = if options.tls { Some(Certificates::make(directory.path(), &addresses)?) } else { None };
        let tls = certificates.as_ref().map(|certificates| &certificates.server);
        let members = servers(&addresses, tls, directory.path(), &options.arguments);
        let mut this = Self { members, certificates, directory };
        for (index, &(namespace, _)) in places.iter().enumerate() {
            this.start_member(index, namespace)?;
        }
        for &(namespace, address) in places {
            this.wait_until_well(namespace, address)?;
        }
        Ok(this)
    }

    /// The URLs at which clients reach the members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint().to_owned()).collect()
    }

    /// The certificate files for clients, if the cluster uses TLS.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Starts a member again with the data that the member had before.
    ///
    /// # Errors
    /// Fails if the member cannot be started.
    pub fn start_member(&mut self, index: usize, namespace: &Namespace) -> Result<()> {
        self.members[index].start(namespace)
    }

    /// Deletes the data of all members, as if their disks were new. The caller must stop all members first.
    ///
    /// # Errors
    /// Fails if files cannot be removed.
    pub fn lose_disks(&self) -> Result<()> {
        for member in &self.members {
            ensure!(!member.is_started(), "{} still runs", member.name());
            let data = self.directory.path().join(member.name());
            fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
        }
        Ok(())
    }

    /// Kills a member suddenly, as a power failure would.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.members[index].kill()
    }

    /// Suspends a member, whose connections stay open.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn freeze(&mut self, index: usize) -> Result<()> {
        self.members[index].signal(Signal::SIGSTOP)
    }

    /// Resumes a member that [`Self::freeze`] has suspended.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn thaw(&mut self, index: usize) -> Result<()> {
        self.members[index].signal(Signal::SIGCONT)
    }

    /// Waits until a member reports that it can serve linearizable reads.
    ///
    /// # Errors
    /// Fails if the member does not serve linearizable reads within 30 s.
    pub fn wait_until_well(&self, namespace: &Namespace, address: IpAddr) -> Result<()> {
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            match run(self.client(namespace, address).args(["endpoint", "health"])) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let logs = self.members.iter().filter_map(|member| member.tail(5));
                    bail!("etcd at {address} is not well: {error:#}\n{}", logs.collect::<Vec<_>>().join("\n"));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Returns the index of the leader.
    ///
    /// # Errors
    /// Fails if no member reports that it is the leader.
    pub fn leader(&self, namespace: &Namespace) -> Result<usize> {
        let id = |value: &serde_json::Value| value.as_u64();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_started()) {
            let mut status = self.client(namespace, member.address());
            let said: serde_json::Value =
                serde_json::from_str(&run(status.args(["endpoint", "status", "-w", "json"]))?)?;
            let status = &said[0]["Status"];
            if id(&status["leader"]).is_some_and(|leader| Some(leader) == id(&status["header"]["member_id"])) {
                return Ok(index);
            }
        }
        bail!("no etcd says that it leads")
    }

    /// Returns an `etcdctl` command for the member at the given address.
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

    fn endpoint(&self, address: IpAddr) -> &str {
        self.members.iter().find(|member| member.address() == address).map_or("", Server::endpoint)
    }
}

/// Certificates and keys in PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The certificate of the authority that has signed all other certificates.
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    server: Tls,
}

impl Certificates {
    /// The certificate of the servers, for the addresses that [`Self::make`] received.
    #[must_use]
    pub const fn server(&self) -> &Tls {
        &self.server
    }

    /// Creates an authority and certificates in `directory`.
    ///
    /// # Errors
    /// Fails if files cannot be written.
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
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, &authority)?;
            let cert = write(&format!("{name}.pem"), certificate.pem())?;
            anyhow::Ok((cert, write(&format!("{name}.key"), key.serialize_pem())?))
        };
        let (server_cert, server_key) = signed("server", servers.iter().map(ToString::to_string).collect())?;
        let (cert, key) = signed(CLIENT, vec!["balancer".to_owned()])?;
        let ca = write("ca.pem", authority.pem())?;
        Ok(Self { server: Tls { ca: ca.clone(), cert: server_cert, key: server_key }, ca, cert, key })
    }
}
