//! Tests that each network namespace has its own pinned maps, which the balancer removes when the namespace no longer
//! exists.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, thread, time::Duration};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    namespace::Namespace,
    site::Site,
    topology::{Family, Shape},
};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    restart::{own_pins, pins},
    support::wait,
};

/// Gives the calling thread and its child processes a separate BPF file system, without the pinned maps of other tests.
fn own_file_system() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
}

fn site() -> Site {
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, |settings, _| {
        settings.on_exit = "keep";
        settings.remember = "1h";
        Ok(())
    })
    .unwrap()
}

/// Starts a site and kills its balancer, and returns the site and the remaining directory of pinned maps.
fn killed() -> (Site, PathBuf) {
    let mut site = site();
    site.homes(Family::V4, 1..=20).unwrap();
    site.controller().process().kill().unwrap();
    let left = pins(&site);
    (site, left)
}

fn inode(host: &Namespace) -> u64 {
    host.run_in_thread(|| fs::metadata("/proc/thread-self/ns/net").unwrap().ino()).unwrap()
}

/// Returns the output of `balancer detach`.
fn detach(host: &Namespace, options: &[&str]) -> String {
    let output = host.command(binaries::balancer().unwrap()).arg("detach").args(options).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn when_a_network_namespace_is_gone_then_the_next_balancer_clears_its_maps() {
    own_file_system();
    let (gone, left) = killed();
    let mut other = site();
    assert!(left.exists(), "it was cleared while its namespace lived");
    drop(gone);
    wait("its maps stay", || {
        other.kill_and_restart(|_| {}).unwrap();
        !left.exists()
    });
    assert_eq!(own_pins(other.topology().balancer()).len(), 1);
}

/// The kernel may give a new namespace the inode number of a namespace that no longer exists.
#[test]
fn when_a_namespace_has_the_inode_of_one_that_is_gone_then_a_balancer_starts_there_without_its_maps() {
    own_file_system();
    let (first, left) = killed();
    let second = site();
    let name = left.file_name().unwrap().to_str().unwrap();
    let (_, rest) = name.split_once('-').unwrap();
    let renamed = left.with_file_name(format!("{}-{rest}", inode(second.topology().balancer())));
    fs::rename(&left, &renamed).unwrap();
    let mut second = second;
    second.kill_and_restart(|_| {}).unwrap();
    assert!(!renamed.exists());
    assert_eq!(second.homes(Family::V4, 1..=20).unwrap().len(), 20);
    drop(first);
}

#[test]
fn when_programs_are_left_elsewhere_then_detach_names_them_and_with_all_removes_them() {
    own_file_system();
    let (site, left) = killed();
    let elsewhere = Namespace::new("elsewhere").unwrap();
    let words = detach(&elsewhere, &[]);
    assert!(words.starts_with("nothing to detach") && words.contains("1 controller did in other"), "{words}");
    assert!(left.exists());
    assert_eq!(detach(&elsewhere, &["--all"]), "detached from 1 interface, pinned maps removed\n");
    assert!(!left.exists());
    let shown = site.topology().balancer().ip("-details link show dev eth0").unwrap();
    assert!(!shown.contains("prog/xdp"), "{shown}");
    assert!(detach(&elsewhere, &["--all"]).contains("on this machine"));
}

/// The process with the lock may be `balancer detach`, or a child of the killed controller that has not executed its
/// program yet.
#[test]
fn when_another_process_has_the_lock_for_a_moment_then_a_start_waits_for_it() {
    own_file_system();
    let (mut site, left) = killed();
    let lock = Flock::lock(fs::File::open(&left).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let words = detach(&Namespace::new("elsewhere").unwrap(), &[]);
    assert!(words.starts_with("nothing to detach") && !words.contains("did in other"), "{words}");
    let holder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(lock);
    });
    site.start_again().unwrap();
    holder.join().unwrap();
    assert_eq!(own_pins(site.topology().balancer()), [left]);
}

#[test]
fn when_a_controller_runs_then_detach_refuses_and_says_which_that_is() {
    own_file_system();
    let mut site = site();
    let pid = site.controller().process().pid();
    let lock = pins(&site);
    let held = Flock::lock(fs::File::open(&lock).unwrap(), FlockArg::LockExclusiveNonblock);
    assert!(held.is_err(), "the living one has no lock");
    let words = site.topology().balancer().command(binaries::balancer().unwrap()).arg("detach").output().unwrap();
    let words = String::from_utf8(words.stderr).unwrap();
    assert!(words.contains(&format!("a controller (process {pid}) is running with pinned maps")), "{words}");
}
