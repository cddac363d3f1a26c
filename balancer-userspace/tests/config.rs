//! Tests that the parser returns what a configuration file says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, time::Duration};

use balancer_common::{client::HashKey, map_types::Forwarding};
use balancer_config::{
    config::{
        AgentConfig, AssignVip, BackendConfig, BodyTest, BoundedLoad, CheckConfig, CheckKind, ClientFiles,
        ClientPrefix, Config, Control, DnsCheck, DnsName, ExecCheck, Failback, FailureAction, Fleet, GrpcCheck, Header,
        HeaderText, HttpCheck, Limits, Load, OnExit, OnFailure, Outage, Payload, Protocol, Rcode, Record, Remote, Role,
        Secret, ServiceConfig, StatisticsConfig, StatusRanges, Tls, UdpCheck, Via, WhenAllDown, WhenAlone, WhenFull,
        XdpMode,
    },
    etcd::EtcdServers,
    file,
    listeners::{Family, Listener},
    shared::shared,
    snat::SnatConfig,
    table_size::TableSize,
    validate::Valid,
};
use proptest::prelude::*;

fn good(name: &str) -> Config {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good_configs").join(name);
    let (config, warnings) = file::load(&file).unwrap();
    assert_eq!(warnings, []);
    config
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(text: &str) -> Listener {
    text.parse().unwrap()
}

#[test]
fn when_control_says_who_may_do_what_then_the_configuration_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.toml");
    let minimal =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good_configs/minimal.toml")).unwrap();
    let control = |lines: &str| {
        fs::write(&file, format!("[control]\n{lines}\n{minimal}")).unwrap();
        file::load(&file).unwrap().0.control
    };
    let listen = "group = \"a\"\nreaders = \"1001\"\naudit = \"/audit.log\"\nlisten = \"[::]:9661\"\ncert = \"/cert\"\n\
                  key = \"/key\"\nclient_ca = \"/ca\"\n";
    let expected = Control {
        socket: "/run/balancer/balancer.sock".into(),
        group: Some("a".to_owned()),
        readers: Some("1001".to_owned()),
        remote: Some(Remote {
            listen: address("[::]:9661"),
            cert: "/cert".into(),
            key: "/key".into(),
            client_ca: "/ca".into(),
            roles: [("b.example", Role::All), ("c d", Role::Read)].map(|(name, role)| (name.to_owned(), role)).into(),
        }),
        audit: Some("/audit.log".into()),
    };
    let roles = "\"b.example\" = \"all\"";
    assert_eq!(control(&format!("{listen}roles = {{ {roles}, \"c d\" = \"read\" }}")), expected);
    assert_eq!(control(&format!("{listen}[control.roles]\n{roles}\n\"c d\" = \"read\"")), expected);
    // If the listener is off, the configuration may still contain the other keys.
    let off = listen.replace("[::]:9661", "off");
    assert_eq!(control(&off), Control { remote: None, ..expected });
}

#[test]
fn when_a_key_is_absent_then_the_default_applies() {
    let tcp = CheckConfig {
        kind: CheckKind::Tcp { port: None, talk: None },
        via: Via::Backend,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        fast_interval: Duration::from_millis(500),
        passive: true,
        fall: 3,
        rise: 2,
    };
    let expected = Config {
        interfaces: vec![],
        xdp_mode: XdpMode::Auto,
        on_exit: OnExit::Detach,
        state_file: "/var/lib/balancer/state.json".into(),
        control: Control::at("/run/balancer/balancer.sock".into()),
        metrics_listen: Some(address("127.0.0.1:9660")),
        metrics_page: true,
        client_table_capacity: 262_144,
        flow_table_capacity: 262_144,
        flow_table_wanted: false,
        hash_key: None,
        statistics: StatisticsConfig::default(),
        fleet: None,
        services: Valid::new(shared(vec![ServiceConfig {
            drop_in: None,
            name: "web".to_owned(),
            renamed_from: None,
            listen: vec![listener("198.51.100.10:80/tcp")],
            ports: BTreeMap::new(),
            forwarding: Forwarding::Nat,
            table_size: TableSize::Fixed(65_537),
            client_prefix: ClientPrefix { v4: 32, v6: 64 },
            remember: Duration::from_secs(3 * 3600),
            failback: Failback::Stay,
            when_all_down: WhenAllDown::Open,
            when_full: WhenFull::Open,
            slow_start: Duration::ZERO,
            drain_timeout: Duration::from_secs(300),
            drain_until: None,
            drain_grace: None,
            snat: SnatConfig::default(),
            on_failure: OnFailure { hard: FailureAction::Move, soft: FailureAction::Drain },
            withhold: Duration::from_secs(1),
            restart_grace: None,
            outage: Outage::default(),
            start_down: false,
            reject: false,
            steer: 100,
            assign_vip: AssignVip::No,
            deny: None,
            discover: vec![],
            agent: None,
            bounded_load: None,
            quic: None,
            spread_heavy: None,
            expect: None,
            check: tcp,
            backends: vec![BackendConfig {
                name: "web1".to_owned(),
                renamed_from: None,
                address: address("10.0.0.11:8080"),
                address6: None,
                weight: 100,
                backup: false,
                limits: Limits::default(),
                check: None,
                quic_server_id: None,
                discovered: None,
            }],
            rules: vec![],
        }]))
        .unwrap(),
    };
    assert_eq!(good("minimal.toml"), expected);
}

