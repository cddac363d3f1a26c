//! Tests that run `balancer check` on valid and invalid files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn check(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_balancer")).arg("check").arg(file).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn configs(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension() == Some(OsStr::new("toml")));
    files.sort();
    files
}

/// Writes `contents` to a file in a temporary directory, which is removed when the first returned value is dropped.
fn written(contents: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.toml");
    fs::write(&file, contents).unwrap();
    (directory, file)
}

const GOOD: &str = r#"
[[service]]
name = "web"
address = "198.51.100.10:80"
forwarding = "nat"
"#;

#[test]
fn when_a_configuration_is_bad_then_it_is_refused_with_its_line_and_a_hint() {
    let files = configs("bad_configs");
    assert!(files.len() >= 25, "{} files", files.len());
    for file in files {
        let contents = fs::read(&file).unwrap();
        let first = String::from_utf8_lossy(contents.split(|&byte| byte == b'\n').next().unwrap()).into_owned();
        let expected = first.strip_prefix("# expect: ").unwrap_or_else(|| panic!("{}: {first}", file.display()));
        let output = check(&file);
        assert_eq!(stderr(&output), format!("{}:{expected}\n", file.display()));
        assert_eq!(output.status.code(), Some(1), "{}", file.display());
        assert!(output.stdout.is_empty(), "{}", file.display());
        assert!(["; ", "expected"].iter().any(|hint| expected.contains(hint)), "{} gives no hint", file.display());
    }
}

#[test]
fn when_a_configuration_is_good_then_it_is_accepted() {
    let files = configs("good_configs");
    assert!(!files.is_empty());
    for file in files {
        let output = check(&file);
        assert_eq!(stderr(&output), "");
        assert_eq!(output.status.code(), Some(0), "{}", file.display());
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(line.starts_with(&format!("{}: ok: ", file.display())), "{line}");
    }
}

#[test]
fn when_a_file_is_valid_then_services_and_backends_are_counted() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/good_configs/minimal.toml");
    let output = check(&file);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}: ok: 1 service, 1 backend\n", file.display()));
}

#[test]
fn when_a_file_has_several_errors_then_all_are_reported_in_the_order_of_lines() {
    let (_directory, file) = written(
        "interfaces = [\"\"]\nxdp_mode = \"fast\"\n[[service]]\nname = \"a b\"\nadress = \"x\"\n\
         [[service.backend]]\nweight = 65536\n",
    );
    let output = check(&file);
    let text = stderr(&output);
    let prefix = format!("{}:", file.display());
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(&prefix).unwrap().split(':').next().unwrap()).collect();
    assert_eq!(lines, ["1", "2", "3", "3", "4", "5", "6", "6", "7"], "{text}");
}

#[test]
fn when_a_file_cannot_be_read_then_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.toml");
    let output = check(&missing);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!("{}: cannot be read: No such file or directory (os error 2)\n", missing.display())
    );

    let output = check(directory.path());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!("{}: cannot be read: Is a directory (os error 21)\n", directory.path().display())
    );
}

#[test]
fn when_a_file_is_larger_than_16_mib_then_it_is_refused() {
    let padding = "#".repeat((16 << 20) - GOOD.len());
    let (_directory, file) = written(format!("{GOOD}{padding}"));
    assert_eq!(check(&file).status.code(), Some(0));

    let (_directory, file) = written(format!("{GOOD}{padding}#"));
    let output = check(&file);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is larger than 16 MiB"), "{}", stderr(&output));
}

#[test]
fn when_there_are_more_backends_than_the_kernel_map_holds_then_the_file_is_refused() {
    let backends = |count: u32| {
        let mut text = format!("{}check = {{ type = \"none\" }}\ntable_size = 6553441\n", GOOD.replace("nat", "dsr"));
        for backend in 0..count {
            let address = std::net::Ipv4Addr::from(0x0a00_0001 + backend);
            text.push_str(&format!("[[service.backend]]\nname = \"b{backend}\"\naddress = \"{address}\"\n"));
        }
        text
    };
    let (_directory, file) = written(backends(65_534));
    assert_eq!(stderr(&check(&file)), "");

    let (_directory, file) = written(backends(65_535));
    let text = stderr(&check(&file));
    assert!(text.ends_with(": more than 65534 backends over all services; remove some\n"), "{text}");
}

