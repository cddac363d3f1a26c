//! Tests that details of other programs' configurations become settings, or notes that name their lines; and that no
//! detail costs a service.

use balancer_import::{Conversion, Dialect};

use crate::support::{assert_has, checked, try_convert};

const VIP: &str = "198.51.100.10:80";

fn converted(dialect: Dialect, text: &str) -> Conversion {
    try_convert(dialect, "file", text, &["198.51.100.10", "2001:db8::10"]).unwrap()
}

/// Converts a `listen` section of HAProxy with these lines.
fn haproxy(lines: &str) -> Conversion {
    converted(Dialect::Haproxy, &format!("listen web\n bind {VIP}\n {lines}\n"))
}

/// Whether the result has a service.
fn has_service(conversion: &Conversion) -> bool {
    conversion.summary().starts_with("1 service,")
}

#[test]
fn when_a_servers_check_has_shorter_intervals_than_the_others_then_the_service_stays() {
    let conversion = haproxy(
        "default-server inter 10s fastinter 5s\n timeout check 4s\n server a 10.0.0.1:80 check\n server b 10.0.0.2:80 check inter \
         1s fastinter 1s\n server c 10.0.0.3:80 check\n server d 10.0.0.4:80",
    );
    assert_eq!(conversion.summary(), "1 service, 4 backends; 0 directives need you", "{}", conversion.toml());
    let wanted = [
        "interval = \"10s\"\n  timeout = \"4s\"\n  fast_interval = \"5s\"\n",
        "name = \"b\"\n  address = \"10.0.0.2:80\"\n  check = { type = \"tcp\", interval = \"1s\", timeout = \"1s\", fast_interval = \"1s\"",
        "# note (line 6): b in web: its check differs from that of most servers",
        "# note (line 8): d in web: it has no check, unlike most servers",
    ];
    assert_has(&checked(&conversion), &wanted);
    // nginx and HAProxy say times for one server alone, which the others must not inherit.
    let conversion = haproxy("server a 10.0.0.1:80 check fastinter 3s inter 5s\n server b 10.0.0.2:80 check inter 1s");
    assert!(has_service(&conversion), "{}", conversion.toml());
    checked(&conversion);
}

#[test]
fn when_most_servers_are_checked_alike_then_theirs_is_the_check_of_the_service() {
    let conversion = haproxy(
        "server a 10.0.0.1:80 check port 81\n server b 10.0.0.2:80 check\n server c 10.0.0.3:80 check\n server d 10.0.0.4:80",
    );
    let text = checked(&conversion);
    assert_has(
        &text,
        &[
            "[service.check]\n  type = \"tcp\"\n\n",
            "check = { type = \"tcp\", interval = \"2s\", fall = 3, rise = 2, port = 81 }",
        ],
    );
    assert_has(&text, &["note (line 3): a in web: its check differs", "note (line 6): d in web: it has no check"]);
}

#[test]
fn when_the_balancer_refuses_a_check_then_its_line_is_named_and_the_service_stays() {
    let conversion = haproxy(
        "option httpchk\n server a 10.0.0.1:80 check\n server b 10.0.0.2:80 check crt /etc/b.pem ssl sni str(two..dots)\n server c 10.0.0.3:80 check",
    );
    assert!(has_service(&conversion), "{}", conversion.toml());
    assert_has(
        &checked(&conversion),
        &["# NEEDS YOU (line 5): the check of b in web: ", "until then, only whether the port opens"],
    );
    let conversion = haproxy("option httpchk GET relative\n server a 10.0.0.1:80 check\n server b 10.0.0.2:80 check");
    assert!(has_service(&conversion), "{}", conversion.toml());
    assert_has(
        &checked(&conversion),
        &["# NEEDS YOU (line 4): the check of a in web: ", "(line 5): the check of b in web: "],
    );
    let conversion = haproxy("stick-table type ip size 1m expire 9999d\n server a 10.0.0.1:80 check");
    assert!(has_service(&conversion), "{}", conversion.toml());
    let text = "virtual_server 198.51.100.10 80 {\n lb_kind DR\n real_server 10.0.0.1 80 {\n HTTP_GET {\n url {\n path /\n regex ((\n }\n }\n \
                }\n real_server 10.0.0.2 80 {\n TCP_CHECK {\n }\n }\n}\n";
    let conversion = converted(Dialect::Keepalived, text);
    assert!(has_service(&conversion), "{}", conversion.toml());
    assert_has(&checked(&conversion), &["# NEEDS YOU (line 3): the check of 10.0.0.1-80 in 198.51.100.10-80: "]);
}

