//! Tests that run `balancer import` as a process.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_balancer");

fn import(directory: &Path, args: &[&str]) -> Output {
    Command::new(BINARY).current_dir(directory).arg("import").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn with(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

const ALL_CONVERTED: &str = "listen web\n bind 198.51.100.10:80\n server a 10.0.0.1:8080 check\n";

#[test]
fn when_everything_is_converted_then_the_exit_code_is_0_and_the_result_passes_the_check() {
    let directory = with(&[("haproxy.cfg", ALL_CONVERTED)]);
    let output = import(directory.path(), &["haproxy.cfg", "-o", "balancer.toml"]);
    assert_eq!(text(&output.stderr), "1 service, 1 backend; 0 directives need you\n");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), ""));
    let check = Command::new(BINARY).current_dir(directory.path()).args(["check", "balancer.toml"]).output().unwrap();
    assert_eq!(text(&check.stdout), "balancer.toml: ok: 1 service, 1 backend\n", "{}", text(&check.stderr));
}

#[test]
fn when_the_output_is_a_hyphen_then_it_is_standard_output_and_no_file_is_made() {
    let directory = with(&[("haproxy.cfg", ALL_CONVERTED)]);
    let output = import(directory.path(), &["haproxy.cfg", "-o", "-"]);
    assert!(text(&output.stdout).contains("[[service]]"), "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    assert!(!directory.path().join("-").exists());
}

#[test]
fn when_the_balancer_will_run_here_then_the_interfaces_of_this_machine_are_named_or_it_is_said_why_not() {
    let directory = with(&[("haproxy.cfg", &ALL_CONVERTED.replace("198.51.100.10", "*"))]);
    let output = import(directory.path(), &["haproxy.cfg", "--here"]);
    assert!(text(&output.stderr).starts_with("--here: no service has an address"), "{output:?}");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""));
    // The machine of the test may have no route at all.
    let output = import(directory.path(), &["haproxy.cfg", "--here", "--address", "198.51.100.10"]);
    let (said, result) = (text(&output.stderr), text(&output.stdout));
    match output.status.code() {
        Some(0) => assert!(result.contains("\ninterfaces = [\""), "{result}"),
        code => assert!(code == Some(2) && said.contains("no interface of this machine leads"), "{said}"),
    }
}

#[test]
fn when_something_needs_a_human_then_the_exit_code_is_1_and_the_result_says_what() {
    let directory = with(&[("haproxy.cfg", &format!("{ALL_CONVERTED} acl api path_beg /api\n"))]);
    let output = import(directory.path(), &["haproxy.cfg", "--from", "haproxy"]);
    let said = text(&output.stderr);
    let line = "haproxy.cfg:4: acl api path_beg /api: this is layer 7, which this balancer does not do; ";
    assert!(said.starts_with(line) && said.ends_with("\n1 service, 1 backend; 1 directive needs you\n"), "{said}");
    assert_eq!((said.lines().count(), output.status.code()), (2, Some(1)));
    let result = text(&output.stdout);
    let line = "\n# NEEDS YOU (line 4): acl api path_beg /api: this is layer 7, which this balancer does not do; ";
    assert!(result.contains(line), "{result}");
}

