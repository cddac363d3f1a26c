//! Tests of HTTP/3 connections to quinn servers. The clients (quinn and aioquic) change their addresses several times
//! during a download.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_api::quic::QuicServerConfig;
use balancer_common::{map_types::Forwarding, quic::QuicFormat};
use balancer_config::config::Protocol;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};
use bytes::{Buf as _, Bytes};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig as QuicClientCrypto, QuicServerConfig as QuicServerCrypto},
    rustls::{self, RootCertStore, pki_types::PrivatePkcs8KeyDer},
};
use rcgen::{Certificate, CertificateParams, KeyPair};
use tokio::runtime::Runtime;

use crate::{
    listeners::{BACKENDS, PORTS, ask},
    quic::{maker, shop},
};

const FAMILY: Family = Family::V4;
const ALPN: &[u8] = b"h3";
const NAME: &str = "shop.example";
const REBINDS: u16 = 20;
/// The number of bytes after which the client changes its address.
const PART: usize = 256 << 10;
static CHUNK: [u8; 8 << 10] = [7; 8 << 10];
const DOWNLOAD: usize = (REBINDS as usize + 2) * PART;
/// The time without an answer after which a connection ends.
const IDLE: Duration = Duration::from_secs(2);

/// Generates the connection IDs of a backend's server.
struct Ids {
    format: QuicFormat,
    server: Vec<u8>,
    config: QuicServerConfig,
    next: u64,
}

impl Ids {
    fn of(site: &Site, number: u16) -> QuicServerConfig {
        let text = site.cli(&["quic", "server-config", &format!("shop/web{number}"), "--json"]).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn new(config: QuicServerConfig) -> Self {
        let (format, server) = maker(&config);
        Self { format, server, config, next: fastrand::u64(..) }
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.next += 1;
        let nonce: Vec<u8> = self.next.to_be_bytes().into_iter().rev().take(self.config.nonce_length.into()).collect();
        let first = (self.config.config << 5) | fastrand::u8(..32);
        let id = self.format.id(first, &self.server, &nonce);
        ConnectionId::new(&id[..self.cid_len()])
    }

    fn cid_len(&self) -> usize {
        self.config.id_length.into()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    // A veth pair with XDP accepts no frames that the kernel would have to segment later, so the server must not send
    // such frames.
    transport.enable_segmentation_offload(false);
    transport.max_idle_timeout(Some(IdleTimeout::try_from(IDLE).unwrap()));
    // Because the window is small, the server is still sending when the client's address changes.
    transport.stream_receive_window(VarInt::from_u32(PART as u32 / 2));
    Arc::new(transport)
}

struct Scene {
    site: Site,
    runtime: Runtime,
    certificate: Certificate,
}

impl Scene {
    /// Starts a site with the service `shop`. Each server of the shop uses QUIC and TCP, and answers with its own name.
    fn start(forwarding: Forwarding, quic: Option<&str>) -> Self {
        let shape = if forwarding == Forwarding::Dsr { Shape::OneLegged } else { Shape::TwoLegged };
        let site = Site::start(shape, forwarding, BACKENDS, |settings, topology| {
            settings.families = Vec::new();
            settings.lines = match quic {
                Some(quic) => shop(topology, forwarding, quic),
                None => shop(topology, forwarding, "").replace("quic = \n", "").replace("/quic", "/udp"),
            };
            Ok(())
        })
        .unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
        let scene = Self { site, runtime: Runtime::new().unwrap(), certificate };
        for number in 1..=BACKENDS {
            scene.serve(forwarding, quic.is_some(), number, &key);
        }
        scene
    }

    fn serve(&self, forwarding: Forwarding, names_itself: bool, number: u16, key: &KeyPair) {
        let topology = self.site.topology();
        let (front, behind) = PORTS[1];
        let at: SocketAddr = match forwarding {
            Forwarding::Nat => (topology.backend_address(FAMILY, number - 1), behind).into(),
            Forwarding::Dsr | Forwarding::Snat | Forwarding::Ipip | Forwarding::Gue => {
                (topology.vip(FAMILY), front).into()
            }
        };
        let name = format!("web{number}");
        let sockets = topology.backends()[usize::from(number) - 1].run_in_thread(|| {
            (UdpSocket::bind(at).unwrap(), TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), at.port())).unwrap())
        });
        let (datagrams, streams) = sockets.unwrap();
        let told = name.clone();
        thread::spawn(move || {
            for stream in streams.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(told.as_bytes()));
            }
        });
        let mut endpoint = EndpointConfig::default();
        if names_itself {
            let config = Ids::of(&self.site, number);
            endpoint.cid_generator(move || Box::new(Ids::new(config.clone())));
        }
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key.into())
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut server = ServerConfig::with_crypto(Arc::new(QuicServerCrypto::try_from(tls).unwrap()));
        server.transport_config(transport());
        let _in_runtime = self.runtime.enter();
        let endpoint = Endpoint::new(endpoint, Some(server), datagrams, Arc::new(TokioRuntime)).unwrap();
        self.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(answer(incoming, name.clone()));
            }
        });
    }

    fn socket(&self, client: u16) -> UdpSocket {
        let from = SocketAddr::new(self.site.topology().client_address(FAMILY, client), 0);
        self.site.topology().client().run_in_thread(|| UdpSocket::bind(from).unwrap()).unwrap()
    }

    /// Downloads from one server while the client changes its address from number `first` upwards, and returns the
    /// server's name or the error.
    fn download(&self, first: u16) -> Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientCrypto::try_from(tls)?));
        config.transport_config(transport());
        let vip = SocketAddr::new(self.site.topology().vip(FAMILY), PORTS[1].0);
        let sockets = (0..=REBINDS).map(|number| self.socket(first + number));
        let mut sockets: Vec<UdpSocket> = sockets.collect();
        self.runtime.block_on(async {
            let socket = sockets.remove(0);
            let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
            let connection = endpoint.connect_with(config, vip, NAME)?.await.context("connecting")?;
            let (mut driver, mut http) = h3::client::new(h3_quinn::Connection::new(connection)).await?;
            tokio::spawn(async move { driver.wait_idle().await });
            let request = http::Request::get(format!("https://{NAME}/")).body(())?;
            let mut answer = http.send_request(request).await?;
            answer.finish().await?;
            let head = answer.recv_response().await?;
            let name = head.headers().get("server").context("the server has no name")?.to_str()?.to_owned();
            let (mut read, mut sockets) = (0, sockets.into_iter());
            while let Some(chunk) = answer.recv_data().await.context("reading on")? {
                let before = read / PART;
                read += chunk.remaining();
                if read / PART > before
                    && let Some(socket) = sockets.next()
                {
                    endpoint.rebind(socket)?;
                }
            }
            ensure!(read == DOWNLOAD && sockets.next().is_none(), "{read} bytes of {DOWNLOAD}");
            Ok(name)
        })
    }
}