#[test]
fn when_dpvs_rewrites_both_addresses_then_the_service_is_snat_with_its_addresses() {
    let keepalived = "local_address_group own {\n 10.0.0.5 dpdk0\n 10.0.0.8-9 dpdk0\n}\n\
                      virtual_server_group vip {\n 198.51.100.10 80\n}\n\
                      virtual_server group vip {\n lb_algo rr\n lb_kind FNAT\n laddr_group_name own\n establish_timeout 600\n \
                      real_server 10.0.0.11 8080 {\n TCP_CHECK {\n connect_timeout 2\n }\n }\n}\n";
    let rules = "-A -t 198.51.100.10:80 -s rr\n-a -t 198.51.100.10:80 -r 10.0.0.11:8080 -b -w 1\n\
                 -P -t 198.51.100.10:80 -z 10.0.0.5 -F dpdk0\n-P -z 10.0.0.8 -t 198.51.100.10:80\n-P -t 198.51.100.10:80 -z \
                 10.0.0.9 -F dpdk0\n";
    for (dialect, text) in [(Dialect::Keepalived, keepalived), (Dialect::Ipvsadm, rules)] {
        let conversion = converted(dialect, text);
        assert_eq!(conversion.summary(), "1 service, 1 backend; 1 directive needs you", "{}", conversion.toml());
        let wanted = [
            "forwarding = \"snat\"\nsnat = { addresses = [\"10.0.0.5\", \"10.0.0.8\", \"10.0.0.9\"] }\n",
            "DPVS tells servers the clients' addresses in a TCP option",
        ];
        assert_has(&checked(&conversion), &wanted);
    }
    assert_has(&converted(Dialect::Keepalived, keepalived).toml(), &["idle = { tcp = \"10m\" }"]);
    let missing = converted(Dialect::Keepalived, &keepalived.replace("group own {", "group other {"));
    assert_has(&checked(&missing), &["laddr_group_name own: there is no such `local_address_group`"]);
    let many = converted(Dialect::Keepalived, &keepalived.replace("8-9", "8-20"));
    assert_has(&checked(&many), &["a service has up to 8 addresses of a family"]);
}

#[test]
fn when_a_service_becomes_snat_then_silent_connections_last_as_long_as_before() {
    let haproxy = |timeouts: &str| {
        let text = format!(
            "defaults\n mode tcp\n {timeouts}\nfrontend in\n bind [2001:db8::10]:80\n default_backend web\nbackend web\n server a \
             10.0.0.1:80 check\n"
        );
        checked(&converted(Dialect::Haproxy, &text))
    };
    assert_has(
        &haproxy("timeout client 30m\n timeout server 1m"),
        &["forwarding = \"snat\"\nidle = { tcp = \"30m\" }"],
    );
    assert_has(&haproxy("timeout client 1m\n timeout server 40m"), &["idle = { tcp = \"40m\" }"]);
    assert_has(&haproxy("timeout client 1m\n timeout server 1m\n timeout tunnel 2h"), &["idle = { tcp = \"2h\" }"]);
    assert_has(&haproxy("timeout client 48h"), &["idle = { tcp = \"24h\" }"]);
    assert_has(&haproxy("timeout connect 5s"), &["# idle = { tcp = \"15m\" }   # the default"]);
    let stream = |server: &str, outer: &str, udp: &str| {
        let text = format!(
            "stream {{ {outer} server {{ listen [2001:db8::10]:53 {udp}; proxy_pass 10.0.0.1:53; {server} }} }}"
        );
        checked(&converted(Dialect::Nginx, &text))
    };
    assert_has(&stream("proxy_timeout 1s;", "", "udp"), &["forwarding = \"snat\"\nidle = { udp = \"1s\" }"]);
    assert_has(&stream("proxy_timeout 1h30m;", "proxy_timeout 5m;", ""), &["idle = { tcp = \"90m\" }"]);
    assert_has(&stream("", "proxy_timeout 5m;", ""), &["idle = { tcp = \"5m\" }"]);
    assert_has(&stream("", "", ""), &["# idle = { tcp = \"15m\" }   # the default"]);
    let http = "http { keepalive_timeout 65; server { listen [2001:db8::10]:80; location / { proxy_pass http://10.0.0.1:80; \
                proxy_read_timeout 3600s; } } }";
    assert_has(&checked(&converted(Dialect::Nginx, http)), &["idle = { tcp = \"1h\" }"]);
    // Other modes have no such time.
    assert!(!checked(&self::haproxy("timeout client 30m\n server a 10.0.0.1:80")).contains("idle"));
}