#[test]
fn when_settings_are_doubtful_then_the_file_is_accepted_with_a_warning() {
    let backend = "[[service.backend]]\nname = \"web1\"\naddress = \"10.0.0.1\"\n";
    for (settings, warning) in [
        ("table_size = 97\n", ":6: warning: table_size = 97 is below 100 slots for each of 1 backends"),
        ("renamed_from = \"web\"\n", ":6: warning: renamed_from = \"web\" is its name: leave it out"),
        ("remember = \"0s\"\nfailback = \"stay\"\n", ":7: warning: failback = \"stay\" has no effect without memory"),
    ] {
        let (_directory, file) = written(format!("{GOOD}{settings}{backend}"));
        let output = check(&file);
        assert_eq!(output.status.code(), Some(0));
        let text = stderr(&output);
        assert!(text.starts_with(&format!("{}{warning}", file.display())), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let fleet = |keys: &str| format!("[fleet]\nname = \"site1\"\n{keys}{GOOD}{backend}");
    for (keys, warnings) in [
        ("endpoints = [\"https://192.0.2.1:2379\"]\n", &[][..]),
        (
            "endpoints = [\"https://192.0.2.1:2379\", \"http://192.0.2.2:2379\"]\n",
            &[":3: warning: \"http://192.0.2.2:2379\" is not encrypted"],
        ),
        (
            "endpoints = [\"http://192.0.2.2:2379\"]\nca = \"/etc/ca.pem\"\n",
            &[
                ":3: warning: \"http://192.0.2.2:2379\" is not encrypted",
                ":4: warning: no endpoint is https://: ca, cert and key have no effect",
            ],
        ),
    ] {
        let (_directory, file) = written(fleet(keys));
        let output = check(&file);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.lines().count(), warnings.len(), "{text}");
        for (line, warning) in text.lines().zip(warnings) {
            assert!(line.starts_with(&format!("{}{warning}", file.display())), "{line}");
        }
    }
    for (mode, check_lines, lines) in [
        ("dsr", "", 1),
        ("gue", "check = { type = \"http\" }\n", 1),
        ("ipip", "check = { type = \"tcp\", via = \"service\" }\n", 0),
        ("ipip", "check = { type = \"tcp\", via = \"backend\" }\n", 0),
        ("dsr", "check = { type = \"none\" }\n", 0),
        ("nat", "", 0),
    ] {
        let good = GOOD.replace("nat", mode);
        let (_directory, file) = written(format!("{good}{check_lines}{backend}"));
        let text = stderr(&check(&file));
        assert_eq!(text.lines().count(), lines, "{mode} {check_lines}{text}");
        let warning = ": warning: a backend without the VIP 198.51.100.10 counts as up ";
        assert!(text.is_empty() || text.contains(warning), "{text}");
    }
    let (_directory, file) =
        written(format!("[hash]\nkey = \"hex:000102030405060708090a0b0c0d0e0f\"\n{GOOD}{backend}"));
    let text = stderr(&check(&file));
    assert!(text.starts_with(&format!("{}: warning: the hash key is that of an example", file.display())), "{text}");
    let (_directory, file) = written(GOOD);
    assert!(stderr(&check(&file)).contains(":2: warning: [[service]] has no [[service.backend]]"));
}

#[test]
fn when_a_list_of_targets_is_named_then_each_of_its_targets_is_checked() {
    let (directory, file) = written("");
    let of_json = [
        "[{\"targets\":\n[\"web1\"]}]",
        "[{\"targets\": [\"10.0.0.1:80\"]}]",
        "[{\"targets\": [\"10.0.0.1:80\", \"10.0.0.2:80\"]}]",
    ];
    let of_yaml = [
        "- targets:\n  - web1\n",
        "- targets: ['10.0.0.1:80']\n",
        "- targets: [10.0.0.1:80]\n- targets: [10.0.0.2:80]\n",
    ];
    for (name, [wrong, few, right]) in [("targets.json", of_json), ("targets.yaml", of_yaml)] {
        let list = directory.path().join(name);
        fs::write(&file, format!("{GOOD}\n[[service.discover]]\nfile = {list:?}\nmin = 2\n")).unwrap();
        let refused = |text: &str, expected: &str| {
            fs::write(&list, text).unwrap();
            let output = check(&file);
            assert_eq!(output.status.code(), Some(1), "{text}");
            let told = stderr(&output);
            assert!(told.contains(&format!("{}: {expected}", list.display())), "{told}");
        };
        refused(wrong, "target 1: this target is no address of a backend; write \"192.0.2.1:80\"");
        refused(few, "has 1 target, fewer than min = 2");
        fs::write(&list, right).unwrap();
        let output = check(&file);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("ok: 1 service, 0 backends, 2 targets"), "{said}");
    }
}
