//! Tests that `balancer client import` takes over clients from nginx's log and HAProxy's socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "other tests use more of it")]
mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Output,
    thread,
};

use support::Fake;

async fn import(socket: &Path, args: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_balancer"))
        .args(["client", "import"])
        .args(args)
        .env("BALANCER_SOCKET", socket)
        .output()
        .await
        .unwrap()
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [&*output.stdout, &*output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Answers `commands` commands on a socket as HAProxy does, which closes the connection after each.
fn haproxy(directory: &Path, commands: usize) -> PathBuf {
    let path = directory.join("haproxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for _ in 0..commands {
            let mut stream = listener.accept().unwrap().0;
            let mut command = String::new();
            BufReader::new(&stream).read_line(&mut command).unwrap();
            let answer = match command.trim() {
                "show table web" => {
                    "# table: web, type: ip, size:102400, used:2\n\
                     0x55e0: key=203.0.113.7 use=0 exp=1799123 shard=0 server_id=1 server_key=web1\n\
                     0x55e1: key=203.0.113.8 use=0 exp=1799123 shard=0 server_id=2 server_key=web2\n\n"
                }
                "show table" => {
                    "# table: shop, type: ip, size:102400, used:2\n# table: web, type: ip, size:102400, used:2\n\n"
                }
                _ => "No such table\n\n",
            };
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    path
}

#[tokio::test]
async fn when_clients_are_taken_over_from_nginxs_log_then_addresses_name_the_backends() {
    let fake = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let line = |client: &str, more: &str| {
        format!("{client} - - [10/Oct/2000:12:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"curl\"{more}\n")
    };
    let log = line("203.0.113.7", " 10.0.0.12:8080, 10.0.0.11:8080") + &line("203.0.113.8", " 10.0.0.12:8080");
    let log = write("access.log", &log);
    let socket = fake.socket();
    let known = (Some(0), "service web: 2 clients known from the file\n".to_owned());
    assert_eq!(told(&import(&socket, &["web", &log, "--from", "nginx"]).await), known);
    let lines = write("lines", "203.0.113.7 10.0.0.12:8080\n203.0.113.8 10.0.0.12:8080, 10.0.0.11:8080\n");
    assert_eq!(told(&import(&socket, &["web", &lines]).await), known);
    let given = write("given.log", "203.0.113.7|10.0.0.12:8080|/\n203.0.113.8|10.0.0.11:8080|/\n");
    let format = ["--format", "$remote_addr|$upstream_addr|$uri"];
    assert_eq!(told(&import(&socket, &[&["web", &given, "--from", "nginx"][..], &format].concat()).await), known);

    let without = write("without.log", &line("203.0.113.7", ""));
    let other = write("other", "203.0.113.7 10.0.0.4:8080\n");
    for (args, code, wanted) in [
        (&["web", &without, "--from", "nginx"][..], 1, "let nginx log $upstream_addr"),
        (&["web", &other], 1, ":1: there is no backend \"10.0.0.4:8080\"; they are: web1 (10.0.0.11:8080)"),
        (&["web", &log, "--from", "nginx", "--format", "combined"], 2, "with $remote_addr and $upstream_addr"),
        (
            &["web", &log, "--from", "haproxy", "--format", "$remote_addr $upstream_addr"],
            2,
            "--format is for --from nginx",
        ),
        (&["web", &log, "--from", "nginx", "--table", "web"], 2, "--table is for --from haproxy"),
    ] {
        let (found, said) = told(&import(&socket, args).await);
        assert!(found == Some(code) && said.contains(wanted), "{args:?}: {found:?} {said}");
    }
}

/// The format that the chapter about switching tells nginx to log, without nginx's quotes.
fn format_of_the_book() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let chapter = fs::read_to_string(root.join("docs/src/switching.md")).unwrap();
    let (_, format) = chapter.split_once("log_format servers ").unwrap();
    let (format, _) = format.split_once(';').unwrap();
    format.split('\'').skip(1).step_by(2).collect()
}

#[tokio::test]
async fn when_nginx_logs_as_in_the_book_then_its_log_is_read_with_and_without_the_format() {
    let fake = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let format = format_of_the_book();
    let line = |client: &str, server: &str| {
        let values = [
            ("$remote_addr", client),
            ("$remote_user", "-"),
            ("$time_local", "10/Oct/2000:12:00:00 +0000"),
            ("$request", "GET / HTTP/1.1"),
            ("$status", "200"),
            ("$body_bytes_sent", "5"),
            ("$http_referer", "-"),
            ("$http_user_agent", "curl"),
            ("$upstream_addr", server),
        ];
        values.iter().fold(format.clone(), |line, (name, value)| line.replace(name, value)) + "\n"
    };
    let log = directory.path().join("servers.log");
    fs::write(&log, line("203.0.113.7", "10.0.0.12:8080") + &line("203.0.113.8", "10.0.0.11:8080")).unwrap();
    let log = log.to_str().unwrap();
    for more in [&[][..], &["--format", &format]] {
        let output = import(&fake.socket(), &[&["web", log, "--from", "nginx"][..], more].concat()).await;
        assert_eq!(told(&output), (Some(0), "service web: 2 clients known from the file\n".to_owned()));
    }
}

#[tokio::test]
async fn when_clients_are_taken_over_from_haproxys_socket_then_its_table_is_asked_for() {
    let fake = Fake::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = haproxy(directory.path(), 3);
    let path = path.to_str().unwrap();
    let socket = fake.socket();
    let (code, said) = told(&import(&socket, &["web", path, "--from", "haproxy"]).await);
    assert_eq!((code, said.as_str()), (Some(0), "service web: 2 clients known from the file\n"));
    let (code, said) = told(&import(&socket, &["web", path, "--from", "haproxy", "--table", "wbe"]).await);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("HAProxy has no stick table \"wbe\"; choose one with --table, of: shop, web"), "{said}");
    let (code, said) = told(&import(&socket, &["web", path]).await);
    assert!(code == Some(2) && said.contains("give --from haproxy"), "{said}");
}