#[test]
fn when_haproxy_matches_and_stores_the_clients_address_then_it_is_as_if_it_sticks_on_it() {
    let table = "stick-table type ip size 1m expire 1h";
    let both = haproxy(&format!("{table}\n stick match src\n stick store-request src\n server a 10.0.0.1:80 check"));
    assert_eq!(both.need_you(), 0, "{}", both.toml());
    assert_has(&checked(&both), &["client_prefix = { v4 = 32, v6 = 128 }\nremember = \"1h\"\n"]);
    let one = haproxy(&format!("{table}\n stick match src\n server a 10.0.0.1:80 check"));
    assert_has(&checked(&one), &["# NEEDS YOU (line 4): stick match src: "]);
    let other =
        haproxy(&format!("{table}\n stick match src if local\n stick store-request src\n server a 10.0.0.1:80"));
    assert_eq!(other.need_you(), 2, "{}", other.toml());
}

#[test]
fn when_all_servers_have_the_same_agent_then_the_service_asks_it() {
    let same =
        "default-server check agent-check agent-port 9777 agent-inter 5s\n server a 10.0.0.1:80\n server b 10.0.0.2:80";
    let conversion = haproxy(same);
    assert_eq!(conversion.need_you(), 0, "{}", conversion.toml());
    assert_has(&checked(&conversion), &["agent = { port = 9777, interval = \"5s\" }\n"]);
    let quick = haproxy("server a 10.0.0.1:80 agent-check agent-port 9777 agent-inter 200ms");
    assert_has(&checked(&quick), &["agent = { port = 9777, interval = \"1s\" }\n"]);
    for other in ["server c 10.0.0.3:80 no-agent-check", "server c 10.0.0.3:80 agent-port 9778"] {
        let conversion = haproxy(&format!("{same}\n {other}"));
        let text = checked(&conversion);
        assert!(!text.contains("\nagent = "), "{text}");
        assert_has(&text, &["# NEEDS YOU (line 4): server a agent-check: "]);
    }
}

#[test]
fn when_haproxy_checks_by_a_script_then_the_check_sends_and_expects() {
    let with = |lines: &str| haproxy(&format!("{lines}\n server a 10.0.0.1:6379 check\n server b 10.0.0.2:6379 check"));
    for (lines, wanted) in [
        (
            "option tcp-check\n tcp-check connect\n tcp-check send PING\\r\\n\n tcp-check expect string +PONG",
            "send = \"PING\\r\\n\"\n  expect = \"+PONG\"\n",
        ),
        ("option redis-check", "send = \"PING\\r\\n\"\n  expect = \"+PONG\"\n"),
        ("option tcp-check\n tcp-check expect rstring ^220", "type = \"tcp\"\n  expect_regex = \"^220\"\n"),
        (
            "option tcp-check\n tcp-check send-binary ff00\n tcp-check expect binary 0a0b",
            "send = \"hex:ff00\"\n  expect = \"\\n\\u000b\"\n",
        ),
        (
            "option tcp-check\n tcp-check send info\\ replication\\x0a\n tcp-check expect string role:master",
            "send = \"info replication\\n\"\n  expect = \"role:master\"\n",
        ),
    ] {
        let conversion = with(lines);
        assert_eq!(conversion.need_you(), 0, "{}", conversion.toml());
        assert_has(&checked(&conversion), &[wanted, "on_failure = { soft = \"move\" }"]);
    }
    let sentinel = "option tcp-check\n tcp-check send PING\\r\\n\n tcp-check expect string +PONG\n tcp-check send info\\ replication\\r\\n\n \
                    tcp-check expect string role:master\n tcp-check send QUIT\\r\\n\n tcp-check expect string +OK";
    let conversion = with(sentinel);
    let wanted = [
        "send = \"PING\\r\\ninfo replication\\r\\nQUIT\\r\\n\"\n  expect_regex = \"(?s)\\\\+PONG.*role:master.*\\\\+OK\"\n",
        "# NEEDS YOU (line 9): tcp-check: the check sends all texts of the script at once",
    ];
    assert_has(&checked(&conversion), &wanted);
    for (lines, wanted) in [
        ("option tcp-check\n tcp-check connect port 443 ssl", "# NEEDS YOU (line 4): tcp-check connect port 443 ssl: "),
        ("option tcp-check\n tcp-check send-lf AUTH\\ hidden", "# NEEDS YOU (line 4): tcp-check send-lf: "),
        ("option tcp-check\n tcp-check send x", "# NEEDS YOU (line 4): tcp-check: the script expects no answer"),
        (
            "option tcp-check\n tcp-check expect ! string error",
            "# NEEDS YOU (line 4): tcp-check expect ! string error: ",
        ),
        ("option pgsql-check user a", "# NEEDS YOU (line 3): option pgsql-check user a: "),
    ] {
        let conversion = with(lines);
        let text = checked(&conversion);
        assert_has(&text, &[wanted, "only whether the port opens", "[service.check]\n  type = \"tcp\"\n"]);
        assert!(!text.contains("expect =") && !text.contains("hidden"), "{text}");
    }
    let greeted = with("option smtpchk HELO lb.example.com");
    assert_eq!(greeted.need_you(), 1, "{}", greeted.toml());
    assert_has(&checked(&greeted), &["type = \"tcp\"\n  expect = \"220\"\n"]);
    // The last option about checks counts.
    assert_has(&checked(&with("option tcp-check\n option httpchk GET /")), &["type = \"http\"\n"]);
    assert_has(&checked(&with("option httpchk GET /\n option redis-check")), &["expect = \"+PONG\""]);
}

