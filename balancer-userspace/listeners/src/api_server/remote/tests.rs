//! Tests of clients on other machines, with various certificates.

use std::{fs, future::pending, path::PathBuf, sync::Arc, time::Duration};

use balancer_config::control::{Remote, Role};
use balancer_runtime::supervisor::Supervisor;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::{Identity, bind, serve};
use crate::{api_server::Answering, audit::Audit, configuration::Configurations};

const PATIENCE: Duration = Duration::from_secs(60);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate in PEM format, and the certificate's key.
type Pair = (String, String);

fn signed(authority: &Authority, name: &str, adapt: impl FnOnce(&mut CertificateParams)) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    adapt(&mut params);
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

/// A control listener with a controller that answers no calls.
struct Served {
    directory: TempDir,
    identity: Arc<Identity>,
    authority: Authority,
    port: u16,
    server: JoinHandle<anyhow::Result<()>>,
}

impl Served {
    async fn start() -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), authority());
        let [cert, key, client_ca] = ["cert", "key", "ca"].map(|name| directory.path().join(name));
        let roles = [("reader", Role::Read), ("deploy", Role::Drain), ("admin", Role::All)];
        let roles = roles.map(|(name, role)| (name.to_owned(), role)).into();
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let listen = listener.local_addr().unwrap();
        let identity = Arc::new(Identity::new(Remote { listen, cert, key, client_ca, roles }));
        let (calls, _) = mpsc::channel(1);
        let answering = Answering::new(calls, Configurations::default(), Audit::new(&Supervisor::default()));
        let server = tokio::spawn(serve(listener, Arc::clone(&identity), answering, pending::<()>()));
        let this = Self { directory, identity, authority, port: listen.port(), server };
        this.write(&this.authority);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes the listener accept certificates that this authority has signed.
    fn write(&self, authority: &Authority) {
        let (cert, key) = signed(&self.authority, "server", |_| {});
        for (name, text) in [("cert", cert), ("key", key), ("ca", authority.pem())] {
            fs::write(self.path(name), text).unwrap();
        }
    }

    /// Connects as a client with the certificate `shown`, or without a certificate.
    async fn connect(&self, shown: Option<&Pair>) -> Option<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let settings = match shown {
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                    .unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let name = "127.0.0.1".try_into().ok()?;
        TlsConnector::from(Arc::new(settings)).connect(name, stream).await.ok()
    }

    /// Sends a request as a client with the certificate `shown`, or without a certificate, and returns the status of
    /// the answer; empty if the server does not answer.
    async fn ask(&self, shown: Option<&Pair>, request: &str) -> String {
        let exchange = async {
            let mut stream = self.connect(shown).await?;
            let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer.split(' ').nth(1)?.to_owned())
        };
        timeout(PATIENCE, exchange).await.unwrap().unwrap_or_default()
    }

    async fn reads(&self, name: &str) -> String {
        self.ask(Some(&signed(&self.authority, name, |_| {})), "GET /v1/openapi.json").await
    }
}

#[tokio::test]
async fn when_a_client_shows_no_right_certificate_then_it_gets_no_answer() {
    let served = Served::start().await;
    let get = "GET /v1/openapi.json";
    assert_eq!(served.reads("reader").await, "200");
    assert_eq!(served.ask(None, get).await, "");
    assert_eq!(served.ask(Some(&signed(&authority(), "admin", |_| {})), get).await, "", "of another authority");
    let expired = signed(&served.authority, "admin", |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    });
    assert_eq!(served.ask(Some(&expired), get).await, "", "expired");
    assert_eq!(served.reads("reader").await, "200");
}

/// Sends requests over one connection until the server answers one with status 401; returns the answer, with everything
/// up to the end of the connection. No controller answers, so that the server answers all others with 503.
async fn refused_at_last(mut stream: TlsStream<TcpStream>) -> String {
    let refused = async {
        loop {
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer).await.unwrap();
            answer.truncate(length);
            let mut answer = String::from_utf8(answer).unwrap();
            if !answer.starts_with("HTTP/1.1 503 ") {
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a certificate ends at a time of day")]
#[tokio::test]
async fn when_a_certificate_expires_or_its_authority_goes_then_the_open_connection_ends_as_well() {
    let served = Served::start().await;
    let soon = signed(&served.authority, "reader", |params| {
        params.not_after = (std::time::SystemTime::now() + Duration::from_secs(2)).into();
    });
    let answer = refused_at_last(served.connect(Some(&soon)).await.unwrap()).await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") && answer.contains("your certificate is no longer accepted"),
        "{answer}"
    );

    let open = served.connect(Some(&signed(&served.authority, "reader", |_| {}))).await.unwrap();
    served.write(&authority());
    let answer = refused_at_last(open).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[tokio::test]
async fn when_a_certificate_has_a_role_then_requests_beyond_it_are_refused() {
    let served = Served::start().await;
    let drain = "PUT /v1/services/web/backends/web1/admin";
    // No controller answers: the server answers allowed requests with 503, or with 400 if a body is missing.
    for (name, [read, drains, changes, keys]) in [
        ("stranger", ["403", "403", "403", "403"]),
        ("reader", ["503", "403", "403", "403"]),
        ("deploy", ["503", "400", "403", "403"]),
        ("admin", ["503", "400", "503", "503"]),
    ] {
        let shown = signed(&served.authority, name, |_| {});
        for (request, expected) in [
            ("GET /v1/status", read),
            (drain, drains),
            ("PUT /v1/withdrawn", changes),
            ("GET /v1/services/web/quic/web1", keys),
        ] {
            assert_eq!(served.ask(Some(&shown), request).await, expected, "{name}: {request}");
        }
    }
}

#[tokio::test]
async fn when_others_never_finish_their_handshakes_then_a_client_is_answered() {
    let served = Served::start().await;
    let mut idle = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", served.port)).await.unwrap();
        // One half of the clients send text that is not TLS, and the other half send only the beginning of a TLS
        // handshake.
        if number % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01, 0x01]).await.unwrap();
        } else if number % 3 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(served.reads("reader").await, "200");
    // The listener closes these idle connections after the time limit.
    for mut stream in idle {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end");
    }
    assert!(!served.server.is_finished());
}

#[tokio::test]
async fn when_files_change_then_they_are_read_again_and_bad_ones_change_nothing() {
    let served = Served::start().await;
    assert_eq!(served.reads("reader").await, "200");
    let other = authority();
    let shown = signed(&other, "reader", |_| {});
    let get = "GET /v1/openapi.json";
    assert_eq!(served.ask(Some(&shown), get).await, "");
    served.write(&other);
    let changed = async {
        while served.ask(Some(&shown), get).await != "200" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, changed).await.unwrap();
    assert_eq!(served.reads("reader").await, "", "whoever was right before");
    for (name, text, fault) in [
        ("key", "no key", "key {} holds no private key in PEM"),
        ("cert", "", "cert {} holds no certificate in PEM"),
        ("ca", "-----BEGIN NOTHING-----", "client_ca {} "),
    ] {
        served.write(&other);
        fs::write(served.path(name), text).unwrap();
        let fault = fault.replace("{}", &served.path(name).display().to_string());
        let told = async {
            while !served.identity.trouble().await.is_some_and(|trouble| trouble.contains(&fault)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(timeout(PATIENCE, told).await.is_ok(), "{fault}: {:?}", served.identity.trouble().await);
        assert_eq!(served.ask(Some(&shown), get).await, "200");
    }
    served.write(&other);
    let well = async {
        while served.identity.trouble().await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, well).await.unwrap();
}
