//! A real API server of Kubernetes, with the etcd that stores its objects, in a separate network namespace.
//!
//! The kubelet, the scheduler and the endpoint controllers are missing, so the tests do the work of these components.

use std::{
    env, fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_demo::etcd::Tls;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    etcd::{Certificates, EtcdCluster, Options},
    namespace::Namespace,
    process::Process,
};

/// The environment variable that names the directory of `kube-apiserver` and `kubectl`.
const PROGRAMS: &str = "KUBERNETES_PROGRAMS";

/// How long the server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 255, 1));
const PORT: u16 = 6443;

/// The token of a user with all rights.
const ADMIN_TOKEN: &str = "the-token-of-the-administrator";

/// The user name of the controller's service account.
pub const ACCOUNT: &str = "system:serviceaccount:kube-system:balancer-kubernetes";

/// The API server and its etcd; dropping the value ends both processes.
pub struct ApiServer {
    server: Option<Process>,
    etcd: EtcdCluster,
    namespace: Namespace,
    files: TempDir,
    programs: PathBuf,
    certificates: Certificates,
}

/// A request that the server has answered, according to its audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// The verb in the form that roles use, such as `patch`.
    pub verb: String,
    /// The path and the query of the request.
    pub uri: String,
    /// The status code of the server's answer.
    pub code: u64,
}