#[test]
fn when_a_backend_has_its_own_check_then_it_inherits_the_services_missing_keys() {
    let config = good("checks.toml");
    let [web, implied, through] = &*config.services else { panic!("{:?}", config.services) };
    assert_eq!(web.slow_start, Duration::from_secs(30));
    let secure = HttpCheck {
        port: Some(8443),
        tls: Some(Tls { verify: true, ca_file: None, sni: None, client: None }),
        http2: false,
        method: "GET".to_owned(),
        path: "/healthz".to_owned(),
        host: Some("www.example.com:8443".to_owned()),
        headers: Vec::new(),
        expect_status: StatusRanges(vec![(200, 399)]),
        expect_body: Some(BodyTest::Matches(regex::bytes::Regex::new("^ok").unwrap())),
    };
    let check = CheckConfig {
        kind: CheckKind::Http(secure.clone()),
        via: Via::Backend,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        fast_interval: Duration::from_millis(200),
        passive: true,
        fall: 2,
        rise: 2,
    };
    assert_eq!(web.check, check);
    let own: Vec<Option<&CheckConfig>> = web.backends.iter().map(|backend| backend.check.as_deref()).collect();
    assert_eq!(own[0], None);
    let body = Some(BodyTest::Contains("fine".to_owned()));
    let keys = HttpCheck { path: "/".to_owned(), expect_body: body, ..secure.clone() };
    assert_eq!(own[1], Some(&CheckConfig { kind: CheckKind::Http(keys), fall: 4, ..check.clone() }));
    let plain = HttpCheck { tls: None, port: Some(8080), ..secure };
    assert_eq!(own[2], Some(&CheckConfig { kind: CheckKind::Http(plain), ..check.clone() }));
    let program = ExecCheck {
        port: None,
        command: vec!["/usr/lib/check".to_owned(), "--fast".to_owned()],
        user: "daemon".to_owned(),
    };
    assert_eq!(own[3], Some(&CheckConfig { kind: CheckKind::Exec(program), ..check }));
    assert_eq!(own[4].map(|check| &check.kind), Some(&CheckKind::None));

    let quick = implied.backends[0].check.as_ref().unwrap();
    assert_eq!(quick.kind, CheckKind::Tcp { port: None, talk: None });
    let times = [quick.interval, quick.timeout, quick.fast_interval].map(|time| time.as_millis());
    assert_eq!(times, [300, 300, 100]);

    let ways = through.backends.iter().map(|backend| backend.check.as_deref().map(|check| check.via));
    assert_eq!(ways.collect::<Vec<_>>(), [None, Some(Via::Service), Some(Via::Backend), Some(Via::Backend)]);
    let targets = through.backends.iter().map(|backend| {
        let check = backend.check.as_deref().unwrap_or(&through.check);
        through.check_target(backend, check, Family::V4).unwrap().to_string()
    });
    let expected = ["198.51.100.12:80", "198.51.100.12:80", "10.0.0.13:80", "10.0.0.14:80"];
    assert_eq!(targets.collect::<Vec<_>>(), expected);
}

