//! Tests of a balancer that gets services which need more of the kernel program than it was loaded for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
};

use balancer_common::map_types::Forwarding;
use balancer_config::config::Protocol;
use balancer_testkit::{
    backend::Backend,
    binaries,
    site::{PATIENCE, Site, backend_port},
    topology::{Family, Shape},
};

use crate::{
    listeners::{BACKENDS, PORTS, ask, serve},
    observing::watch::{self, attached},
    quic,
    support::{homes, requests, under_load, wait},
};

const QUIC: &str = "{ format = \"draft\", key = \"hex:8f95f09245765f80256934e50c66207f\" }";
/// The clients of the first service, and another client, which uses the later services.
const CLIENTS: std::ops::RangeInclusive<u16> = 1..=20;
const OTHER: u16 = 150;

struct Scene(Site);

impl Scene {
    /// Starts a balancer whose configuration file has no services, and adds the first service.
    fn start() -> Self {
        let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, BACKENDS, |settings, _| {
            settings.on_exit = "keep";
            Ok(())
        })
        .unwrap();
        (1..=BACKENDS).for_each(|number| serve(&site, Forwarding::Nat, number));
        let text = fs::read_to_string(site.config()).unwrap();
        let (head, services) = text.split_at(text.find("[[service]]").unwrap());
        fs::write(site.config(), format!("service = []\n{head}[flow_table]\ncapacity = 4096\n")).unwrap();
        site.controller().process().stop().unwrap();
        site.detach().unwrap();
        fs::remove_file(site.files().join("state.json")).unwrap();
        site.restart_with_the_file_as_it_is().unwrap();
        let this = Self(site);
        assert_eq!(this.replaced(), 0);
        this.drop_in("web", services);
        assert_eq!(this.replaced(), 1);
        this
    }

    fn cli(&self, words: &[&str]) -> String {
        self.0.cli(words).unwrap()
    }

    fn drop_in(&self, name: &str, text: &str) {
        let path = self.0.files().join(format!("{name}.toml"));
        fs::write(&path, text).unwrap();
        self.cli(&["drop-in", "apply", name, &path.display().to_string()]);
    }

    /// A service on a port of the VIP, with the servers of the first service.
    fn service(&self, name: &str, port: u16, forwarding: &str, more: &str) -> String {
        let vip = self.0.topology().vip(Family::V4);
        let server = self.0.backend_address(Family::V4, 1);
        format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}:{port}\"\nforwarding = \"{forwarding}\"\n{more}\n\
             check = {{ type = \"none\" }}\n[[service.backend]]\nname = \"web1\"\naddress = \"{server}\"\n"
        )
    }

    fn connect(&self, port: u16) -> Result<(), ErrorKind> {
        let vip = SocketAddr::new(self.0.topology().vip(Family::V4), port);
        let client = self.0.topology().client();
        let connected = client.run_in_thread(|| TcpStream::connect_timeout(&vip, PATIENCE).map(drop)).unwrap();
        connected.map_err(|error| error.kind())
    }

    fn snat_answers(&self) {
        let topology = self.0.topology();
        assert_eq!(homes(topology, &requests(topology, Family::V4, 81, OTHER..=OTHER)), ["web1"]);
    }

    fn quic_answers(&self) {
        for family in Family::BOTH {
            for protocol in [Protocol::Tcp, Protocol::Quic] {
                let answer = ask(&self.0, family, OTHER, PORTS[1].0, protocol).unwrap();
                assert!(answer.starts_with("web"), "{family:?} {protocol:?}: {answer}");
            }
        }
    }

    fn refuses(&self) {
        assert_eq!(self.connect(82), Err(ErrorKind::ConnectionRefused));
    }

    fn denies(&self) {
        let vip = SocketAddr::new(self.0.topology().vip(Family::V4), 80);
        let from = SocketAddr::new(self.0.topology().client_address(Family::V4, OTHER), 0);
        let counted = || {
            let list: serde_json::Value = serde_json::from_str(&self.cli(&["rule", "list", "--json"])).unwrap();
            list[0]["packets"].as_u64().unwrap()
        };
        let before = counted();
        let asked = self.0.topology().client().run_in_thread(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&vip.into(), std::time::Duration::from_millis(300))
        });
        assert!(asked.unwrap().is_err() && counted() > before);
    }

    /// The number of replacements of the kernel program in the history of events.
    fn replaced(&self) -> usize {
        self.cli(&["events"]).lines().filter(|line| line.contains("the kernel program is replaced")).count()
    }
}