#[test]
fn when_keepalived_asks_by_dns_udp_or_smtp_then_the_check_does_or_the_reader_is_needed() {
    let with = |protocol: &str, check: &str| {
        let text = format!(
            "virtual_server 198.51.100.10 53 {{\n protocol {protocol}\n lb_kind NAT\n real_server 10.0.0.1 53 {{\n {check}\n }}\n}}\n"
        );
        converted(Dialect::Keepalived, &text)
    };
    for (protocol, check, wanted) in [
        (
            "UDP",
            "DNS_CHECK {\n type a\n name www.example.com\n }",
            "type = \"dns\"\n  interval = \"1m\"\n  timeout = \"5s\"\n  fast_interval = \"1s\"\n  fall = 4\n  rise = 1\n  name = \"www.example.com\"\n  record = \"A\"\n",
        ),
        (
            "UDP",
            "UDP_CHECK {\n payload ff00\n require_reply 0102\n }",
            "send = \"hex:ff00\"\n  expect = \"hex:0102\"\n",
        ),
    ] {
        let conversion = with(protocol, check);
        assert_eq!(conversion.need_you(), 0, "{}", conversion.toml());
        assert_has(&checked(&conversion), &[wanted]);
    }
    for (protocol, check, wanted) in [
        ("UDP", "UDP_CHECK {\n payload ff00\n }", "type = \"none\""),
        ("TCP", "SMTP_CHECK {\n }", "expect = \"220\"\n"),
        ("TCP", "BFD_CHECK {\n name x\n }", "type = \"tcp\"\n"),
        ("TCP", "MISC_CHECK {\n misc_path check\n }", "type = \"tcp\"\n"),
    ] {
        let conversion = with(protocol, check);
        assert_eq!(conversion.need_you(), 1, "{}", conversion.toml());
        assert_has(&checked(&conversion), &[wanted]);
    }
}

#[test]
fn when_nginx_serves_udp_then_the_reader_is_told_that_nothing_checks_the_servers() {
    let text = |udp: &str| format!("stream {{ server {{ listen {VIP} {udp}; proxy_pass 10.0.0.1:53; }} }}");
    let conversion = converted(Dialect::Nginx, &text("udp"));
    assert_has(
        &checked(&conversion),
        &["type = \"none\"", "# NEEDS YOU (line 1): 10.0.0.1-53: nginx notices by itself"],
    );
    assert_eq!((conversion.need_you(), converted(Dialect::Nginx, &text("")).need_you()), (1, 0));
}