#[test]
fn when_a_check_has_roots_a_server_name_and_headers_then_backends_take_them_over() {
    let config = good("https-checks.toml");
    let [api] = &*config.services else { panic!("{:?}", config.services) };
    let http = |backend: &BackendConfig| match backend.check.as_deref().map(|check| &check.kind) {
        Some(CheckKind::Http(http)) => http.clone(),
        other => panic!("{other:?}"),
    };
    let own: Vec<HttpCheck> = api.backends.iter().map(http).collect();
    let [same, own_keys, any_certificate, plain, no_headers] = &*own else { panic!("{own:?}") };
    let tls = Tls {
        verify: true,
        ca_file: Some("/etc/balancer/ca.pem".into()),
        sni: Some("internal.example.com".into()),
        client: None,
    };
    let header = |name: &str, value| Header { name: name.to_owned(), value };
    let text = |text: &str| HeaderText::Text(Secret(text.to_owned()));
    let headers =
        [header("authorization", HeaderText::File("/etc/balancer/token".into())), header("x-probe", text("balancer"))];
    assert_eq!((same.tls.as_ref(), &*same.headers), (Some(&tls), &headers[..]));
    assert_eq!(CheckKind::Http(same.clone()), api.check.kind);
    assert_eq!(own_keys.tls, Some(Tls { sni: Some("10.0.0.12".to_owned()), ..tls.clone() }));
    assert_eq!(own_keys.headers, [header("accept", text("text/plain"))]);
    assert_eq!(any_certificate.tls, Some(Tls { verify: false, ca_file: None, ..tls.clone() }));
    assert_eq!((plain.tls.as_ref(), &*plain.headers), (None, &headers[..]));
    assert_eq!((no_headers.tls.as_ref(), &*no_headers.headers), (Some(&tls), &[][..]));
}

#[test]
fn when_a_check_speaks_http2_or_grpc_then_backends_take_its_keys_over() {
    let config = good("http2-checks.toml");
    let [api, cart] = &*config.services else { panic!("{:?}", config.services) };
    let kind = |backend: &BackendConfig| backend.check.as_deref().map(|check| check.kind.clone()).unwrap();
    let files = |cert: &str, key: Option<&str>| ClientFiles { cert: cert.into(), key: key.map(Into::into) };
    let service_files = files("/etc/balancer/client.pem", Some("/etc/balancer/client.key"));
    let tls = |client: ClientFiles| Some(Tls { verify: false, ca_file: None, sni: None, client: Some(client) });
    let http = |backend: &BackendConfig| {
        let CheckKind::Http(http) = kind(backend) else { panic!("{:?}", kind(backend)) };
        (http.http2, http.tls)
    };
    let own: Vec<_> = api.backends.iter().take(3).map(http).collect();
    let expected =
        [(true, tls(service_files.clone())), (false, tls(files("/etc/balancer/other.pem", None))), (true, None)];
    assert_eq!(own, expected);
    let shown = |check: &CheckKind| check.to_string();
    assert_eq!(shown(&api.check.kind), "https GET /healthz HTTP/2");
    assert_eq!(shown(&kind(&api.backends[1])), "https GET /healthz");

    let own: Vec<_> = cart.backends.iter().map(kind).collect();
    let headers = vec![Header { name: "x-probe".to_owned(), value: HeaderText::Text(Secret("balancer".to_owned())) }];
    let grpc = GrpcCheck {
        port: Some(9090),
        tls: tls(service_files),
        service: "shop.Cart".to_owned(),
        host: Some("cart.example.com".to_owned()),
        headers,
    };
    let of_server = GrpcCheck { tls: None, service: String::new(), ..grpc.clone() };
    assert_eq!(own[0], CheckKind::Grpc(grpc.clone()));
    assert_eq!(own[1], CheckKind::Grpc(of_server));
    let plain = GrpcCheck { port: None, tls: None, service: String::new(), host: None, headers: Vec::new() };
    assert_eq!(kind(&api.backends[3]), CheckKind::Grpc(plain), "another type inherits times alone");
    assert_eq!(own.iter().map(shown).collect::<Vec<_>>(), ["grpcs shop.Cart", "grpc"]);
    let files: Vec<_> = own[0].files().map(|(purpose, file)| format!("{purpose} {}", file.display())).collect();
    assert_eq!(files, ["the client_cert /etc/balancer/client.pem", "the client_key /etc/balancer/client.key"]);
    let target = cart.check_target(&cart.backends[1], cart.backends[1].check.as_deref().unwrap(), Family::V6);
    assert_eq!(target.map(|target| target.to_string()).as_deref(), Some("[2001:db8::12]:9090"));
}

