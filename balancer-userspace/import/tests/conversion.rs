//! What is made of configurations passes the balancer's own check, and no text makes the conversion panic.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

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
    let files = [("file".to_owned(), text.to_owned())];
    convert(dialect, &files, &mut |_| Err("there is no such file".to_owned())).unwrap()
}

/// The configuration, after the balancer's check of it.
fn checked(conversion: &Conversion) -> String {
    let text = conversion.toml();
    let parsed = balancer_model::file::parse(Path::new("balancer.toml"), text.as_bytes());
    assert!(parsed.is_ok(), "{}\n{text}", parsed.unwrap_err());
    text
}

fn assert_has(text: &str, wanted: &[&str]) {
    for each in wanted {
        assert!(text.contains(each), "no {each} in\n{text}");
    }
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
        "# not converted (line 8): server unix:/run/web.sock: ",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_a_file_of_haproxy_is_converted_then_its_options_stand_in_the_result() {
    let conversion = converted(Dialect::Haproxy, HAPROXY);
    assert_eq!(conversion.summary(), "1 service, 4 backends; 1 directive needs you");
    let wanted = [
        "remember = \"1800s\"\n",
        "type = \"http\"\n  interval = \"3000ms\"\n  fall = 4\n  rise = 1\n  method = \"GET\"\n  path = \"/healthz\"\n",
        "name = \"a\"\n  address = \"10.0.0.11:8080\"\n  weight = 10\n",
        "name = \"b\"\n  address = \"10.0.0.12:8080\"\n  weight = 0 ",
        "name = \"c\"\n  address = \"10.0.0.13:8080\"\n  weight = 1\n  backup = true\n  check = { type = \"none\" }\n",
        "name = \"d2\"\n  address = \"10.0.0.14:8080\"\n",
        // Both servers of the template have one address and port, which nat cannot tell apart.
        "# not converted (line 19): d3 in web: ",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_rules_of_ipvs_are_converted_then_methods_and_persistence_stand_in_the_result() {
    let conversion = converted(Dialect::Ipvsadm, IPVSADM);
    assert_eq!(conversion.summary(), "2 services, 3 backends; 1 directive needs you");
    let wanted = [
        "forwarding = \"dsr\"\nclient_prefix = { v4 = 24, v6 = 64 }\nremember = \"600s\"\n",
        "address = \"10.0.0.12:80\"\n  weight = 3\n",
        "listen = [\"[2001:db8::10]:53/udp\"]\nforwarding = \"ipip\"\n",
        "# not converted (line 4): -s rr: ",
    ];
    assert_has(&checked(&conversion), &wanted);
}

#[test]
fn when_tls_ends_at_the_proxy_then_nothing_is_converted_and_the_error_says_why() {
    let text = "listen web\n bind 198.51.100.10:443 ssl crt /a.pem\n server a 10.0.0.1:80\n";
    let files = [("haproxy.cfg".to_owned(), text.to_owned())];
    let error = convert(Dialect::Haproxy, &files, &mut |_| Ok(Vec::new())).unwrap_err().to_string();
    assert_has(&error, &["line 2", "TLS", "keep HAProxy as the backend"]);
}

#[test]
fn when_a_file_includes_itself_then_it_is_refused() {
    let files = [("nginx.conf".to_owned(), "include nginx.conf;".to_owned())];
    let mut include = |_: &str| Ok(vec![("nginx.conf".to_owned(), "include nginx.conf;".to_owned())]);
    let error = convert(Dialect::Nginx, &files, &mut include).unwrap_err().to_string();
    assert_has(&error, &["too deeply"]);
}

#[test]
fn when_the_kind_is_not_given_then_it_is_guessed() {
    for (text, dialect) in [(NGINX, Dialect::Nginx), (HAPROXY, Dialect::Haproxy), (IPVSADM, Dialect::Ipvsadm)] {
        assert_eq!(Dialect::guess(text), Some(dialect));
    }
    assert_eq!(Dialect::guess("[[service]]\nname = \"web\"\n"), None);
}

/// The programs themselves say that the inputs above are configurations.
#[test]
fn what_is_converted_is_accepted_by_the_programs_themselves() {
    let directory = std::env::temp_dir().join(format!("balancer-import-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let (nginx, haproxy) = (directory.join("nginx.conf"), directory.join("haproxy.cfg"));
    // `nginx -t` opens the sockets, so that the address has to be one of this machine.
    let local = NGINX.replace("198.51.100.10", "127.0.0.1");
    fs::write(&nginx, format!("pid {}/pid;\n{local}", directory.display())).unwrap();
    fs::write(&haproxy, HAPROXY).unwrap();
    let run = |program: &str, arguments: &[&str], file: &Path| {
        let output = Command::new(program).args(arguments).arg(file).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask setup` installs it"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("nginx", &["-t", "-c"], &nginx);
    run("haproxy", &["-c", "-f"], &haproxy);
    fs::remove_dir_all(&directory).unwrap();
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
        "1-65534000",
        "é",
    ]);
    let joined = prop::collection::vec(words, 0..60).prop_map(|words| words.join(" "));
    let cut = (prop::sample::select(vec![NGINX, HAPROXY, IPVSADM]), any::<prop::sample::Index>())
        .prop_map(|(text, at)| text.chars().take(at.index(text.len())).collect());
    prop_oneof![joined, cut, any::<String>()]
}

proptest! {
    #[test]
    fn whatever_the_text_then_the_result_is_an_error_or_passes_the_check(text in text()) {
        for dialect in [Dialect::Nginx, Dialect::Haproxy, Dialect::Ipvsadm] {
            let files = [("file".to_owned(), text.clone())];
            if let Ok(conversion) = convert(dialect, &files, &mut |_| Ok(Vec::new())) {
                checked(&conversion);
            }
        }
    }
}
