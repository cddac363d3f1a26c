//! Tests that a listener becomes no service if another program would send some of its requests elsewhere, and that what
//! is imported treats clients as the other program did.

use balancer_import::{Conversion, Dialect};

use crate::support::{assert_has, checked, try_convert};

fn nginx(servers: &str) -> Conversion {
    let upstreams = "upstream web { server 10.0.0.1:80; }\nupstream api { server 10.0.0.2:80; }\n";
    try_convert(Dialect::Nginx, "file", &format!("http {{\n{upstreams}{servers}\n}}\n"), &["198.51.100.10"]).unwrap()
}

/// A `server` block of nginx with one listener that passes all requests to an upstream.
fn server(listen: &str, name: &str, upstream: &str) -> String {
    format!("server {{ listen {listen}; server_name {name}; location / {{ proxy_pass http://{upstream}; }} }}\n")
}

fn haproxy(text: &str) -> Conversion {
    try_convert(Dialect::Haproxy, "file", text, &[]).unwrap()
}

/// The listeners of each service of a result, and the address of its first backend.
fn services(conversion: &Conversion) -> Vec<String> {
    let text = checked(conversion);
    let value = |service: &str, key: &str| {
        let line = service.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(" = "));
        line.unwrap().to_owned()
    };
    let of = |service: &str| format!("{} to {}", value(service, "listen"), value(service, "address"));
    text.split("\n[[service]]\n").skip(1).map(of).collect()
}

const VIP: &str = "198.51.100.10:80";

#[test]
fn when_one_server_of_a_listener_of_nginx_cannot_be_converted_then_the_listener_becomes_no_service() {
    let web = server(VIP, "www.example.com", "web");
    let in_the_way = [
        // Requests go to several upstreams, to another one, to none, or to one that is reached over TLS.
        format!(
            "server {{ listen {VIP}; location / {{ proxy_pass http://web; }} location /api {{ proxy_pass http://api; }} }}"
        ),
        format!(
            "server {{ listen {VIP}; location / {{ proxy_pass http://web; location /api {{ proxy_pass http://api; }} }} }}"
        ),
        format!(
            "server {{ listen {VIP}; location / {{ if ($a) {{ proxy_pass http://api; }} proxy_pass http://web; }} }}"
        ),
        server(VIP, "api.example.com", "api"),
        server(VIP, "api.example.com", "$api"),
        server(VIP, "api.example.com", "unix:/run/api.sock"),
        format!("server {{ listen {VIP}; return 301 https://www.example.com; }}"),
        format!("server {{ listen {VIP}; location / {{ proxy_pass https://web; }} }}"),
        // The options of one `listen` hold for the whole listener.
        server(&format!("{VIP} ssl"), "other.example.com", "web"),
        server(&format!("{VIP} proxy_protocol"), "other.example.com", "web"),
    ];
    for other in in_the_way {
        for servers in [format!("{web}{other}"), format!("{other}{web}")] {
            let conversion = nginx(&servers);
            assert_eq!(services(&conversion), [""; 0], "{servers}\n{}", conversion.toml());
            assert!(conversion.need_you() > 0, "{}", conversion.toml());
            assert_has(&conversion.toml(), &["has this address as well and "]);
        }
    }
}

#[test]
fn when_nginx_listens_on_port_80_without_saying_so_then_it_shares_that_listener() {
    let silent = "server { server_name api.example.com; return 404; }\n";
    let conversion = nginx(&format!("{}{silent}", server("80", "www.example.com", "web")));
    assert_eq!(services(&conversion), [""; 0], "{}", conversion.toml());
}