#[test]
fn when_a_configuration_is_not_understood_then_the_exit_code_is_2_and_nothing_is_written() {
    let large = format!("global\n{}", " log /dev/log local0\n".repeat(900_000));
    let directory = with(&[
        ("haproxy.cfg", ALL_CONVERTED),
        ("nginx.conf", "events {}\nhttp {\n"),
        ("notes.txt", "Our balancer is the one in the cellar.\n"),
        ("large.cfg", &large),
        ("there.toml", "mine\n"),
    ]);
    for (args, why) in [
        (&["nginx.conf"][..], "nginx.conf:2: `http` is not closed"),
        (
            &["notes.txt"],
            "notes.txt: it is not known whose configuration this is; give --from nginx, haproxy, keepalived",
        ),
        (&["notes.txt", "--from", "keepalived"], "notes.txt: read as keepalived, it has no `virtual_server`"),
        (&["missing.cfg"], "missing.cfg: it cannot be opened: No such file"),
        (&["."], ".: it cannot be read: Is a directory"),
        (&["large.cfg"], "large.cfg: it has more than 16 MiB"),
        (
            &["haproxy.cfg", "nginx.conf"],
            "nginx.conf: it looks like a file of nginx, and haproxy.cfg like one of haproxy",
        ),
        (&["haproxy.cfg", "-o", "there.toml"], "there.toml: it exists, and is left as it is; name another file"),
        (&["haproxy.cfg", "-o", "no/where.toml"], "no/where.toml: it cannot be made: No such file"),
    ] {
        let output = import(directory.path(), args);
        assert!(text(&output.stderr).starts_with(why), "{args:?}: {}", text(&output.stderr));
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{args:?}");
    }
    assert_eq!(fs::read_to_string(directory.path().join("there.toml")).unwrap(), "mine\n");
    for (args, why) in [
        (
            &["haproxy.cfg", "--from", "traefik"][..],
            "\"traefik\" is not read; give nginx, haproxy, keepalived or ipvsadm",
        ),
        (&["haproxy.cfg", "--address", "0.0.0.0"], "is the wildcard"),
        (&["haproxy.cfg", "--address", "198.51.100.10:80"], "write 198.51.100.10"),
    ] {
        let output = import(directory.path(), args);
        assert!(text(&output.stderr).contains(why), "{args:?}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn when_a_file_includes_others_then_they_are_found_beside_it_and_named() {
    let server = "upstream web { server 10.0.0.1:8080; server unix:/run/web.sock; }\n\
                  server { listen 198.51.100.10:80; location / { proxy_pass http://web; } }\n";
    let directory = with(&[
        (
            "etc/nginx.conf",
            "events {}\nhttp {\n include conf.d/*.conf;\n include sites/*.conf;\n include gone.conf;\n}\n",
        ),
        ("etc/conf.d/web.conf", server),
        ("etc/conf.d/web.conf.old", "server {"),
    ]);
    let output = import(directory.path(), &["etc/nginx.conf"]);
    let said = text(&output.stderr);
    for line in [
        "etc/conf.d/web.conf:1: server unix:/run/web.sock: ",
        "etc/nginx.conf:4: include sites/*.conf: there is no such file here",
        "\n1 service, 1 backend; 3 directives need you\n",
    ] {
        assert!(said.contains(line), "no {line} in {said}");
    }
    let result = text(&output.stdout);
    for line in [
        "# NEEDS YOU (line 1 of etc/conf.d/web.conf): server unix:/run/web.sock: ",
        "# NEEDS YOU (line 4): include sites/*.conf: there is no such file here; name the file on the command line as well\n",
        "# NEEDS YOU (line 5): include gone.conf: there is no such file here; ",
        "address = \"10.0.0.1:8080\"",
    ] {
        assert!(result.contains(line), "no {line} in {result}");
    }
    // The text imitates the output of `nginx -T`, which contains all files.
    let dump = format!(
        "# configuration file /etc/nginx/nginx.conf:\nhttp {{\ninclude conf.d/*.conf;\n}}\n\n\
         # configuration file /etc/nginx/conf.d/web.conf:\n{server}\n"
    );
    let mut child = Command::new(BINARY)
        .args(["import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(text(&output.stderr).ends_with("\n1 service, 1 backend; 1 directive needs you\n"));
    assert!(text(&output.stdout).contains("(line 1 of /etc/nginx/conf.d/web.conf): server unix:/run/web.sock: "));
}

fn chapter() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap();
    fs::read_to_string(root.join("docs/src/moving.md")).unwrap()
}

/// Returns the text of the code block whose first line is `head`.
fn block(chapter: &str, head: &str) -> String {
    let (_, rest) = chapter.split_once(head).expect(head);
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn when_the_books_examples_are_converted_then_the_results_are_the_books() {
    let chapter = chapter();
    let directory = with(&[("nginx.conf", &block(&chapter, "```nginx\n"))]);
    let mut typed = 0;
    for command in chapter.lines().filter_map(|line| line.strip_prefix("$ balancer ")) {
        let args: Vec<&str> = command.split_whitespace().collect();
        // Other tests already check the output of `simulate`.
        if args.first() == Some(&"simulate") {
            continue;
        }
        let output = Command::new(BINARY).current_dir(directory.path()).args(&args).output().unwrap();
        let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
        let shown = block(&chapter, &format!("$ balancer {command}\n"));
        let shown = shown.split("\n$ ").next().unwrap().trim_end();
        assert_eq!(shown, printed.trim_end(), "balancer {command}");
        typed += 1;
    }
    assert_eq!(typed, 2);
    let result = fs::read_to_string(directory.path().join("balancer.toml")).unwrap();
    assert_eq!(block(&chapter, "```toml\n"), result);
}