/// The state file is from a version that supported neither HTTP/2 nor client certificates in checks.
#[test]
fn when_a_check_was_saved_without_the_newer_keys_then_it_means_the_same_as_before() {
    let saved = r#"{"type":"http","port":null,"tls":{"verify":true,"sni":"a.example"},"method":"GET","path":"/",
        "host":null,"expect_status":[[200,399]],"expect_body":null}"#;
    let kind: CheckKind = serde_json::from_str(saved).unwrap();
    let CheckKind::Http(http) = &kind else { panic!("{kind:?}") };
    assert!(!http.http2 && http.tls.as_ref().is_some_and(|tls| tls.client.is_none()));
    let again = serde_json::to_string(&kind).unwrap();
    assert!(!again.contains("http2") && !again.contains("client"), "{again}");
    let config = good("http2-checks.toml");
    for service in config.services.iter() {
        for check in service.checks() {
            let text = serde_json::to_string(&check.kind).unwrap();
            assert_eq!(serde_json::from_str::<CheckKind>(&text).unwrap(), check.kind, "{text}");
        }
    }
}

#[test]
fn when_a_check_over_tcp_reads_an_answer_then_its_keys_are_read_and_backends_take_them_over() {
    let config = good("tcp-checks.toml");
    let [service] = &*config.services else { panic!("{:?}", config.services) };
    let kind = |name: &str| {
        let backend = service.backends.iter().find(|backend| backend.name == name).unwrap();
        &backend.check.as_deref().unwrap_or(&service.check).kind
    };
    let talk = |name: &str| {
        let CheckKind::Tcp { talk, .. } = kind(name) else { panic!("{:?}", kind(name)) };
        talk.clone().map(|talk| (talk.send.to_string(), talk.expect))
    };
    let contains = |text: &str| Some(BodyTest::Contains(text.to_owned()));
    assert_eq!(talk("same"), Some(("PING\r\n".to_owned(), contains("+PONG"))));
    let Some((send, Some(BodyTest::Matches(role)))) = talk("primary") else { panic!("no expression") };
    assert_eq!((send.as_str(), role.as_str()), ("INFO replication\r\n", "role:master"));
    let Some((send, Some(BodyTest::Matches(bytes)))) = talk("greets") else { panic!("no bytes") };
    assert!(send.is_empty() && bytes.is_match(&[1, 0xff, 0]), "{bytes:?}");
    assert!(matches!(kind("page"), CheckKind::Http(_)));
}

#[test]
fn when_a_check_goes_over_udp_then_its_keys_are_read_and_the_port_is_udps() {
    let config = good("datagram-checks.toml");
    let [dns, game] = &*config.services else { panic!("{:?}", config.services) };
    let query = DnsCheck {
        port: None,
        name: "www.example.com".parse().unwrap(),
        record: Record::Aaaa,
        expect_rcode: vec![Rcode::NxDomain],
    };
    assert_eq!(dns.check.kind, CheckKind::Dns(query.clone()));
    let own: Vec<Option<&CheckConfig>> = dns.backends.iter().map(|backend| backend.check.as_deref()).collect();
    let changed = DnsCheck { port: Some(54), expect_rcode: vec![Rcode::NoError, Rcode::Refused], ..query };
    assert_eq!(own[1], Some(&CheckConfig { kind: CheckKind::Dns(changed), fall: 5, ..dns.check.clone() }));
    let targets = |service: &ServiceConfig, family| {
        let target = |backend: &BackendConfig| {
            let check = backend.check.as_deref().unwrap_or(&service.check);
            service.check_target(backend, check, family).unwrap().to_string()
        };
        service.backends.iter().map(target).collect::<Vec<_>>()
    };
    assert_eq!(targets(dns, Family::V4), ["10.0.0.11:5353", "10.0.0.12:54", "10.0.0.13:853"]);

    assert_eq!(game.check.kind, CheckKind::None);
    let own: Vec<_> = game.backends.iter().map(|backend| backend.check.as_ref().map(|check| &check.kind)).collect();
    let (send, expect) = (Payload(b"\xff\xff\xff\xffT".to_vec()), Some(Payload(b"Engine".to_vec())));
    assert_eq!(own[1], Some(&CheckKind::Udp(UdpCheck { port: None, send, expect })));
    let root = DnsCheck { port: None, name: DnsName::root(), record: Record::Soa, expect_rcode: vec![Rcode::NoError] };
    assert_eq!(own[2], Some(&CheckKind::Dns(root)));
    assert_eq!(own[2].map(ToString::to_string).as_deref(), Some("dns . SOA"));
    assert_eq!(targets(game, Family::V6)[1..], ["[2001:db8::12]:27015", "[2001:db8::13]:27015"]);
}

