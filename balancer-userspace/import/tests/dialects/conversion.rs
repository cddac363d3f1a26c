//! Tests that the balancer accepts the results of conversions, and that no text makes a conversion panic.

use crate::support::{SAMPLES, accepted, assert_has, checked, completed, text_of};
use balancer_import::{Conversion, Dialect, convert};
use proptest::prelude::*;

const NGINX: &str = "\
events {}
http {
    upstream web {
        hash $remote_addr consistent;
        server 10.0.0.11:8080 weight=5 max_fails=2;
        server 10.0.0.12:8080 down;
        server 10.0.0.13:8080 max_fails=0;
        server unix:/run/web.sock;
    }
    server {
        listen 198.51.100.10:18080;
        location / {
            proxy_pass http://web;
        }
    }
}
";

const HAPROXY: &str = "\
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    default-server inter 3s fall 4 rise 1
frontend in
    bind 198.51.100.10:18081
    default_backend web
backend web
    balance source
    hash-type consistent
    stick-table type ip size 200k expire 30m
    stick on src
    option httpchk GET /healthz
    server a 10.0.0.11:8080 check weight 10
    server b 10.0.0.12:8080 check disabled
    server c 10.0.0.13:8080 backup
    server-template d 2-3 10.0.0.14:8080 check
";

const IPVSADM: &str = "\
-A -t 198.51.100.10:80 -s sh -p 600 -M 255.255.255.0
-a -t 198.51.100.10:80 -r 10.0.0.11:80 -g -w 1
-a -t 198.51.100.10:80 -r 10.0.0.12:80 -g -w 3
-A -u [2001:db8::10]:53 -s rr
-a -u [2001:db8::10]:53 -r [fd00::11]:53 -i -w 1
";

fn converted(dialect: Dialect, text: &str) -> Conversion {
    crate::support::try_convert(dialect, "file", text, &[]).unwrap()
}

/// Returns the reason why the conversion refused the text.
fn refusal(dialect: Dialect, text: &str) -> String {
    crate::support::try_convert(dialect, "file", text, &[]).unwrap_err().to_string()
}