#[test]
fn when_a_server_has_a_name_of_one_word_then_it_is_a_server_and_the_reader_is_needed() {
    let nginx = "http {\n upstream web {\n server app1:8080;\n server app2:8080;\n }\n server {\n listen 80;\n location / {\n \
                 proxy_pass http://web;\n }\n }\n}\n";
    let haproxy = "listen web\n bind :80\n server a app1:8080 check\n server b app2:8080 check\n";
    for (dialect, text) in [(Dialect::Nginx, nginx), (Dialect::Haproxy, haproxy)] {
        let conversion = converted(dialect, text);
        assert_eq!(conversion.summary(), "1 service, 2 backends; 2 directives need you", "{}", conversion.toml());
        let wanted = [
            "# NEEDS YOU (line 3): app1:8080: the balancer asks DNS for exactly this name",
            "# NEEDS YOU (line 4): app2:8080: ",
            "address = \"app1:8080\"\n",
        ];
        assert_has(&checked(&conversion), &wanted);
    }
    let here = self::haproxy("server a localhost:8080");
    assert_has(&here.toml(), &["server a localhost:8080: a loopback address cannot get"]);
}

#[test]
fn when_a_service_has_the_port_of_ftp_then_its_data_connections_are_noted() {
    let text = |port: u16| format!("listen ftp\n bind 198.51.100.10:{port}\n server a 10.0.0.1:{port}\n");
    let conversion = converted(Dialect::Haproxy, &text(21));
    assert_eq!(conversion.need_you(), 1);
    assert_has(&checked(&conversion), &["# NEEDS YOU (line 1): ftp on port 21: FTP's data connections"]);
    assert_eq!(converted(Dialect::Haproxy, &text(22)).need_you(), 0);
}

#[test]
fn when_a_listener_takes_both_families_then_both_are_kept() {
    let nginx = |listen: &str| {
        format!("http {{ server {{ listen {listen}; location / {{ proxy_pass http://10.0.0.1:80; }} }} }}")
    };
    let haproxy = |bind: &str| format!("listen web\n bind {bind}\n server a 10.0.0.1:80\n");
    let both = "listen = [\"198.51.100.10:80\", \"[2001:db8::10]:80\"]\nforwarding = \"snat\"\n";
    for (dialect, text) in [
        (Dialect::Haproxy, haproxy(":::80 v4v6")),
        (Dialect::Haproxy, haproxy("[::]:80 v4v6")),
        (Dialect::Nginx, nginx("[::]:80 ipv6only=off")),
    ] {
        let conversion = converted(dialect, &text);
        assert_eq!(conversion.need_you(), 0, "{}", conversion.toml());
        assert_has(&checked(&conversion), &[both]);
    }
    for (dialect, text) in [(Dialect::Haproxy, haproxy(":::80")), (Dialect::Nginx, nginx("[::]:80"))] {
        assert_has(&checked(&converted(dialect, &text)), &["listen = [\"[2001:db8::10]:80\"]\n"]);
    }
}

#[test]
fn when_much_concerns_only_the_other_program_then_what_needs_the_reader_comes_first_and_the_rest_is_one_line() {
    let text = "user www;\nworker_processes 4;\nevents { worker_connections 9; }\nhttp {\n sendfile on;\n gzip on;\n server {\n listen \
                198.51.100.10:80;\n client_max_body_size 9m;\n location / {\n proxy_pass http://10.0.0.1:80;\n proxy_set_header Host $host;\n \
                proxy_set_header Connection $c;\n }\n }\n}\n";
    let conversion = converted(Dialect::Nginx, text);
    let toml = checked(&conversion);
    let notes: Vec<&str> = toml.lines().skip(3).take_while(|line| line.starts_with('#')).collect();
    let expected = [
        "# NEEDS YOU (line 6): gzip on: responses are not compressed any more; let the backends do it",
        "# note (line 12): proxy_set_header Host $host: requests pass unchanged, with the name that the client asked for; nothing to do",
        "# note (line 13): proxy_set_header Connection $c: connections pass unchanged; nothing to do",
        "# nothing to do (lines 1 to 3, 5, 9): these concern nginx itself: user, worker_processes, worker_connections, sendfile, client_max_body_size",
    ];
    assert_eq!(notes, expected);
    let terminal = conversion.for_the_terminal("nginx.conf");
    assert_eq!(terminal, ["nginx.conf:6: gzip on: responses are not compressed any more; let the backends do it"]);
}
