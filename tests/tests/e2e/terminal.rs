//! Tests of `stats --watch` and `status --watch` on a terminal, first with a controller that hangs, then with a
//! controller that disappears.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
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
    keyboard: File,
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
        Self { keyboard: pair.master.into(), screen, line: pair.slave, before, child }
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

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

/// The control sequence by which a program leaves the terminal's alternate screen.
const LEFT: &str = "\x1b[?1049l";

#[test]
fn when_live_statistics_end_then_the_terminal_is_restored() {
    let mut site = site();
    for end in [&b"q"[..], b"\x03", b"\x1b"] {
        let mut terminal = Terminal::start(&site, &["stats", "--watch"]);
        terminal.wait("quits");
        terminal.press(end);
        terminal.wait(LEFT);
        assert!(terminal.end().success());
    }
    let terminal = Terminal::start(&site, &["stats", "--watch"]);
    terminal.wait("quits");
    terminal.signal(Signal::SIGTERM);
    terminal.wait(LEFT);
    terminal.end();

    // A controller that is stopped by a signal does not answer.
    let mut terminal = Terminal::start(&site, &["stats", "--watch"]);
    terminal.wait("quits");
    site.controller().process().signal(Signal::SIGSTOP).unwrap();
    terminal.wait("no answer");
    terminal.press(b"q");
    terminal.wait(LEFT);
    assert!(terminal.end().success());
    site.controller().process().signal(Signal::SIGCONT).unwrap();
}

#[test]
fn when_the_controller_ends_then_live_views_continue() {
    let mut site = site();
    let mut terminals = ["stats", "status"].map(|verb| Terminal::start(&site, &[verb, "--watch"]));
    for terminal in &terminals {
        terminal.wait("web2");
    }
    site.controller().process().stop().unwrap();
    for terminal in &terminals {
        terminal.wait("no controller reachable");
    }
    site.start_again().unwrap();
    let status = &terminals[1];
    status.take();
    assert!(!status.wait("web2").contains("\x1b[2J"), "the screen is erased, which flickers");
    let shown = status.wait("web2");
    assert!(!shown.contains("no controller reachable"), "{shown:?}");
    terminals[0].press(b"q");
    let [stats, status] = terminals;
    assert!(stats.end().success());
    status.signal(Signal::SIGINT);
    assert!(!status.end().success());
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