async fn answer(incoming: quinn::Incoming, name: String) -> Result<()> {
    let mut http = h3::server::Connection::new(h3_quinn::Connection::new(incoming.await?)).await?;
    while let Some(request) = http.accept().await? {
        let (_, mut stream) = request.resolve_request().await?;
        stream.send_response(http::Response::builder().header("server", &name).body(())?).await?;
        for _ in 0..DOWNLOAD / CHUNK.len() {
            stream.send_data(Bytes::from_static(&CHUNK)).await?;
        }
        stream.finish().await?;
    }
    Ok(())
}

impl Scene {
    /// Downloads from one server with the client aioquic. At every second change of address, the client also migrates
    /// to another connection ID.
    fn download_by_aioquic(&self, first: u16) -> String {
        let directory = tempfile::tempdir().unwrap();
        let certificate = directory.path().join("shop.pem");
        std::fs::write(&certificate, self.certificate.pem()).unwrap();
        let topology = self.site.topology();
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
        let mut client = Command::new(tools.join("bin/python3"));
        client.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/http3_client.py")).arg(NAME).arg(&certificate);
        client.arg(topology.vip(FAMILY).to_string()).args([PORTS[1].0.to_string(), PART.to_string()]);
        client.args((0..=REBINDS).map(|number| topology.client_address(FAMILY, first + number).to_string()));
        let output = topology.client().run_in_thread(move || client.output()).unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&result["bytes"], &result["changes"]), (&DOWNLOAD.into(), &REBINDS.into()));
        result["server"].as_str().unwrap().to_owned()
    }
}

/// Checks three downloads with twenty changes of address each; the last download uses aioquic. If connection IDs are
/// encrypted, a TCP connection from the client's last address must then reach the server of the download.
fn downloads_survive(forwarding: Forwarding, quic: &str) {
    let scene = Scene::start(forwarding, Some(quic));
    for first in [1, 31, 61] {
        let server = if first == 61 { scene.download_by_aioquic(first) } else { scene.download(first).unwrap() };
        let last = first + REBINDS;
        if quic.contains("key") {
            let home = ask(&scene.site, FAMILY, last, PORTS[1].0, Protocol::Tcp).unwrap();
            assert_eq!(home, server, "the TCP connection after the download");
        }
    }
}

#[test]
fn when_clients_behind_nat_move_then_downloads_with_encrypted_ids_go_on() {
    downloads_survive(Forwarding::Nat, "{ format = \"draft\", key = \"hex:8f95f09245765f80256934e50c66207f\" }");
}

#[test]
fn when_clients_move_and_ids_take_four_passes_then_downloads_go_on() {
    let quic = "{ format = \"draft\", config = 3, server_id_length = 9, nonce_length = 6, \
                key = \"hex:fdf726a9893ec05c0632d3956680baf0\" }";
    downloads_survive(Forwarding::Dsr, quic);
}

#[test]
fn when_clients_move_and_ids_are_readable_then_downloads_go_on() {
    downloads_survive(Forwarding::Dsr, "{ format = \"nlb\" }");
}

#[test]
fn when_connection_ids_name_nobody_then_a_client_that_moves_loses_its_download() {
    let scene = Scene::start(Forwarding::Nat, None);
    let lost = scene.download(1).unwrap_err();
    assert!(format!("{lost:#}").contains("Timeout"), "{lost:#}");
}