#[test]
fn when_every_key_is_set_then_all_are_read() {
    let config = good("everything.toml");
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.xdp_mode, XdpMode::Native);
    assert_eq!(config.hash_key, Some(HashKey::from_bytes(std::array::from_fn(|index| 16 + index as u8))));
    let [web, dns] = &*config.services else { panic!("{:?}", config.services) };

    assert_eq!(web.client_prefix, ClientPrefix { v4: 24, v6: 56 });
    assert_eq!((web.failback, web.when_all_down, web.start_down), (Failback::Return, WhenAllDown::Drop, true));
    assert!(web.reject);
    let rules: Vec<String> = web.rules.iter().map(|rule| format!("{} {rule}", rule.prefix)).collect();
    assert_eq!(rules, ["192.0.2.7/32 spread", "198.18.0.0/15 deny", "203.0.113.0/24 pin web1 for 5m"]);
    assert!(dns.rules.is_empty());
    assert_eq!(web.outage, Outage { share: 0.75, hold: Duration::from_secs(20) });
    assert_eq!(web.restart_grace, Some(Duration::from_secs(3)));
    assert_eq!(web.agent, Some(AgentConfig { port: 9777, interval: Duration::from_secs(10) }));
    assert_eq!(dns.agent, None);
    assert_eq!(dns.bounded_load, Some(BoundedLoad { factor: 1.5, by: Load::Connections }));
    assert_eq!(web.bounded_load, None);
    assert_eq!((web.spread_heavy, dns.spread_heavy), (Some(0.2), Some(0.25)));
    assert_eq!((web.expect, dns.expect), (Some(1), None));
    assert_eq!((dns.when_full, web.when_full), (WhenFull::Reject, WhenFull::Open));
    assert_eq!(dns.backends[0].limits, Limits { clients: Some(1000), connections: None });
    assert_eq!(web.drain_timeout, Duration::from_secs(600));
    assert_eq!(web.on_failure, OnFailure { hard: FailureAction::Drain, soft: FailureAction::Move });
    let http = HttpCheck {
        port: Some(8081),
        tls: None,
        http2: false,
        method: "POST".to_owned(),
        path: "/healthz?deep=1".to_owned(),
        host: Some("www.example.com".to_owned()),
        headers: Vec::new(),
        expect_status: StatusRanges(vec![(200, 200), (204, 204), (301, 302)]),
        expect_body: Some(BodyTest::Contains("ok".to_owned())),
    };
    let check = CheckConfig {
        kind: CheckKind::Http(http),
        via: Via::Backend,
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(250),
        fast_interval: Duration::from_millis(125),
        passive: true,
        fall: 5,
        rise: 1,
    };
    assert_eq!(web.check, check);
    let [web1, web2] = web.backends.as_slice() else { panic!("{:?}", web.backends) };
    assert_eq!((web1.weight, web1.backup, &web1.check), (0, false, &None));
    // If a backend's address has no port, the backend uses the port of the listener.
    assert_eq!(web.backend_address(web2, Family::V4), Some(address("10.0.0.12:80")));
    assert_eq!((web2.address, web2.weight, web2.backup), (address("10.0.0.12:0"), 65_535, true));
    assert_eq!(web2.check.as_ref().map(|check| &check.kind), Some(&CheckKind::None));

    assert_eq!((dns.first().protocol, dns.forwarding), (Protocol::Udp, Forwarding::Dsr));
    assert_eq!(dns.check.kind, CheckKind::None, "nothing on UDP answers without being asked its own question");
    assert_eq!(dns.backend_address(&dns.backends[0], Family::V6), Some(address("[2001:db8::11]:53")));
}