impl ApiServer {
    /// Starts etcd and the API server, and waits until the server is ready.
    ///
    /// # Errors
    /// Fails if a program is missing or does not start.
    pub fn start() -> Result<Self> {
        let programs = env::var_os(PROGRAMS).map(PathBuf::from);
        let programs = programs.with_context(|| format!("{PROGRAMS} is not set: `cargo xtask lab kubernetes` does"))?;
        let namespace = Namespace::new("cluster")?;
        namespace.ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
        let etcd = EtcdCluster::start(&[(&namespace, ADDRESS)], &Options::default())?;
        let files = tempfile::tempdir()?;
        let certificates = Certificates::make(files.path(), &[ADDRESS])?;
        let mut this = Self { server: None, etcd, namespace, files, programs, certificates };
        this.write("tokens", &format!("{ADMIN_TOKEN},admin,admin,system:masters\n"))?;
        this.invalidate_tokens()?;
        let audit = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}]});
        this.write("audit.json", &audit.to_string())?;
        let admin = this.kubeconfig(ADMIN_TOKEN);
        this.write("admin.kubeconfig", &admin)?;
        this.come_back()?;
        Ok(this)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The namespace in which clients reach the server.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn kubeconfig(&self, token: &str) -> String {
        let cluster =
            json!({"server": format!("https://{ADDRESS}:{PORT}"), "certificate-authority": self.certificates.ca});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "users": [{"name": "it", "user": {"token": token}}],
        });
        config.to_string()
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        let Tls { cert, key, .. } = self.certificates.server();
        [
            ("etcd-servers", self.etcd.endpoints().join(",")),
            ("bind-address", ADDRESS.to_string()),
            ("advertise-address", ADDRESS.to_string()),
            ("secure-port", PORT.to_string()),
            ("tls-cert-file", cert.display().to_string()),
            ("tls-private-key-file", key.display().to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112".to_owned()),
            // The tests' web servers use ports 8000 to 9999, which are below Kubernetes's default range.
            ("service-node-port-range", "8000-9999".to_owned()),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", path("accounts.pub")),
            ("service-account-signing-key-file", path("accounts.key")),
            ("token-auth-file", path("tokens")),
            ("authorization-mode", "RBAC".to_owned()),
            (
                "feature-gates",
                "EndpointSliceTerminatingCondition=true,MixedProtocolLBService=true,IPv6DualStack=true".to_owned(),
            ),
            ("audit-policy-file", path("audit.json")),
            ("audit-log-path", path("audit.log")),
        ]
        .map(|(name, value)| format!("--{name}={value}"))
        .into()
    }

    /// Kills the server, but keeps the data in etcd.
    ///
    /// # Errors
    /// Fails if the kernel returns an error.
    pub fn go_away(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), |mut server| server.kill().map(drop))
    }

    /// Starts the server and waits until the server is ready.
    ///
    /// # Errors
    /// Fails if the server does not start.
    pub fn come_back(&mut self) -> Result<()> {
        let mut command = self.namespace.command(self.programs.join("kube-apiserver"));
        command.args(self.arguments());
        let mut server = Process::spawn("kube-apiserver", &mut command, &self.file("server.log"))?;
        let deadline = Instant::now() + PATIENCE;
        while self.kubectl(&["get", "--raw", "/readyz"]).is_err() {
            let ended = server.exited()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("the API server is not ready ({ended:?}): {}", server.tail(20)?);
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.server = Some(server);
        Ok(())
    }

    /// Makes all tokens of service accounts invalid as soon as the server starts again.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn invalidate_tokens(&self) -> Result<()> {
        let accounts = KeyPair::generate()?;
        self.write("accounts.key", &accounts.serialize_pem())?;
        self.write("accounts.pub", &accounts.public_key_pem())
    }

    /// Makes etcd forget old versions of objects. Without this call, the API server does so every five minutes.
    ///
    /// # Errors
    /// Fails if etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        let ask =
            |arguments: &[&str]| crate::namespace::run(self.etcd.client(&self.namespace, ADDRESS).args(arguments));
        let said: Value = serde_json::from_str(&ask(&["endpoint", "status", "-w", "json"])?)?;
        let revision = said[0]["Status"]["header"]["revision"].to_string();
        ask(&["compact", &revision]).map(drop)
    }

    /// Returns a `kubectl` command with the rights of the administrator; the caller adds arguments.
    #[must_use]
    pub fn client(&self) -> Command {
        let mut command = self.namespace.command(self.programs.join("kubectl"));
        command.env("KUBECONFIG", self.file("admin.kubeconfig")).env("HOME", self.files.path());
        command
    }

    /// Runs `kubectl` as the administrator, and returns its output.
    ///
    /// # Errors
    /// Fails if the command fails; the error contains the command's message.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    /// Runs `kubectl` like [`Self::kubectl`], with `input` as the standard input.
    ///
    /// # Errors
    /// Fails if the command fails; the error contains the command's message.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.client();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl cannot be started")?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Creates or changes an object, as `kubectl apply` does.
    ///
    /// # Errors
    /// Fails if the server refuses the object.
    pub fn apply(&self, object: &Value) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string())
    }

    /// Returns an object as the server stores it, or `None` if the object does not exist.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let text = self.kubectl(&["get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found"])?;
        if text.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&text)?)) }
    }

    /// Writes into `directory` the files that the kubelet gives to a pod of the controller's service account: a token
    /// that is valid for an hour, the certificate authority, and the namespace.
    ///
    /// # Errors
    /// Fails if the account does not exist, or a file cannot be written.
    pub fn service_account(&self, directory: &Path) -> Result<()> {
        let path = "/api/v1/namespaces/kube-system/serviceaccounts/balancer-kubernetes/token";
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.kubectl_with(&["create", "--raw", path, "-f", "-"], &request.to_string())?;
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str().context("the answer has no token")?;
        fs::create_dir_all(directory)?;
        fs::write(directory.join("token"), token)?;
        fs::write(directory.join("namespace"), "kube-system")?;
        fs::copy(&self.certificates.ca, directory.join("ca.crt"))?;
        Ok(())
    }

    /// The environment variables that tell a pod the address and port of the API server.
    #[must_use]
    pub fn variables() -> [(&'static str, String); 2] {
        [("KUBERNETES_SERVICE_HOST", ADDRESS.to_string()), ("KUBERNETES_SERVICE_PORT", PORT.to_string())]
    }

    /// All answered requests of a user, the earliest first.
    ///
    /// # Errors
    /// Fails if the audit log cannot be read.
    pub fn audited(&self, user: &str) -> Result<Vec<Audited>> {
        let log = fs::read_to_string(self.file("audit.log"))?;
        let mut requests = Vec::new();
        // The server may still be writing the last line of the audit log.
        for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            if event["user"]["username"] == user {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
                requests.push(Audited { verb: text(&event["verb"]), uri: text(&event["requestURI"]), code });
            }
        }
        Ok(requests)
    }
}