#[test]
fn when_a_file_of_nginx_is_converted_then_its_parameters_stand_in_the_result() {
    let conversion = converted(Dialect::Nginx, NGINX);
    assert_eq!(conversion.summary(), "1 service, 3 backends; 1 directive needs you");
    let wanted = [
        "listen = [\"198.51.100.10:18080\"]\nforwarding = \"nat\"\nclient_prefix = { v4 = 32, v6 = 128 }\n",
        "type = \"tcp\"\n  fall = 2\n",
        "address = \"10.0.0.11:8080\"\n  weight = 5\n",
        "address = \"10.0.0.12:8080\"\n  weight = 0 ",
        "address = \"10.0.0.13:8080\"\n  weight = 1\n  check = { type = \"none\" }\n",
        "# NEEDS YOU (line 8): server unix:/run/web.sock: ",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_a_file_of_haproxy_is_converted_then_its_options_stand_in_the_result() {
    let conversion = converted(Dialect::Haproxy, HAPROXY);
    assert_eq!(conversion.summary(), "1 service, 4 backends; 1 directive needs you");
    let wanted = [
        "remember = \"30m\"\n",
        "type = \"http\"\n  interval = \"3s\"\n  fall = 4\n  rise = 1\n  method = \"GET\"\n  path = \"/healthz\"\n",
        "name = \"a\"\n  address = \"10.0.0.11:8080\"\n  weight = 10\n",
        "name = \"b\"\n  address = \"10.0.0.12:8080\"\n  weight = 0 ",
        "name = \"c\"\n  address = \"10.0.0.13:8080\"\n  weight = 1\n  backup = true\n  check = { type = \"none\" }\n",
        "name = \"d2\"\n  address = \"10.0.0.14:8080\"\n",
        // The two servers of the template have the same address and port, so with nat, replies could not be told apart.
        "# NEEDS YOU (line 19): d3 in web: ",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_a_template_of_haproxy_has_a_name_then_the_service_follows_that_name() {
    let of = |bind: &str, template: &str| {
        let text = format!("listen web\n bind {bind}\n default-server inter 3s\n server-template a 1-9 {template}\n");
        let conversion = converted(Dialect::Haproxy, &text);
        (checked(&conversion), conversion.need_you())
    };
    let v4 = "198.51.100.10:80";
    for (bind, template, wanted) in [
        (v4, "_http._tcp.Web.internal check", &["interval = \"3s\"", "dns = \"_http._tcp.web.internal\"\n"][..]),
        (v4, "web.internal:8080", &["type = \"none\"", "dns_a = \"web.internal\"\n  port = 8080\n"]),
        (v4, "web.internal check port 81", &["port = 81\n\n  [[service.discover]]\n  dns_a = \"web.internal\"\n"]),
        (v4, "web.internal:443 check check-ssl verify none", &["dns_a", "a check of type `https` asks for a page"]),
        (v4, "ipv4@web.internal:80 backup disabled", &["dns_a", "a backup", "remove the `[[", "write `family` in"]),
        (v4, "web.internal:80 resolvers own", &["dns_a", "name others as `servers`"]),
        ("[2001:db8::10]:80", "ipv6@web.internal:80", &["dns_a = \"web.internal\"", "write `family` in"]),
    ] {
        let (text, need_you) = of(bind, template);
        assert_has(&text, wanted);
        assert_eq!(need_you > 0, text.contains("NEEDS YOU"), "{text}");
    }
    for (template, wanted) in [
        ("web.internal:+1000", "a port relative to the client's"),
        ("web.internal:http", "this is no address or whole name of DNS"),
        ("\"$WEB\":80", "its address is in a variable"),
        ("web..internal:80", "this is no address or whole name of DNS"),
    ] {
        let (text, _) = of(v4, template);
        assert_has(&text, &[wanted, "none of its servers could be converted"]);
        assert!(!text.contains("dns_a = "), "{text}");
    }
    let text =
        format!("listen web\n bind {v4}\n server a 10.0.0.1:80 check weight 7\n server-template b 3 b.internal:80\n");
    let conversion = converted(Dialect::Haproxy, &text);
    assert_eq!(conversion.summary(), "1 service, 1 backend; 0 directives need you");
    assert_has(&checked(&conversion), &["weight = 7\n", "type = \"tcp\"", "dns_a = \"b.internal\"\n  port = 80\n"]);
}

#[test]
fn when_a_server_has_a_name_then_its_backend_follows_the_name() {
    let haproxy =
        "listen web\n bind 198.51.100.10:80\n server a web1.internal:8080 check weight 3\n server b 10.0.0.2:8080\n";
    let nginx = "http {\n upstream web {\n server web1.internal:8080 weight=3 resolve;\n server 10.0.0.2:8080;\n }\n \
                 server {\n listen 198.51.100.10:80;\n location / {\n proxy_pass http://web;\n }\n }\n}\n";
    for (dialect, text) in [(Dialect::Haproxy, haproxy), (Dialect::Nginx, nginx)] {
        let conversion = converted(dialect, text);
        assert_eq!(conversion.summary(), "1 service, 2 backends; 0 directives need you");
        let wanted = ["address = \"web1.internal:8080\"\n  weight = 3\n", "address = \"10.0.0.2:8080\"\n"];
        assert_has(&checked(&conversion), &wanted);
    }
    let alone =
        "http {\n server {\n listen 198.51.100.10:80;\n location / {\n proxy_pass http://web.internal;\n }\n }\n}\n";
    assert_has(&checked(&converted(Dialect::Nginx, alone)), &["address = \"web.internal:80\"\n"]);
    // These hosts are this machine, or have variables in their names, or named ports.
    for host in ["localhost:80", "web1.internal:http", "web1.$domain:80", "-", "10.0.0"] {
        let text = format!("listen web\n bind 198.51.100.10:80\n server a {host}\n");
        assert_has(&converted(Dialect::Haproxy, &text).toml(), &["none of its servers could be converted"]);
    }
    let both = "listen web\n bind 198.51.100.10:80\n bind [2001:db8::10]:80\n server a web1.internal:80\n";
    let of_both = ["listen = [\"198.51.100.10:80\", \"[2001:db8::10]:80\"]", "address = \"web1.internal:80\"\n"];
    assert_has(&checked(&converted(Dialect::Haproxy, both)), &of_both);
}

#[test]
fn when_nat_cannot_serve_a_service_of_a_proxy_then_snat_does() {
    let haproxy = "listen web\n bind 198.51.100.10:80\n bind [2001:db8::10]:80\n bind 198.51.100.10:8000\n server a \
                   10.0.0.1:8080 check\n server b [fd00::2]:8080 check\n";
    let nginx = "http {\n upstream web {\n server 10.0.0.1:8080;\n server [fd00::2]:8080;\n }\n server {\n listen \
                 198.51.100.10:80;\n listen [2001:db8::10]:80;\n listen 198.51.100.10:8000;\n location / {\n proxy_pass \
                 http://web;\n }\n }\n}\n";
    for (dialect, text) in [(Dialect::Haproxy, haproxy), (Dialect::Nginx, nginx)] {
        let conversion = converted(dialect, text);
        assert_eq!(conversion.summary(), "1 service, 2 backends; 0 directives need you", "{}", conversion.toml());
        let wanted = [
            "# snat: as behind a proxy, the backends need no route through this machine",
            "listen = [\"198.51.100.10:80\", \"[2001:db8::10]:80\", \"198.51.100.10:8000\"]\nforwarding = \"snat\"\n",
            "address = \"10.0.0.1:8080\"\n",
            "address = \"[fd00::2]:8080\"\n",
        ];
        assert_has(&checked(&conversion), &wanted);
    }
    // One of these reasons suffices.
    for listeners in ["bind [2001:db8::10]:80", "bind 198.51.100.10:80\n bind 198.51.100.10:8000"] {
        let text = format!("listen web\n {listeners}\n server a 10.0.0.1:8080\n");
        let conversion = converted(Dialect::Haproxy, &text);
        assert_eq!(conversion.summary(), "1 service, 1 backend; 0 directives need you");
        assert_has(&checked(&conversion), &["forwarding = \"snat\"\n"]);
    }
    // With nat, the source of a reply would not say which frontend the reply belongs to.
    let shared = "frontend one\n bind 198.51.100.10:80\n default_backend web\nfrontend two\n bind 198.51.100.11:80\n \
                  default_backend web\nbackend web\n server a 10.0.0.1:8080\n";
    let other = "listen other\n bind 198.51.100.12:80\n server a 10.0.0.3:8080\n";
    let conversion = converted(Dialect::Haproxy, &format!("{shared}{other}"));
    assert_eq!(conversion.summary(), "3 services, 3 backends; 0 directives need you");
    let text = checked(&conversion);
    assert_eq!((text.matches("= \"snat\"\n").count(), text.matches("= \"nat\"\n").count()), (2, 1), "{text}");
    let unnamed =
        converted(Dialect::Haproxy, &shared.replace("198.51.100.10:", ":").replace("198.51.100.11:80", ":81"));
    let completed = completed(&checked(&unnamed), "198.51.100.10");
    assert_eq!(completed.matches("forwarding = \"snat\"\n").count(), 2, "{completed}");
    accepted(&completed);
    let unnamed = converted(Dialect::Haproxy, "listen web\n bind :::80\n server a 10.0.0.1:8080\n");
    assert_has(&checked(&unnamed), &["# listen = [\"[ADDRESS]:80\"]\n# forwarding = \"snat\"\n"]);
}

#[test]
fn when_nat_suffices_for_a_proxy_then_backends_see_the_addresses_of_clients() {
    for text in [
        "listen web\n bind 198.51.100.10:80\n bind 198.51.100.10:8000\n server a 10.0.0.1\n",
        "listen web\n bind 198.51.100.10:80\n server a 10.0.0.1:8080\n",
        "listen web\n bind [2001:db8::10]:80\n server a [fd00::1]:8080\n",
    ] {
        let conversion = converted(Dialect::Haproxy, text);
        assert_eq!(conversion.summary(), "1 service, 1 backend; 0 directives need you");
        assert_has(&checked(&conversion), &["forwarding = \"nat\"\n"]);
    }
}

#[test]
fn when_nat_cannot_serve_a_service_of_ipvs_then_snat_is_proposed_and_would_be_valid() {
    let shared = "-A -t 198.51.100.10:80 -s rr\n-a -t 198.51.100.10:80 -r 10.0.0.1:80 -m -w 1\n-A -t 198.51.100.11:80 -s \
                  rr\n-a -t 198.51.100.11:80 -r 10.0.0.1:80 -m -w 1\n-a -t 198.51.100.11:80 -r 10.0.0.2:80 -m -w 1\n";
    let conversion = converted(Dialect::Ipvsadm, shared);
    assert_eq!(conversion.summary(), "2 services, 2 backends; 1 directive needs you");
    let kept = checked(&conversion);
    assert_has(&kept, &["or use `forwarding = \"snat\"`"]);
    let (first, second) = kept.rsplit_once("forwarding = \"nat\"").unwrap();
    let added = "\n  [[service.backend]]\n  name = \"added\"\n  address = \"10.0.0.1:80\"\n  weight = 1\n";
    accepted(&format!("{first}forwarding = \"snat\"{second}{added}"));
    let text = "-A -t [2001:db8::10]:80 -s rr\n-a -t [2001:db8::10]:80 -r [fd00::1]:80 -m -w 1\n-a -t [2001:db8::10]:80 -r \
                10.0.0.1:80 -m -w 1\n";
    let conversion = converted(Dialect::Ipvsadm, text);
    assert_eq!(conversion.summary(), "1 service, 1 backend; 1 directive needs you");
    let kept = checked(&conversion);
    assert_has(&kept, &["or use `forwarding = \"snat\"`", "forwarding = \"nat\"\n"]);
    accepted(&(kept.replace("forwarding = \"nat\"", "forwarding = \"snat\"") + added));
}

#[test]
fn when_a_template_cannot_serve_both_families_then_it_is_said() {
    let text = "listen web\n bind 198.51.100.10:80\n bind [2001:db8::10]:80\n server-template a 9 web.internal:80\n";
    let conversion = converted(Dialect::Haproxy, text);
    assert_has(&conversion.toml(), &["dns_a does not say which IPv4 and IPv6 addresses are one backend"]);
}

#[test]
fn when_rules_of_ipvs_are_converted_then_methods_and_persistence_stand_in_the_result() {
    let conversion = converted(Dialect::Ipvsadm, IPVSADM);
    assert_eq!(conversion.summary(), "2 services, 3 backends; 0 directives need you");
    let wanted = [
        "forwarding = \"dsr\"\nclient_prefix = { v4 = 24, v6 = 64 }\nremember = \"10m\"\n",
        "address = \"10.0.0.12:80\"\n  weight = 3\n",
        "listen = [\"[2001:db8::10]:53/udp\"]\nforwarding = \"ipip\"\n",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_tls_ends_at_the_proxy_then_it_is_said_how_to_keep_it() {
    let conversion =
        converted(Dialect::Haproxy, "listen web\n bind 198.51.100.10:443 ssl crt /a.pem\n server a 10.0.0.1:80\n");
    assert_eq!(conversion.summary(), "0 services, 0 backends; 1 directive needs you");
    assert_has(
        &conversion.toml(),
        &["# NEEDS YOU (line 2): bind 198.51.100.10:443 ssl crt /a.pem: ", "keep HAProxy as the backend"],
    );
}

#[test]
fn when_a_file_includes_itself_then_it_is_refused() {
    let mut include = |_: &str, name: &str| Ok(vec![(name.to_owned(), "include own.conf\n;".to_owned())]);
    for (dialect, text) in [(Dialect::Nginx, "include own.conf;"), (Dialect::Keepalived, "include own.conf")] {
        let files = [("own.conf".to_owned(), text.to_owned())];
        let error = convert(dialect, &files, &[], &mut include).unwrap_err().to_string();
        assert_has(&error, &["own.conf:1: ", "too deeply"]);
    }
}

#[test]
fn when_a_text_is_not_understood_then_the_error_names_the_line_and_what_would_be_right() {
    for (dialect, text, wanted) in [
        (Dialect::Nginx, "http {\n server {\n", "file:2: `server` is not closed"),
        (Dialect::Nginx, "http {\n}\n}\n", "file:3: unexpected `}`"),
        (Dialect::Nginx, "worker_processes \"1;\n", "file:2: a quote is not closed"),
        (Dialect::Nginx, "events {}\n", "file: read as nginx, it has no `server` that listens"),
        (Dialect::Haproxy, "\nserver a 10.0.0.1:80\n", "file:2: `server` stands in no section"),
        (Dialect::Haproxy, "global\n daemon\n", "file: read as haproxy, it has no `frontend` or `listen`"),
        (Dialect::Keepalived, "virtual_server 10.0.0.1 80 {\n", "file:1: `virtual_server` is not closed"),
        (Dialect::Keepalived, "}\n", "file:1: unexpected `}`"),
        (Dialect::Keepalived, "@lb1 virtual_server 10.0.0.1 80 {\n}\n", "file:1: `@lb1`: conditions are ignored"),
        (Dialect::Keepalived, "global_defs {\n}\n", "file: read as keepalived, it has no `virtual_server`"),
        (Dialect::Ipvsadm, "-A -t 198.51.100.10:80\nIP Virtual Server\n", "file:2: `IP` begins no rule"),
        (Dialect::Ipvsadm, "# nothing\n", "file: read as ipvsadm, it has no service"),
    ] {
        let error = refusal(dialect, text);
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[test]
fn when_a_text_has_escape_sequences_then_none_reaches_the_terminal() {
    let text = format!("\u{1b}[31m{} a\n", "x".repeat(100_000));
    let error = refusal(Dialect::Haproxy, &text);
    assert!(error.starts_with("file:1: `\u{fffd}[31mxxx") && error.len() < 600, "{error}");
    let conversion =
        converted(Dialect::Haproxy, &format!("listen web\n bind 198.51.100.10:80\n server a 10.0.0.1:80\n {text}"));
    assert!(!checked(&conversion).contains('\u{1b}'));
}

#[test]
fn when_a_listener_is_on_every_address_then_those_that_are_given_stand_for_it() {
    let text = "listen web\n bind :80\n bind :::80\n server a 10.0.0.1:80\n";
    let with = |addresses: &[&str]| crate::support::try_convert(Dialect::Haproxy, "file", text, addresses).unwrap();
    let waiting = with(&[]);
    assert_eq!(waiting.summary(), "0 services, 0 backends; 2 directives need you");
    assert_has(
        &waiting.toml(),
        &["--address ADDRESS, the IPv4 address", "# listen = [\"ADDRESS:80\"]\n", "#   address = \"10.0.0.1:80\"\n"],
    );
    let given = with(&["198.51.100.10"]);
    assert_eq!(given.summary(), "1 service, 1 backend; 1 directive needs you");
    assert_has(&checked(&given), &["\nlisten = [\"198.51.100.10:80\"]\n", "--address ADDRESS, the IPv6 address"]);
}

#[test]
fn when_haproxy_sticks_to_a_prefix_then_it_is_the_clients_prefix() {
    for (key, wanted) in [
        ("src", "client_prefix = { v4 = 32, v6 = 128 }\n"),
        ("src,ipmask(24)", "client_prefix = { v4 = 24, v6 = 128 }\n"),
        ("src,ipmask(255.255.255.0,56)", "client_prefix = { v4 = 24, v6 = 56 }\n"),
    ] {
        let text = format!(
            "listen web\n bind 198.51.100.10:80\n stick-table type ip size 1m expire 1h\n stick on {key}\n server a 10.0.0.1:80\n"
        );
        assert_has(&checked(&converted(Dialect::Haproxy, &text)), &[wanted, "remember = \"1h\"\n"]);
    }
    let text = "listen web\n bind 198.51.100.10:80\n stick on url_param(id)\n server a 10.0.0.1:80\n";
    assert_has(&checked(&converted(Dialect::Haproxy, text)), &["# NEEDS YOU (line 3): stick on url_param(id): "]);
}

#[test]
fn when_a_section_of_haproxy_names_its_defaults_then_it_takes_over_these() {
    let text = "defaults slow\n default-server inter 9s\ndefaults quick from slow\n default-server fall 7\n\
                defaults\n default-server inter 1s\n\
                listen web from quick\n bind 198.51.100.10:80\n server a 10.0.0.1:80 check\n";
    let conversion = converted(Dialect::Haproxy, text);
    assert_eq!(conversion.summary(), "1 service, 1 backend; 0 directives need you");
    assert_has(&checked(&conversion), &["  interval = \"9s\"\n  fall = 7\n"]);
}

/// Converts a service that has HTTP checks and whose servers have these options.
fn checked_over_tls(send: &str, servers: &[&str]) -> Conversion {
    let mut text = format!("listen web\n bind 198.51.100.10:443\n option httpchk\n http-check send {send}\n");
    for (number, server) in servers.iter().enumerate() {
        text += &format!(" server s{number} 10.0.0.{}:443 check {server}\n", number + 1);
    }
    converted(Dialect::Haproxy, &text)
}

#[test]
fn when_a_check_of_haproxy_sends_headers_then_they_are_converted() {
    let send = "meth GET uri / hdr Host www.example.com hdr X-Probe \"50%% of \\\"it\\\"\" hdr accept text/plain hdr Connection close";
    let conversion = checked_over_tls(send, &["", "inter 9s"]);
    assert_eq!(conversion.summary(), "1 service, 2 backends; 0 directives need you");
    let headers = "headers = { \"X-Probe\" = \"50% of \\\"it\\\"\", \"accept\" = \"text/plain\" }";
    let text = checked(&conversion);
    assert_has(&text, &["hdr Connection: each check is a connection of its own", "  host = \"www.example.com\"\n"]);
    assert_eq!(text.matches(headers).count(), 2, "{text}");
}

#[test]
fn when_a_header_of_haproxy_cannot_be_sent_then_it_is_named_without_its_value() {
    for (header, wanted) in [
        ("X-Probe hidden%[env(TOKEN)]", "the value depends on HAProxy or its environment"),
        ("X-Probe \"hidden ${TOKEN}\"", "the value depends on HAProxy or its environment"),
        ("accept one hdr ACCEPT hidden", "a check sends each header once"),
        ("Content-Length hidden", "the header \"Content-Length\" belongs to the check itself"),
        ("\"X Probe\" hidden", "\"X Probe\" is not the name of a header"),
    ] {
        let conversion = checked_over_tls(&format!("meth GET hdr {header}"), &[""]);
        assert_eq!(conversion.need_you(), 1, "{header}");
        let text = checked(&conversion);
        assert_has(&text, &["# NEEDS YOU (line 4): http-check send hdr ", wanted]);
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn when_a_check_of_haproxy_is_over_tls_then_roots_and_names_are_converted() {
    let cases: [(&str, &str, usize); 16] = [
        ("check-ssl verify none", "tls_verify = false\n", 0),
        ("check-ssl verify required", "tls_verify = true\n", 0),
        ("check-ssl ca-file @system-ca", "tls_verify = true\n", 0),
        ("check-ssl ca-file /etc/ca.pem", "tls_verify = true\n  ca_file = \"/etc/ca.pem\"\n", 0),
        ("check-ssl ca-file ca.pem", "write the whole path of one file as `ca_file`", 1),
        ("check-ssl check-sni one.example sni str(two.example)", "sni = \"one.example\"\n", 0),
        ("ssl verify none sni str(two.example)", "tls_verify = false\n  sni = \"two.example\"\n", 1),
        ("check-ssl sni req.hdr(host)", "write the name as `sni` of the check", 1),
        ("check-ssl verify none crt /etc/client.pem", "client_cert = \"/etc/client.pem\"\n", 0),
        ("check-ssl verify none crt client.pem", "write the whole path of the file as `client_cert`", 1),
        ("check-ssl verify none alpn h2", "http2 = true\n", 0),
        ("check-ssl verify none alpn h2 check-alpn h2,http/1.1", "tls_verify = false\n", 0),
        ("check-ssl verify none check-proto h2", "http2 = true\n", 0),
        ("check-ssl verify none proto h2 check-proto h1", "tls_verify = false\n", 0),
        ("check-ssl verify none proto fcgi", "server s0 proto fcgi: checks speak HTTP/1.1 or HTTP/2", 1),
        ("check-ssl verify none verifyhost one.example", "server s0 verifyhost one.example: the certificate", 1),
    ];
    for (server, wanted, need_you) in cases {
        let conversion = checked_over_tls("meth GET uri /", &[server]);
        assert_eq!(conversion.need_you(), need_you, "{server}: {}", conversion.toml());
        let text = checked(&conversion);
        assert_has(&text, &["type = \"https\"", wanted]);
        assert_eq!(text.contains("http2"), wanted.contains("http2"), "{text}");
    }
    let plain = checked_over_tls("meth GET uri /", &["ca-file /etc/ca.pem", "ssl no-check-ssl verify none"]);
    assert_has(
        &checked(&plain),
        &["type = \"http\"\n", "(lines 5, 6): server s0, server s1: its checks are not over TLS"],
    );
}

#[test]
fn when_servers_of_haproxy_speak_http2_without_tls_then_their_checks_do_and_others_do_not_take_it_over() {
    let conversion = checked_over_tls("meth GET uri /", &["proto h2", "proto h2", "", "alpn h2"]);
    let text = checked(&conversion);
    assert_has(&text, &["type = \"http\"\n", "http2 = true\n", "server s3: its checks are not over TLS"]);
    assert_eq!((text.matches("http2 = true").count(), text.matches("http2 = false").count()), (1, 2), "{text}");
}

#[test]
fn when_servers_of_haproxy_are_checked_in_other_ways_then_none_takes_over_the_roots_of_another() {
    let first = "check-ssl ca-file /etc/ca.pem check-sni one.example";
    let others = [
        "check-ssl verify none",
        "check-ssl verify required",
        "check-ssl ca-file /etc/other.pem check-sni two.example",
    ];
    let conversion = checked_over_tls("meth GET uri / hdr Host www.example.com", &[&[first][..], &others].concat());
    let text = checked(&conversion);
    let config = balancer_config::file::parse("web.toml".as_ref(), text.as_bytes());
    let (config, _) = config.unwrap();
    let tls = |backend: &balancer_config::config::BackendConfig| match backend.check.as_deref().map(|check| &check.kind)
    {
        Some(balancer_config::config::CheckKind::Http(http)) => {
            let tls = http.tls.clone().unwrap();
            (tls.verify, tls.ca_file.map(|file| file.display().to_string()), tls.sni.unwrap())
        }
        other => panic!("{other:?}"),
    };
    let found: Vec<_> = config.services.iter().flat_map(|service| service.backends.iter().skip(1)).map(tls).collect();
    let expected = [
        (false, None, "www.example.com".to_owned()),
        (true, Some("/etc/ssl/certs/ca-certificates.crt".to_owned()), "www.example.com".to_owned()),
        (true, Some("/etc/other.pem".to_owned()), "two.example".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn when_haproxy_would_use_one_backup_at_a_time_then_it_is_said() {
    let text = "listen web\n bind 198.51.100.10:80\n server a 10.0.0.1:80\n server b 10.0.0.2:80 backup\n server c 10.0.0.3:80 backup\n";
    let conversion = converted(Dialect::Haproxy, text);
    assert_has(
        &checked(&conversion),
        &["# NEEDS YOU (line 5): server c backup: HAProxy uses its backups one after another"],
    );
    let conversion = converted(Dialect::Haproxy, &format!("{text} option allbackups\n"));
    assert_eq!(conversion.summary(), "1 service, 3 backends; 0 directives need you");
}

#[test]
fn when_nginx_changes_paths_then_it_is_said() {
    let text = |path: &str| {
        format!(
            "http {{ server {{ listen 198.51.100.10:80; location / {{ proxy_pass http://10.0.0.1:80{path}; }} }} }}"
        )
    };
    for (path, need) in [("", 0), ("/", 0), ("/shop/", 1)] {
        assert_eq!(converted(Dialect::Nginx, &text(path)).need_you(), need, "{path}");
    }
}

#[test]
fn when_nginx_serves_files_then_no_address_is_asked_for() {
    let conversion = converted(Dialect::Nginx, "http { server { listen 80; location / { try_files $uri =404; } } }");
    assert_has(
        &conversion.toml(),
        &["listen 80: its server passes to no other one", "server: it passes to no other server; "],
    );
    assert!(!conversion.toml().contains("--address"), "{}", conversion.toml());
}

#[test]
fn when_a_virtual_server_is_not_plain_then_it_is_said_what_lacks() {
    let server = |head: &str, inside: &str| {
        format!("virtual_server {head} {{\n {inside}\n real_server 10.0.0.11 80 {{\n TCP_CHECK {{\n }}\n }}\n}}\n")
    };
    for (head, inside, wanted) in [
        ("198.51.100.10 80", "protocol SCTP", "TCP and UDP are steered; keep IPVS for SCTP"),
        ("198.51.100.10 80", "lb_kind TUN type gre", "methods are NAT, DR, FNAT, and TUN with ipip or gue"),
        ("198.51.100.10 80", "quorum 2", "backups take over when no other backend is eligible"),
        ("group shop", "lb_kind DR", "there is no such `virtual_server_group`; name one"),
        ("198.51.100.x 80", "lb_kind DR", "this is no numeric address or range; write one"),
        ("198.51.100.10 http", "lb_kind DR", "this is no port; write one, 1 to 65535"),
        ("198.51.100.10 80", "delay_loop soon", "the value is not valid; write a number"),
        ("198.51.100.10 80", "quorum_down \"/usr/bin/mail -s down\"", "no program is started; read `balancer events"),
    ] {
        let conversion = converted(Dialect::Keepalived, &server(head, inside));
        assert!(conversion.need_you() > 0, "{head} {inside}");
        assert_has(&checked(&conversion), &[wanted]);
    }
}

#[test]
fn when_parameters_of_keepalived_stand_for_several_lines_then_they_are_put_in() {
    let text = "$SERVER= \\\n real_server 10.0.0.${LAST} 80 { \\\n TCP_CHECK { \\\n } \\\n }\n\
                virtual_server 198.51.100.10 80 {\n lb_kind DR\n $LAST=11\n $SERVER\n $LAST=12\n $SERVER\n}\n";
    let conversion = converted(Dialect::Keepalived, text);
    assert_eq!(conversion.summary(), "1 service, 2 backends; 0 directives need you");
    assert_has(&checked(&conversion), &["address = \"10.0.0.11:80\"", "address = \"10.0.0.12:80\"", "type = \"tcp\""]);
}

/// Each parameter contains the previous parameter several times, so the values grow exponentially.
#[test]
fn when_parameters_of_keepalived_grow_without_end_then_they_are_refused() {
    let mut text = "$A0=x\n".to_owned();
    for number in 1..40 {
        let before = number - 1;
        text += &format!("$A{number}=${{A{before}}}${{A{before}}}${{A{before}}}${{A{before}}} \\\n ${{A{before}}}\n");
    }
    text += "virtual_server 198.51.100.10 80 {\n ${A39}\n}\n";
    let error = refusal(Dialect::Keepalived, &text);
    assert!(error.contains("too deeply") || error.contains("too long"), "{error}");
}

#[test]
fn when_a_line_stands_for_too_many_servers_then_it_is_not_converted() {
    let mut text = "listen web\n bind 198.51.100.10:80\n server a 10.0.0.1:80\n".to_owned();
    text += &" server-template b 33000 10.0.0.2:80\n".repeat(1000);
    let conversion = converted(Dialect::Haproxy, &text);
    assert_has(&checked(&conversion), &["or they are too many; write 1 to 65534 in all"]);
}

#[test]
fn when_the_kind_is_not_given_then_it_is_guessed() {
    for (text, dialect) in [(NGINX, Dialect::Nginx), (HAPROXY, Dialect::Haproxy), (IPVSADM, Dialect::Ipvsadm)] {
        assert_eq!(Dialect::guess(text), Some(dialect));
    }
    for (dialect, sample, _) in SAMPLES {
        assert_eq!(Dialect::guess(&text_of(sample)), Some(dialect), "{sample}");
    }
    for (text, dialect) in [
        ("http\n{\n", Dialect::Nginx),
        ("upstream web{server 10.0.0.1;}\n", Dialect::Nginx),
        ("frontend web\n http-request deny if { path / } # ;\nbackend b\n server a 10.0.0.1:80\n", Dialect::Haproxy),
        ("vrrp_instance a{\n}\n", Dialect::Keepalived),
    ] {
        assert_eq!(Dialect::guess(text), Some(dialect), "{text}");
    }
    assert_eq!(Dialect::guess("[[service]]\nname = \"web\"\n"), None);
}

fn text() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "http",
        "stream",
        "upstream",
        "server",
        "listen",
        "backend",
        "frontend",
        "bind",
        "default_backend",
        "{",
        "}",
        ";",
        "\n",
        "\"",
        "\\",
        "#",
        "10.0.0.1:80",
        "[::1]:80",
        "198.51.100.10:80-90",
        "*:0",
        "weight",
        "weight=9",
        "check",
        "web",
        "-A",
        "-a",
        "-t",
        "-r",
        "-M",
        "-p",
        "$x",
        "stick-table",
        "expire",
        "99999999999999999999d",
        "proxy_pass",
        "server-template",
        "option httpchk",
        "http-check send",
        "hdr X-Probe",
        "check-ssl",
        "ca-file /etc/ca.pem",
        "check-sni web",
        "1-65534000",
        "é",
        "virtual_server",
        "virtual_server_group",
        "group",
        "fwmark",
        "real_server",
        "sorry_server",
        "lb_kind",
        "DR",
        "TUN type gue",
        "TCP_CHECK",
        "HTTP_GET",
        "url",
        "path",
        "MISC_CHECK",
        "misc_path /bin/true",
        "10.0.0.1",
        "10.0.0.1-9",
        "$A=",
        "${A}",
        "persistence_timeout",
        "-f 1",
        "-i --tun-type gue",
    ]);
    let joined = prop::collection::vec(words, 0..60).prop_map(|words| words.join(" "));
    let mut whole = vec![NGINX.to_owned(), HAPROXY.to_owned(), IPVSADM.to_owned()];
    whole.extend(SAMPLES.iter().map(|(_, sample, _)| text_of(sample)));
    let cut = (prop::sample::select(whole), any::<prop::sample::Index>())
        .prop_map(|(text, at)| text.chars().take(at.index(text.len())).collect());
    prop_oneof![joined, cut, any::<String>()]
}

proptest! {
    #[test]
    fn when_any_text_is_converted_then_the_result_is_an_error_or_passes_the_check(text in text()) {
        for dialect in Dialect::ALL {
            for addresses in [&[][..], &["198.51.100.77", "2001:db8::77"]] {
                if let Ok(conversion) = crate::support::try_convert(dialect, "file", &text, addresses) {
                    checked(&conversion);
                }
            }
        }
    }
}
