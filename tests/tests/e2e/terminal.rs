//! Tests of `stats --watch` and `status --watch` on a terminal, with a controller that disappears.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, ExitStatus},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use balancer_common::map_types::Forwarding;
use balancer_testkit::{
    binaries,
    site::{PATIENCE, Settings, Site},
    topology::{Shape, Topology},
};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};

fn site() -> Site {
    let adapt = |_: &mut Settings, _: &Topology| Ok(());
    Site::start(Shape::OneLegged, Forwarding::Nat, 2, adapt).unwrap()
}

/// A command that runs on a terminal of 80 columns and 24 lines.
struct Terminal {
    /// The terminal's other end, which the command loses if this value is dropped.
    _keyboard: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    line: OwnedFd,
    before: Termios,
    child: Child,
}

impl Terminal {
    fn start(site: &Site, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pair.slave).unwrap();
        let end = || pair.slave.try_clone().unwrap();
        let mut command = site.topology().balancer().command(binaries::balancer().unwrap());
        command.args(arguments).env("BALANCER_SOCKET", site.files().join("balancer.sock"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut output) = (Arc::clone(&screen), File::from(pair.master.try_clone().unwrap()));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A failed read means that the terminal no longer exists.
            while let Ok(length) = output.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { _keyboard: pair.master, screen, line: pair.slave, before, child }
    }

    /// Returns the command's output since the last call.
    fn take(&self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut *self.screen.lock().unwrap())).into_owned()
    }

    /// Waits until the output contains `words`, and returns all output up to that time.
    #[track_caller]
    fn wait(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut text = String::new();
        while !text.contains(words) {
            assert!(Instant::now() < deadline, "no {words:?} in {text:?}");
            thread::sleep(Duration::from_millis(20));
            text += &self.take();
        }
        text
    }

    /// Waits until the command ends, and checks that the command has restored the terminal.
    #[track_caller]
    fn end(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "it does not end: {:?}", self.take()),
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(tcgetattr(self.line.as_fd()).unwrap(), self.before);
        status
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

#[test]
fn when_the_controller_ends_then_live_views_continue() {
    let mut site = site();
    let terminals = ["stats", "status"].map(|verb| Terminal::start(&site, &[verb, "--watch"]));
    for terminal in &terminals {
        terminal.wait("web2");
    }
    site.controller().process().stop().unwrap();
    for terminal in &terminals {
        terminal.wait("no controller reachable");
    }
    site.start_again().unwrap();
    for terminal in terminals {
        terminal.take();
        assert!(!terminal.wait("web2").contains("\x1b[2J"), "the screen is erased, which flickers");
        let shown = terminal.wait("web2");
        assert!(!shown.contains("no controller reachable"), "{shown:?}");
        terminal.signal(Signal::SIGINT);
        assert!(!terminal.end().success());
    }
}

#[test]
fn when_the_live_status_is_larger_than_the_terminal_then_it_is_cut() {
    let site = Site::start(Shape::OneLegged, Forwarding::Nat, 1, |settings, _| {
        settings.backends = (1..=30).map(|number| (number, 100)).collect();
        Ok(())
    })
    .unwrap();
    let terminal = Terminal::start(&site, &["status", "--watch"]);
    terminal.wait("more lines");
    let text = terminal.wait("more lines");
    let frame = text.split("\x1b[H").find(|frame| frame.contains("more lines")).unwrap();
    let lines: Vec<&str> = frame.lines().collect();
    assert!(lines.len() <= 24, "{} lines", lines.len());
    for line in lines {
        let visible = line.trim_end_matches('\r').replace("\x1b[K", "").replace("\x1b[J", "");
        assert!(visible.chars().count() <= 80, "{visible}");
    }
    terminal.signal(Signal::SIGINT);
    terminal.end();
}