#[test]
fn when_backends_come_from_keys_of_etcd_then_prefix_and_servers_are_read() {
    let text = r#"
        [[service]]
        name = "web"
        address = "198.51.100.10:80"
        forwarding = "nat"
        [[service.discover]]
        etcd = "/services/web"
        endpoints = ["https://192.0.2.1:2379/"]
        ca = "/ca.pem"
        min = 0
        keep = "5m"
    "#;
    let (config, warnings) = file::parse(Path::new("b.toml"), text.as_bytes()).unwrap();
    let servers = EtcdServers {
        endpoints: vec!["https://192.0.2.1:2379".to_owned()],
        ca: Some("/ca.pem".into()),
        cert: None,
        key: None,
    };
    let [list] = config.services[0].discover.as_slice() else { panic!("one list") };
    let etcd = list.source.etcd().unwrap();
    assert_eq!((etcd.prefix.as_str(), &etcd.etcd, list.min.least(0)), ("/services/web/", &servers, 0));
    let default = file::parse(Path::new("b.toml"), text.replace("keep", "# keep").as_bytes()).unwrap().0;
    let keeps = [&config, &default].map(|config| config.services[0].discover[0].keep.as_secs());
    assert_eq!(keeps, [300, 30]);
    assert_eq!(warnings, []);
    let plain = file::parse(Path::new("b.toml"), text.replace("https:", "http:").as_bytes()).unwrap().1;
    assert!(plain.iter().any(|warning| warning.to_string().contains("is not encrypted")), "{plain:?}");
}

#[test]
fn when_a_fleet_is_configured_then_all_its_keys_are_read() {
    let url = |text: &str| text.to_owned();
    let everything = Fleet {
        name: "site1".to_owned(),
        member: Some("lb1".to_owned()),
        etcd: EtcdServers {
            endpoints: ["https://192.0.2.1:2379", "https://etcd2.example.com:2379", "https://[2001:db8::3]:2379"]
                .map(url)
                .to_vec(),
            ca: Some("/etc/balancer/etcd-ca.pem".into()),
            cert: Some("/etc/balancer/etcd.pem".into()),
            key: Some("/etc/balancer/etcd.key".into()),
        },
        lease: Duration::from_secs(60),
        share_clients: false,
        when_alone: WhenAlone::Withdraw,
        linger: Duration::ZERO,
    };
    assert_eq!(good("everything.toml").fleet, Some(everything));
    let defaults = Fleet {
        name: "site1".to_owned(),
        member: None,
        etcd: EtcdServers { endpoints: vec![url("https://192.0.2.1:2379")], ca: None, cert: None, key: None },
        lease: Duration::from_secs(5),
        share_clients: true,
        when_alone: WhenAlone::Serve,
        linger: Duration::from_secs(3),
    };
    let config = good("fleet.toml");
    assert_eq!(config.fleet, Some(defaults));
    let assigned = config.services.iter().map(|service| service.assign_vip.clone()).collect::<Vec<_>>();
    assert_eq!(assigned, [AssignVip::On("lo".to_owned()), AssignVip::No]);
    assert_eq!(good("everything.toml").services[0].assign_vip, AssignVip::First);
}

#[test]
fn when_assign_vip_is_written_then_it_is_read_back() {
    for (written, assign) in
        [("false", AssignVip::No), ("true", AssignVip::First), ("\"lo\"", AssignVip::On("lo".to_owned()))]
    {
        assert_eq!(serde_json::from_str::<AssignVip>(written).unwrap(), assign);
        assert_eq!(serde_json::to_string(&assign).unwrap(), written);
        assert_eq!(assign.to_string(), written);
    }
}