fn names(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}

#[test]
fn when_services_need_more_of_the_kernel_program_then_it_is_replaced_and_no_client_notices() {
    let mut scene = Scene::start();
    let client = scene.0.topology().client_address(Family::V4, OTHER).to_string();
    let entrance = scene.0.topology().client().entrance();
    let all = requests(scene.0.topology(), Family::V4, 80, CLIENTS);
    let load = under_load(&entrance, &all, || {
        scene.drop_in("snat", &scene.service("out", 81, "snat", "remember = \"1h\""));
        scene.snat_answers();
        assert_eq!((scene.replaced(), attached(&scene.0)), (2, names("balancer")));

        let mut trace = watch::start(&scene.0, "trace", &["trace", &client, "--json"]);
        scene.drop_in("quic", &quic::shop(scene.0.topology(), Forwarding::Nat, QUIC));
        scene.quic_answers();
        scene.cli(&["rule", "add", "web", &format!("{client}/32"), "deny"]);
        scene.denies();
        let refusing = scene.service("no", 82, "nat", "reject = true");
        scene.drop_in("no", refusing.split("[[service.backend]]").next().unwrap());
        scene.refuses();
        assert_eq!((scene.replaced(), attached(&scene.0)), (5, names("tell_and_steer")));
        scene.snat_answers();
        for port in [u64::from(PORTS[1].0), 80, 81] {
            let to = |packet: &serde_json::Value| packet["packet"]["destination_port"] == port;
            wait(&format!("no packet to port {port} is traced"), || trace.packets().iter().any(to));
        }
        trace.interrupt();
        assert_eq!(attached(&scene.0), names("balancer"));

        scene.drop_in("more", &scene.service("more", 83, "snat", "reject = true"));
        assert_eq!(scene.replaced(), 5, "the program has all that the service needs");
        scene.0.restart_with_the_file_as_it_is().unwrap();
        scene.snat_answers();
        scene.quic_answers();
        scene.denies();
        scene.refuses();
    });
    load.assert_answered(CLIENTS.count());
}

/// The address of a backend to which no route leads until the balancer's machine has it.
const OWN: &str = "10.99.0.1";

#[test]
fn when_the_address_of_a_backend_comes_to_this_machine_then_the_program_gets_the_code_for_it() {
    let own = SocketAddr::new(OWN.parse().unwrap(), backend_port(Forwarding::Nat));
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.remember = "10m";
        settings.service_lines = format!("[[service.backend]]\nname = \"own\"\naddress = \"{own}\"\n");
        Ok(())
    })
    .unwrap();
    let scene = Scene(site);
    let entrance = scene.0.topology().client().entrance();
    let all = requests(scene.0.topology(), Family::V4, 80, CLIENTS);
    homes(scene.0.topology(), &all);
    let balancer = scene.0.topology().balancer();
    let load = under_load(&entrance, &all, || {
        assert_eq!(scene.replaced(), 0);
        let added = balancer.command("ip").args(["address", "add", OWN, "dev", "lo"]).status().unwrap();
        assert!(added.success());
        let program = binaries::balancer().unwrap();
        let _server = Backend::start(&program, balancer, "own", &[own], scene.0.files()).unwrap();
        let up = || {
            let services = scene.0.status().unwrap().services;
            services.iter().flat_map(|service| &service.backends).any(|of| of.name == "own" && of.state == "up")
        };
        wait("the server on this machine does not count", up);
        let newcomers = requests(scene.0.topology(), Family::V4, 80, 101..=130);
        assert!(homes(scene.0.topology(), &newcomers).contains(&"own".to_owned()));
        assert_eq!(scene.replaced(), 1);
    });
    load.assert_answered(CLIENTS.count());
}