#[test]
fn when_all_servers_of_a_listener_of_nginx_pass_to_the_same_servers_then_the_listener_becomes_one_service() {
    let both = server(VIP, "www.example.com", "web") + &server(VIP, "shop.example.com", "web");
    let conversion = nginx(&format!("{both}{}", server("198.51.100.11:80", "api.example.com", "api")));
    let expected = [r#"["198.51.100.10:80"] to "10.0.0.1:80""#, r#"["198.51.100.11:80"] to "10.0.0.2:80""#];
    assert_eq!(services(&conversion), expected, "{}", conversion.toml());
    assert_eq!(conversion.need_you(), 0, "{}", conversion.toml());
}

#[test]
fn when_a_listener_of_nginx_names_an_address_then_a_listener_on_every_address_does_not_get_it() {
    let every = server("80", "_", "web");
    for own in ["api", "$api"] {
        let conversion = nginx(&format!("{every}{}", server(VIP, "api.example.com", own)));
        let expected = [format!("[{VIP:?}] to \"10.0.0.2:80\"")];
        let expected = if own == "api" { &expected[..] } else { &[] };
        assert_eq!(services(&conversion), expected, "{}", conversion.toml());
    }
}

#[test]
fn when_a_frontend_of_haproxy_chooses_between_backends_then_it_becomes_no_service() {
    let backends = "backend web\n server a 10.0.0.1:80\nbackend api\n server b 10.0.0.2:80\n";
    let frontend = |lines: &str| haproxy(&format!("frontend in\n bind {VIP}\n {lines}\n{backends}"));
    for lines in [
        "use_backend api if { path_beg /api }\n default_backend web",
        "use_backend api if { path_beg /api }\n use_backend web",
        "use_backend nowhere if { path_beg /api }\n default_backend web",
        "use_backend api if { path_beg /api }",
        "use_backend %[req.hdr(host)]\n default_backend web",
    ] {
        let conversion = frontend(lines);
        assert_eq!(services(&conversion), [""; 0], "{lines}\n{}", conversion.toml());
        assert_has(&conversion.toml(), &["# NEEDS YOU (line 3): use_backend ", "): frontend in: it "]);
        assert!(conversion.need_you() > 0, "{}", conversion.toml());
    }
    for (lines, backend) in [
        ("default_backend web", "10.0.0.1:80"),
        ("use_backend web if { path_beg /shop }\n default_backend web", "10.0.0.1:80"),
        ("use_backend api\n default_backend web", "10.0.0.2:80"),
    ] {
        let conversion = frontend(lines);
        assert_eq!(services(&conversion), [format!("[{VIP:?}] to {backend:?}")], "{lines}\n{}", conversion.toml());
    }
    let listen = format!("listen web\n bind {VIP}\n use_backend api if {{ path_beg /api }}\n server a 10.0.0.1:80\n");
    let conversion = haproxy(&format!("{listen}backend api\n server b 10.0.0.2:80\n"));
    assert_eq!(services(&conversion), [""; 0], "{}", conversion.toml());
}

const MOVES: &str = "\non_failure = { soft = \"move\" }";

#[test]
fn when_haproxy_checks_by_http_then_clients_leave_a_server_that_answers_wrongly() {
    let with = |lines: &str, server: &str| {
        checked(&haproxy(&format!("listen web\n bind {VIP}\n {lines}\n server a 10.0.0.1:80 {server}\n")))
    };
    assert_has(&with("option httpchk GET /master", "check"), &[MOVES, "\n  type = \"http\"\n"]);
    assert_has(&with("option httpchk GET /master", "check ssl verify none"), &[MOVES, "\n  type = \"https\"\n"]);
    for text in [with("option httpchk GET /master", ""), with("option tcplog", "check")] {
        assert!(!text.contains("on_failure"), "{text}");
    }
    let template = format!("listen web\n bind {VIP}\n option httpchk\n server-template a 2 a.internal:80 check\n");
    assert_has(&checked(&haproxy(&template)), &[MOVES]);
}

#[test]
fn when_keepalived_removes_a_server_that_answers_wrongly_then_its_clients_leave_it() {
    let with = |outer: &str, first: &str, second: &str| {
        let text = format!(
            "virtual_server 198.51.100.10 80 {{\n lb_kind DR\n {outer}\n real_server 10.0.0.1 80 {{\n {first}\n }}\n \
             real_server 10.0.0.2 80 {{\n {second}\n }}\n}}\n"
        );
        checked(&try_convert(Dialect::Keepalived, "file", &text, &[]).unwrap())
    };
    let (http, tcp) = ("HTTP_GET {\n url {\n path /\n }\n }", "TCP_CHECK {\n }");
    let script = "MISC_CHECK {\n misc_path /bin/true\n }";
    let inhibited = format!("inhibit_on_failure\n {http}");
    for text in [with("", http, http), with("", tcp, script), with("", http, &inhibited)] {
        assert_has(&text, &[MOVES]);
    }
    let kept = [with("", &inhibited, &inhibited), with("inhibit_on_failure", http, http)];
    for text in kept.into_iter().chain([with("", tcp, tcp)]) {
        assert!(!text.contains("on_failure = { soft"), "{text}");
    }
}

#[test]
fn when_another_proxy_tells_the_addresses_of_clients_then_the_reader_is_needed() {
    let web = server(VIP, "_", "web");
    for line in ["set_real_ip_from 192.0.2.0/24;", "real_ip_header X-Forwarded-For;"] {
        for text in [format!("{line}\n{web}"), web.replace("location", &format!("{line} location"))] {
            let conversion = nginx(&text);
            assert_eq!(conversion.need_you(), nginx(&web).need_you() + 1, "{}", conversion.toml());
            assert_has(&checked(&conversion), &["all clients of that proxy would be one client"]);
        }
    }
    let proxied = nginx(&server(&format!("{VIP} proxy_protocol"), "_", "web"));
    let bind = |option: &str, line: &str| {
        haproxy(&format!("listen web\n bind {VIP} {option}\n {line}\n server a 10.0.0.1:80\n"))
    };
    let lines = [
        bind("accept-proxy", "mode tcp"),
        bind("accept-netscaler-cip", "mode tcp"),
        bind("", "tcp-request connection expect-proxy layer4 if { src 192.0.2.1 }"),
        bind("", "http-request set-src hdr(x-forwarded-for)"),
    ];
    for conversion in lines.into_iter().chain([proxied]) {
        assert!(conversion.need_you() > 0, "{}", conversion.toml());
        assert_has(&conversion.toml(), &["all clients of that proxy would be one client"]);
    }
}
