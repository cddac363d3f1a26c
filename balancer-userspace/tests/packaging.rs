//! Checks the Debian package: the systemd unit, the default configuration, and all files that they name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use balancer_common::map_types::LAYOUT_VERSION;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn packaging(file: &str) -> String {
    fs::read_to_string(root().join("packaging").join(file)).unwrap()
}

fn balancer(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_balancer")).args(args).output().unwrap()
}

#[test]
fn when_the_package_names_a_file_then_it_exists_or_is_generated() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("balancer-userspace/Cargo.toml")).unwrap().parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let mut installed = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let [source, target, mode] = [0, 1, 2].map(|index| asset[index].as_str().unwrap());
        installed.push(if target.ends_with('/') {
            format!("/{target}{}", source.rsplit('/').next().unwrap())
        } else {
            format!("/{target}")
        });
        assert!(["755", "644", "640"].contains(&mode), "{source}");
        let generated = ["target/release/balancer", "../target/package/"].iter().any(|made| source.starts_with(made));
        let path = root().join("balancer-userspace").join(source);
        let exists = match source.strip_suffix("/*") {
            Some(_) => fs::read_dir(path.parent().unwrap()).is_ok_and(|mut files| files.next().is_some()),
            None => path.is_file(),
        };
        assert!(generated || exists, "{source} does not exist");
    }
    for file in deb["conf-files"].as_array().unwrap() {
        assert!(installed.contains(&file.as_str().unwrap().to_owned()), "{file} is not installed: {installed:?}");
    }
    let scripts = root().join("balancer-userspace").join(deb["maintainer-scripts"].as_str().unwrap());
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        let check = Command::new("sh").arg("-n").arg(scripts.join(script)).output().unwrap();
        assert!(check.status.success(), "{script}: {}", String::from_utf8_lossy(&check.stderr));
    }
    let unit = packaging("balancer.service");
    for path in ["/usr/sbin/balancer", "/etc/balancer/balancer.toml"] {
        assert!(unit.contains(path) && installed.iter().any(|file| file == path), "{path}");
    }
}

#[test]
fn when_the_package_is_upgraded_then_its_script_and_its_program_name_the_same_layout_of_maps() {
    let script = packaging("debian/preinst");
    let layout = script.lines().find_map(|line| line.strip_prefix("layout=")).unwrap();
    assert_eq!(layout, LAYOUT_VERSION.to_string());
    let words = String::from_utf8(balancer(&["--version"]).stdout).unwrap();
    let lines: Vec<&str> = words.lines().collect();
    let [version, told] = lines[..] else { unreachable!("{words}") };
    assert_eq!(version, concat!("balancer ", env!("CARGO_PKG_VERSION")));
    let prefix = "layout of kept maps: ";
    assert_eq!(told, format!("{prefix}{layout}"));
    assert!(script.contains(&format!("s/^{prefix}//p")), "the script reads this line");
}

#[test]
fn when_the_default_configuration_is_used_then_traffic_flows_and_its_examples_are_valid() {
    let text = packaging("balancer.toml");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.toml");
    let path = file.to_str().unwrap();

    fs::write(&file, &text).unwrap();
    let output = balancer(&["check", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("no [[service]] in the file; add at least one\n"));

    let uncommented: String = text
        .lines()
        .map(|line| {
            format!(
                "{}\n",
                line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') || rest.starts_with("  ")).unwrap_or(line)
            )
        })
        .collect();
    fs::write(&file, uncommented).unwrap();
    let output = balancer(&["check", path]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{path}: ok: 1 service, 2 backends\n"));
    assert!(text.lines().any(|line| line == "on_exit = \"keep\""));
}

/// If systemd is installed, it verifies the unit. `tests/tests/e2e/service_manager.rs` tests the capabilities in the
/// unit.
#[test]
fn when_systemd_verifies_the_unit_then_it_accepts_it() {
    let unit = packaging("balancer.service");
    for line in [
        "Type=notify",
        "Restart=on-failure",
        "NoNewPrivileges=yes",
        "User=balancer",
        "CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON",
        "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_NET_RAW CAP_PERFMON",
        // The balancer needs `AF_PACKET`, the last family in this line, to announce VIPs.
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("balancer.service");
    fs::write(&file, unit.replace("/usr/sbin/balancer", env!("CARGO_BIN_EXE_balancer"))).unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=one"]).arg(&file).output() {
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !words.contains("balancer.service:"), "{words}");
        }
        Err(error) => println!("not verified: systemd-analyze: {error}"),
    }
}

#[test]
fn when_the_program_for_clusters_is_packed_then_its_files_exist_and_its_unit_names_them() {
    let crates = root().join("balancer-userspace/kubernetes");
    let manifest: toml::Table = fs::read_to_string(crates.join("Cargo.toml")).unwrap().parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    for asset in deb["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        assert!(source == "target/release/balancer-kubernetes" || crates.join(source).is_file(), "{source}");
    }
    let scripts = crates.join(deb["maintainer-scripts"].as_str().unwrap());
    for script in ["postinst", "prerm", "postrm"] {
        let check = Command::new("sh").arg("-n").arg(scripts.join(script)).output().unwrap();
        assert!(check.status.success(), "{script}: {}", String::from_utf8_lossy(&check.stderr));
    }
    let unit = packaging("balancer-kubernetes.service");
    let options = packaging("balancer-kubernetes.default");
    assert!(unit.contains("\nExecStart=/usr/sbin/balancer-kubernetes run $OPTIONS\n"), "{unit}");
    assert!(unit.contains("\nEnvironmentFile=/etc/default/balancer-kubernetes\n"), "{unit}");
    assert!(unit.contains("\nCapabilityBoundingSet=\n") && !unit.contains("ReadWritePaths="), "{unit}");
    assert!(options.lines().any(|line| line.starts_with("OPTIONS=\"--kubeconfig=/etc/balancer/")), "{options}");
}
