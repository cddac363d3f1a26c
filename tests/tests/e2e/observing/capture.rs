//! Tests of `balancer capture`. The tests read the captured files with a small parser, and also with `tshark` if the
//! machine has `tshark`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::Site,
    topology::{Family, Shape},
};

use super::{HARDEST, watch};
use crate::support::wait;

/// A captured frame in a file.
#[derive(Debug)]
struct Captured {
    interface: String,
    bytes: Vec<u8>,
    length: u32,
    comment: String,
    id: u64,
    is_out: bool,
}

/// Parses the blocks of a pcapng file.
fn read(mut rest: &[u8]) -> Vec<Captured> {
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut interfaces = Vec::new();
    let mut frames = Vec::new();
    assert_eq!((word(rest, 0), word(rest, 8)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    while !rest.is_empty() {
        let (kind, length) = (word(rest, 0), word(rest, 4) as usize);
        assert_eq!(word(rest, length - 4) as usize, length);
        let body = &rest[8..length - 4];
        match kind {
            1 => {
                let options = options(&body[8..]);
                interfaces
                    .push(String::from_utf8(options.into_iter().find(|(code, _)| *code == 2).unwrap().1).unwrap());
            }
            6 => {
                let kept = word(body, 12) as usize;
                let options = options(&body[20 + kept.next_multiple_of(4)..]);
                let option = |wanted| options.iter().find(|(code, _)| *code == wanted).unwrap().1.clone();
                frames.push(Captured {
                    interface: interfaces[word(body, 0) as usize].clone(),
                    bytes: body[20..20 + kept].to_vec(),
                    length: word(body, 16),
                    comment: String::from_utf8(option(1)).unwrap(),
                    id: u64::from_ne_bytes(option(5).try_into().unwrap()),
                    is_out: word(&option(2), 0) & 3 == 2,
                });
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    frames
}

fn options(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    while rest.len() >= 4 {
        let (code, length) =
            (u16::from_ne_bytes([rest[0], rest[1]]), usize::from(u16::from_ne_bytes([rest[2], rest[3]])));
        options.push((code, rest[4..4 + length].to_vec()));
        rest = &rest[4 + length.next_multiple_of(4)..];
    }
    options
}

/// Returns `tshark`'s output for a file, with one line for each frame, or `None` if the machine has no `tshark`.
fn tshark(file: &Path, fields: &[&str]) -> Option<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-T", "fields", "-E", "separator=|"]);
    let output = command.args(fields.iter().flat_map(|field| ["-e", field])).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

fn site(forwarding: Forwarding) -> Site {
    Site::start(Shape::OneLegged, forwarding, 2, |settings, _| {
        settings.remember = "10m";
        Ok(())
    })
    .unwrap()
}

/// Captures packets while clients send requests, and returns the frames, the command's output and the file.
fn capture(site: &Site, name: &str, more: &[&str], ask: impl FnOnce()) -> (Vec<Captured>, String, PathBuf) {
    let file = site.files().join(format!("{name}.pcapng"));
    let mut capture = watch::start(site, name, &[&["capture", "-w", file.to_str().unwrap()], more].concat());
    ask();
    // The command writes some packets with a delay, so the test waits until the file stops growing.
    let mut size = 0;
    wait("it does not rest", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = fs::metadata(&file).unwrap().len();
        std::mem::replace(&mut size, now) == now
    });
    if more.contains(&"--count") {
        capture.end()
    } else {
        capture.interrupt()
    }
    (read(&fs::read(&file).unwrap()), capture.said(), file)
}

pub(super) fn each_is_there_as_it_came_and_as_it_left(modes: &[Forwarding]) {
    for &forwarding in modes {
        let site = site(forwarding);
        let client = site.topology().client_address(Family::V4, 1).to_string();
        let mut home = String::new();
        let (frames, said, file) = capture(&site, "all", &["--client", &client], || {
            home = site.homes(Family::V4, [1, 2]).unwrap()[&1].clone();
        });
        assert!(said.contains("packets captured, ") && !said.contains(" lost"), "{said}");
        assert!(frames.len() >= 8 && frames.len().is_multiple_of(2), "{forwarding:?}: {frames:?}");
        for pair in frames.chunks(2) {
            let [came, left] = pair else { panic!("{pair:?}") };
            assert_eq!((came.id, came.is_out, left.is_out), (left.id, false, true), "{pair:?}");
            assert_eq!(came.comment, left.comment);
            assert!(
                came.comment.contains(&format!("service web at 10.2.0.10:80/tcp, client {client}, backend {home}: ")),
                "{forwarding:?}: {}",
                came.comment
            );
            assert_eq!((came.interface.as_str(), left.interface.as_str()), ("eth0@came", "eth0@left"));
            assert_ne!(came.bytes, left.bytes);
            assert_eq!(came.bytes.len(), came.length as usize);
        }
        assert!(frames[0].comment.contains("a new client: the lookup table decides; recorded (tx)"), "{frames:?}");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        let Some(lines) = tshark(&file, &["frame.interface_name", "ip.dst", "frame.comment"]) else { continue };
        assert_eq!(lines.len(), frames.len());
        let number: u16 = home.strip_prefix("web").unwrap().parse().unwrap();
        let server = site.topology().backend_address(Family::V4, number - 1);
        let expected = match forwarding {
            Forwarding::Dsr => "10.2.0.10".to_owned(),
            Forwarding::Nat | Forwarding::Snat => server.to_string(),
            Forwarding::Ipip => format!("{server},10.2.0.10"),
            Forwarding::Gue => server.to_string(),
        };
        assert!(lines[0].starts_with("eth0@came|10.2.0.10|service web"), "{lines:?}");
        assert!(lines[1].starts_with(&format!("eth0@left|{expected}")), "{forwarding:?}: {lines:?}");
    }
}

#[test]
fn when_packets_are_captured_then_each_is_there_as_it_came_and_as_it_left() {
    each_is_there_as_it_came_and_as_it_left(&HARDEST);
}

#[test]
fn when_a_packet_is_dropped_then_it_is_there_once_with_the_reason() {
    let site = site(Forwarding::Nat);
    let client = site.topology().client_address(Family::V4, 1).to_string();
    site.cli(&["rule", "add", "web", &client, "deny"]).unwrap();
    let (frames, ..) = capture(&site, "denied", &["--service", "web", "--count", "1"], || {
        let replies = site.ask(Family::V4, [1], Duration::from_millis(300)).unwrap();
        assert!(replies.iter().all(Result::is_err), "{replies:?}");
    });
    let [frame] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!(
        frame.comment,
        format!("service web at 10.2.0.10:80/tcp, client {client}: a rule denies the client (drop, denied)")
    );
}

#[test]
fn when_there_were_enough_packets_then_it_ends_and_frames_are_cut_as_asked() {
    let site = site(Forwarding::Dsr);
    let (frames, said, _) = capture(&site, "some", &["--count", "5", "--snaplen", "64"], || {
        site.homes(Family::V4, 1..=20).unwrap();
    });
    assert!(said.contains("5 packets captured, "), "{said}");
    assert_eq!(frames.len(), 10);
    assert!(frames.iter().all(|frame| frame.bytes.len() == 64 && frame.length > 64), "{frames:?}");
    wait("the program that tells stays", || !watch::attached(&site).contains("tell_and_steer"));
}

#[test]
fn when_it_goes_into_a_pipe_then_the_reader_has_it_at_once_and_its_end_ends_the_capture() {
    let site = site(Forwarding::Nat);
    let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
    command.arg("--socket").arg(site.files().join("balancer.sock")).args(["capture", "-w", "-", "--service", "web"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    // The command writes the file's header when it begins to observe packets, so the test waits for the header.
    let mut bytes = vec![0; 28];
    pipe.read_exact(&mut bytes).unwrap();
    site.homes(Family::V4, [1]).unwrap();
    let mut more = [0; 512];
    pipe.read_exact(&mut more).unwrap();
    drop(pipe);
    site.homes(Family::V4, [1]).unwrap();
    wait("it does not end", || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

#[test]
fn when_the_file_of_a_capture_cannot_be_written_then_the_next_trace_starts_at_once() {
    let site = site(Forwarding::Dsr);
    let output = site.output(&["capture", "-w", "/nonexistent/web.pcapng"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("cannot write /nonexistent/web.pcapng"), "{said}");
    watch::start(&site, "next", &["trace", "--service", "web"]).interrupt();
}

#[test]
fn when_it_cannot_begin_then_it_says_why_and_overwrites_nothing() {
    let site = site(Forwarding::Dsr);
    let file = site.files().join("kept");
    fs::write(&file, "kept").unwrap();
    let output = site.output(&["capture", "--service", "wbe", "-w", file.to_str().unwrap()]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("did you mean \"web\"?"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");

    for (arguments, words) in [
        (&["capture"][..], "--write <FILE>"),
        (&["capture", "-w", "/tmp/x", "--snaplen", "10"], "64..=9216"),
        (&["capture", "-w", "/tmp/x", "--count", "0"], "1.."),
    ] {
        let output = site.output(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{said}");
    }
}