#[test]
fn when_a_service_has_several_listeners_then_all_are_read() {
    let config = good("listeners.toml");
    let [shop, dns] = &*config.services else { panic!("{:?}", config.services) };
    let all = ["198.51.100.10:80/tcp", "198.51.100.10:443/tcp", "198.51.100.10:443/udp", "[2001:db8::10]:443/tcp"];
    assert_eq!(shop.listen, all.map(listener));
    assert_eq!(shop.families(), [Family::V4, Family::V6]);
    assert_eq!(shop.listen.iter().map(|&of| shop.backend_port(of)).collect::<Vec<_>>(), [8080, 8443, 8443, 8443]);
    let web1 = &shop.backends[0];
    let at = |family| shop.backend_address(web1, family).unwrap();
    assert_eq!([at(Family::V4), at(Family::V6)], [address("10.0.0.11:0"), address("[fd00::11]:0")]);
    assert_eq!(shop.shown_address(web1), "10.0.0.11");
    // Each backend has only one check, which uses the first listener that accepts connections.
    let target = |family| shop.check_target(web1, &shop.check, family).unwrap();
    assert_eq!([target(Family::V4), target(Family::V6)], [address("10.0.0.11:8080"), address("[fd00::11]:8443")]);

    assert_eq!(
        dns.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["198.51.100.10:10000-10100/udp", "198.51.100.11:0/udp"]
    );
    assert_eq!(dns.check.kind, CheckKind::None);
}

#[test]
fn when_only_the_ipv4_address_has_a_port_then_the_ipv6_address_has_the_same_one() {
    for (address, address6, expected) in [
        ("10.0.0.11:8080", "fd00::11", [8080, 8080]),
        ("10.0.0.11:8080", "[fd00::11]:9090", [8080, 9090]),
        ("10.0.0.11", "[fd00::11]:9090", [80, 9090]),
        ("10.0.0.11", "fd00::11", [80, 80]),
    ] {
        let text = format!(
            "[[service]]\nname = \"web\"\nlisten = [\"198.51.100.10:80\", \"[2001:db8::10]:80\"]\n\
             forwarding = \"nat\"\n[[service.backend]]\nname = \"web1\"\naddress = {address:?}\n\
             address6 = {address6:?}\n"
        );
        let (config, _) = file::parse(Path::new("web.toml"), text.as_bytes()).unwrap();
        let service = &config.services[0];
        let target =
            |family| service.check_target(&service.backends[0], &service.check, family).map(|target| target.port());
        assert_eq!([Family::V4, Family::V6].map(target), expected.map(Some), "{address} {address6}");
    }
}

#[test]
fn when_a_service_has_every_port_then_its_listener_has_port_0() {
    let config = good("every-port.toml");
    assert_eq!(config.metrics_listen, None);
    assert_eq!(config.services[0].listen, [listener("198.51.100.10:0/tcp")]);
    assert_eq!(config.services[0].backends[0].address, address("10.0.0.11:0"));
}

#[test]
fn when_an_interval_is_short_and_no_timeout_is_set_then_the_timeout_is_shorter() {
    let text = "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"dsr\"\n\
                check = { type = \"tcp\", interval = \"200ms\" }\n";
    let (config, _) = file::parse(Path::new("web.toml"), text.as_bytes()).unwrap();
    assert_eq!(config.services[0].check.timeout, Duration::from_millis(200));
}

#[test]
fn when_a_file_has_more_than_a_hundred_errors_then_the_rest_is_counted() {
    let text: String = (0..250).map(|key| format!("k{key} = 1\n")).collect();
    let errors = file::parse(Path::new("web.toml"), text.as_bytes()).unwrap_err();
    let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 101);
    assert!(lines[99].starts_with("web.toml:100: unknown key \"k99\""), "{}", lines[99]);
    assert_eq!(lines[100], "web.toml: and 150 more errors");
}

proptest! {
    #[test]
    fn when_a_file_is_noise_then_every_error_has_a_line_of_the_file(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let errors = file::parse(Path::new("noise.toml"), &noise).unwrap_err();
        let lines = 1 + noise.iter().filter(|&&byte| byte == b'\n').count();
        prop_assert!(!errors.findings().is_empty());
        for finding in errors.findings().iter().take(100) {
            prop_assert!(finding.line.is_some_and(|line| (1..=lines).contains(&line)), "{}", finding);
            prop_assert!(!finding.to_string().contains('\n'), "{:?}", finding);
        }
    }

    #[test]
    fn when_a_file_is_damaged_then_it_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good_configs/everything.toml");
        let mut bytes = fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Err(errors) = file::parse(&file, &bytes) {
            prop_assert!(errors.findings().iter().all(|finding| finding.line.is_some()));
        }
    }
}
