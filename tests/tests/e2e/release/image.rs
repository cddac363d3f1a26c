//! Tests of the image of `packaging/Containerfile`, which podman runs as the book describes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    namespace::run,
    site::Site,
    topology::{Family, Shape},
};
use tempfile::TempDir;

const CONTAINERFILE: &str = include_str!("../../../../packaging/Containerfile");
const BOOK: &str = include_str!("../../../../docs/src/operations.md");

/// The options of `podman run` in the book, except for the volumes.
fn options() -> Vec<&'static str> {
    let (_, command) = BOOK.split_once("podman run --rm --name balancer ").unwrap();
    let (command, _) = command.split_once("--volume").unwrap();
    command.split_whitespace().filter(|word| *word != "\\").collect()
}

/// A container engine whose images and containers are in a temporary directory.
struct Engine(TempDir);

impl Engine {
    /// Builds an image with the current build's program and its libraries. The released program is statically linked
    /// and needs no libraries.
    fn with_image() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let context = this.0.path().join("context");
        fs::create_dir(&context).unwrap();
        let program = binaries::balancer().unwrap();
        fs::copy(&program, context.join("balancer")).unwrap();
        let libraries = run(Command::new("ldd").arg(&program)).unwrap();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            let to = context.join("libraries").join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
        let text = CONTAINERFILE.replace("FROM scratch\n", "FROM scratch\nCOPY libraries /\n");
        assert!(text.contains("libraries"), "{text}");
        fs::write(context.join("Containerfile"), text).unwrap();
        let script = this.script("build", "podman \"$@\"");
        run(Command::new(script).args(["build", "--tag", "balancer"]).arg(&context)).unwrap();
        this
    }

    /// Creates a script that runs the shell line `line`. In the script, `podman` uses the directory of the test's
    /// engine.
    fn script(&self, name: &str, line: &str) -> PathBuf {
        let script = self.0.path().join(name);
        let place = self.0.path().display();
        // The script mounts only version 2 of the control groups. If both cgroup versions are mounted, the container
        // engine starts no container.
        let text = format!(
            "#!/bin/sh\n[ $# -gt 0 ] && [ \"$1\" != run ] && [ \"$1\" != build ] && exec {balancer} \"$@\"\n\
             [ \"$IN_ITS_OWN\" ] || IN_ITS_OWN=1 exec unshare --mount \"$0\" \"$@\"\n\
             umount --lazy /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup\n\
             podman() {{ exec podman --root {place}/store --runroot {place}/run --storage-driver vfs \
             --cgroup-manager cgroupfs --events-backend none \"$@\"; }}\n{line}\n",
            balancer = binaries::balancer().unwrap().display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }

    /// Creates a script that serves as `balancer`, and executes `run` in a container with the files in `files`.
    fn balancer(&self, files: &Path) -> PathBuf {
        let options = options().join(" ");
        // The limits of the machine that runs the test may be lower than the container engine's defaults.
        let limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --cgroups disabled";
        let files = files.display();
        self.script(
            "balancer",
            &format!(
                "podman run --rm {limits} {options} --volume /sys/fs/bpf:/sys/fs/bpf --volume {files}:{files} balancer \"$@\""
            ),
        )
    }
}

/// Tests packets of both families, and that known clients stay across a restart and while no container runs.
#[test]
fn when_the_image_is_run_as_the_book_says_then_it_steers_and_the_next_container_goes_on() {
    let engine = Engine::with_image();
    let files = tempfile::tempdir().unwrap();
    for words in ["--network host", "--cap-drop all", "--cap-add BPF,NET_ADMIN,NET_RAW,PERFMON", "--read-only"] {
        assert!(options().join(" ").contains(words), "{words} is not in the book: {:?}", options());
    }
    let mut site = Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.binary = Some(engine.balancer(&std::env::temp_dir()));
        settings.families = Family::BOTH.to_vec();
        settings.on_exit = "keep";
        settings.remember = "60s";
        settings.state = Some(files.path().to_owned());
        Ok(())
    })
    .unwrap();
    let homes = |site: &Site| Family::BOTH.map(|family| site.homes(family, 1..=20).unwrap());
    let before = homes(&site);
    site.cli(&["backend", "weight", "web/web1", "50"]).unwrap();
    site.restart(|_| {}).unwrap();
    let log = fs::read_to_string(site.files().join("balancer.log")).unwrap();
    assert!(log.contains("took over the maps that process 1 left"), "{log}");
    assert_eq!(homes(&site), before, "known clients stay");
    site.controller().process().stop().unwrap();
    assert_eq!(homes(&site), before, "without a container");
    assert!(site.detach().unwrap().status.success());
}
