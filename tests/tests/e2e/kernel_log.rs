//! Tests of the kernel program's log of rare and unexpected events. A log level that is off must cost no instructions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapInfo;
use balancer_common::{map_types::Forwarding, verdict::DropReason};
use balancer_config::config::Protocol;
use balancer_testkit::{
    binaries,
    frame::{ACK, Frame},
    rig::{Rig, Service, Setup, Target, backend_id},
    site::{PATIENCE, Site},
    topology::{Family, Shape},
};
use log::{Level, Log, Metadata, Record};

/// The number of log lines that one CPU may write about one kind of event in 2^30 ns.
const LINES: usize = 8;

const SERVICES: [Service; 2] = [
    Service {
        address: "198.51.100.20:80",
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Nat,
        target: Target::SameInterface("10.0.0.21:8080"),
    },
    Service {
        address: "198.51.100.21:80",
        protocol: Protocol::Tcp,
        forwarding: Forwarding::Dsr,
        target: Target::Unreachable("10.0.0.22:80"),
    },
];

/// Returns a reply to a client whose route is unreachable.
fn without_route() -> Vec<u8> {
    Frame::tcp("10.0.0.21:8080", "192.0.2.200:40000", ACK).bytes()
}

/// Returns a packet for a backend whose next hop is unknown.
fn without_next_hop() -> Vec<u8> {
    Frame::tcp("203.0.113.7:40000", "198.51.100.21:80", ACK).bytes()
}

#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        assert_eq!((record.level(), record.target()), (Level::Debug, "balancer_ebpf::debug_log"));
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn when_an_unexpected_event_occurs_then_it_is_logged_with_its_number_and_a_limit() {
    let mut rig = Rig::with(&SERVICES, &Setup { tells: true, ..Setup::default() }).unwrap();
    let lines = Lines::default();
    let mut log = rig.log(lines.clone()).unwrap();
    let (started, rounds) = (Instant::now(), 500);
    for _ in 0..rounds {
        rig.run(&without_route()).unwrap();
        rig.run(&without_next_hop()).unwrap();
    }
    log.flush();
    let periods = started.elapsed().as_secs() as usize + 2;
    assert_eq!(rig.drops(DropReason::NoRoute).unwrap(), rounds, "each is counted");
    let lines = lines.0.lock().unwrap();
    // The value 2 in the expected line is BPF_FIB_LKUP_RET_UNREACHABLE.
    let no_next_hop = format!("a packet for backend row {}: no next hop", backend_id(1).0);
    for line in ["a reply has no way: the route lookup says 2", &no_next_hop] {
        let count = lines.iter().filter(|told| *told == line).count();
        let most = LINES * periods * thread::available_parallelism().unwrap().get();
        assert!((1..=most).contains(&count), "{line}: {count} of at most {most} in {lines:?}");
    }
}

/// Returns the number of a loaded program's instructions, and the number of instructions that use the map.
fn instructions(program: BorrowedFd<'_>, map: u32) -> (usize, usize) {
    const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
    const LOAD_64: u8 = 0x18;
    const PSEUDO_MAP_FD: u8 = 1;

    /// The fields of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
    #[repr(C)]
    struct Attribute {
        fd: u32,
        length: u32,
        info: u64,
    }
    /// The first fields of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_length: u32,
        translated_length: u32,
        jited: u64,
        translated: u64,
    }

    let ask = |info: &mut Info| {
        let length = size_of::<Info>() as u32;
        let attribute =
            Attribute { fd: program.as_raw_fd().cast_unsigned(), length, info: std::ptr::from_mut(info) as u64 };
        // SAFETY: the attribute and the memory to which it points outlive the call, and the lengths are correct.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attribute, size_of::<Attribute>())
        };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    let mut info = Info::default();
    ask(&mut info);
    let mut code = vec![0u8; info.translated_length as usize];
    info = Info { translated_length: info.translated_length, translated: code.as_mut_ptr() as u64, ..Info::default() };
    ask(&mut info);
    let names = |at: &&[u8]| {
        at[0] == LOAD_64 && at[1] >> 4 == PSEUDO_MAP_FD && u32::from_ne_bytes([at[4], at[5], at[6], at[7]]) == map
    };
    let (one, _) = code.as_chunks::<8>();
    (one.len(), one.iter().map(<[u8; 8]>::as_slice).filter(names).count())
}

#[test]
fn when_the_log_is_off_then_the_program_has_no_code_for_it() {
    let mut found = Vec::new();
    for tells in [false, true] {
        let mut rig = Rig::with(&SERVICES, &Setup { tells, ..Setup::default() }).unwrap();
        let info = rig.info().unwrap();
        let maps = info.map_ids().unwrap().unwrap();
        let mut named = maps
            .into_iter()
            .filter(|id| MapInfo::from_id(*id).unwrap().name_as_str().is_some_and(|name| name == "AYA_LOGS"));
        let (length, names) = instructions(rig.program(), named.next().unwrap());
        println!(
            "tells: {tells}: {} instructions verified, {length} in the program, {names} name the log",
            info.verified_instruction_count().unwrap()
        );
        found.push((length, names));
        rig.run(&without_route()).unwrap();
        rig.run(&without_next_hop()).unwrap();
        let lines = Lines::default();
        rig.log(lines.clone()).unwrap().flush();
        assert_eq!(lines.0.lock().unwrap().len(), if tells { 2 } else { 0 });
    }
    let [(off, names_off), (on, names_on)] = found[..] else { unreachable!() };
    assert_eq!(names_off, 0);
    assert!(names_on > 0 && off < on, "{found:?}");
}

/// Creates a wrapper that runs the balancer with the given log level.
fn at_level(directory: &Path, level: &str) -> PathBuf {
    let script = directory.join(level);
    let binary = binaries::balancer().unwrap();
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != run ] || set -- \"$@\" --log-level {level}\nexec {} \"$@\"\n",
        binary.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn when_the_log_level_is_debug_then_the_controller_logs_unexpected_events() {
    let directory = tempfile::tempdir().unwrap();
    for (level, told) in [("debug", true), ("info", false)] {
        let mut site = Site::start(Shape::TwoLegged, Forwarding::Nat, 1, |settings, topology| {
            settings.binary = Some(at_level(directory.path(), level));
            topology.balancer().ip(&format!("route add unreachable {}", topology.client_address(Family::V4, 7)))?;
            Ok(())
        })
        .unwrap();
        let line = "a reply has no way: the route lookup says 2";
        let log = site.files().join("balancer.log");
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The program drops the backend's reply, so the client gets no answer.
            let _nobody = site.ask(Family::V4, [7], Duration::from_millis(300)).unwrap();
            let text = fs::read_to_string(&log).unwrap();
            if text.lines().any(|written| written.contains("DEBUG") && written.ends_with(line)) {
                assert!(told, "{text}");
                break;
            }
            let dropped = site.metrics().unwrap().sum("drops_total", &["reason=\"no_route\""]).unwrap();
            if !told && dropped >= 3.0 {
                break;
            }
            assert!(Instant::now() < deadline, "{dropped} replies dropped, {text}");
        }
        site.controller().process().stop().unwrap();
    }
}
