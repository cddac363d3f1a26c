//! Tests of QUIC connections of quinn, whose clients change their addresses during a download.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_api::quic::QuicServerConfig;
use balancer_common::{map_types::Forwarding, quic::QuicFormat};
use balancer_model::config::Protocol;
use balancer_testkit::{
    site::Site,
    topology::{Family, Shape},
};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    rustls::{RootCertStore, pki_types::PrivatePkcs8KeyDer},
};
use rcgen::{Certificate, CertificateParams, KeyPair};
use tokio::runtime::Runtime;

use crate::{
    listeners::{BACKENDS, PORTS, ask},
    quic::{maker, shop},
};

const FAMILY: Family = Family::V4;
const NAME: &str = "shop.example";
const REBINDS: u16 = 20;
/// The number of bytes between two changes of address.
const PART: usize = 256 << 10;
const DOWNLOAD: usize = (REBINDS as usize + 2) * PART;
/// A connection without an answer ends after this time.
const IDLE: Duration = Duration::from_secs(2);

/// Makes connection IDs like the server of a backend.
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
    // Veth pairs with XDP accept no frames that need segmentation later.
    transport.enable_segmentation_offload(false);
    transport.max_idle_timeout(Some(IdleTimeout::try_from(IDLE).unwrap()));
    // The server should still be sending when the address changes.
    transport.stream_receive_window(VarInt::from_u32(PART as u32 / 2));
    Arc::new(transport)
}

struct Scene {
    site: Site,
    runtime: Runtime,
    certificate: Certificate,
}

impl Scene {
    /// A shop whose servers use QUIC and TCP, each with its own name.
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
        let mut server = ServerConfig::with_single_cert(vec![self.certificate.der().clone()], key.into()).unwrap();
        server.transport_config(transport());
        let _in_runtime = self.runtime.enter();
        let endpoint = Endpoint::new(endpoint, Some(server), datagrams, Arc::new(TokioRuntime)).unwrap();
        self.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let name = name.clone();
                tokio::spawn(async move { send(incoming, &name).await });
            }
        });
    }

    fn socket(&self, client: u16) -> UdpSocket {
        let from = SocketAddr::new(self.site.topology().client_address(FAMILY, client), 0);
        self.site.topology().client().run_in_thread(|| UdpSocket::bind(from).unwrap()).unwrap()
    }

    /// Downloads from one server, with consecutive addresses from `first` on. Returns the server, or the error.
    fn download(&self, first: u16) -> Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(transport());
        let vip = SocketAddr::new(self.site.topology().vip(FAMILY), PORTS[1].0);
        let sockets = (0..=REBINDS).map(|number| self.socket(first + number));
        let mut sockets: Vec<UdpSocket> = sockets.collect();
        self.runtime.block_on(async {
            let socket = sockets.remove(0);
            let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
            let connection = endpoint.connect_with(config, vip, NAME)?.await.context("connecting")?;
            let (mut ask, mut answer) = connection.open_bi().await?;
            ask.write_all(b"all").await?;
            ask.finish()?;
            let mut name = [0; 4];
            answer.read_exact(&mut name).await?;
            let (mut read, mut sockets) = (0, sockets.into_iter());
            while let Some(chunk) = answer.read_chunk(usize::MAX, true).await.context("reading on")? {
                let before = read / PART;
                read += chunk.bytes.len();
                if read / PART > before
                    && let Some(socket) = sockets.next()
                {
                    endpoint.rebind(socket)?;
                }
            }
            ensure!(read == DOWNLOAD && sockets.next().is_none(), "{read} bytes of {DOWNLOAD}");
            Ok(String::from_utf8_lossy(&name).into_owned())
        })
    }
}

async fn send(incoming: quinn::Incoming, name: &str) -> Result<()> {
    let connection = incoming.await?;
    let (mut answer, mut asked) = connection.accept_bi().await?;
    asked.read_to_end(16).await?;
    answer.write_all(name.as_bytes()).await?;
    answer.write_all(&vec![7; DOWNLOAD]).await?;
    answer.finish()?;
    answer.stopped().await?;
    Ok(())
}

/// Three downloads, each with twenty changes of address, and a TCP connection from each last address.
fn downloads_survive(forwarding: Forwarding, quic: &str) {
    let scene = Scene::start(forwarding, Some(quic));
    for first in [1, 31, 61] {
        let server = scene.download(first).unwrap();
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
    assert!(format!("{lost:#}").contains("timed out"), "{lost:#}");
}
