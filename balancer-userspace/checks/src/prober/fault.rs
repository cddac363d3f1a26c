//! The description of what goes wrong in a check.

use std::{io, time::Duration};

use balancer_control::io::CheckOutcome;
use nix::errno::Errno;

/// The maximum number of characters that a report quotes from a server or a program.
pub(super) const TOLD: usize = 200;

/// The outcome of a check that has exceeded its timeout.
pub(super) fn timed_out(what: &str, timeout: Duration) -> CheckOutcome {
    CheckOutcome::Late(too_late(what, timeout))
}

/// Describes a timeout that has passed.
pub(super) fn too_late(what: &str, timeout: Duration) -> String {
    format!("{what}: timeout after {}", humantime::format_duration(timeout))
}

/// The outcome of a check whose connection or datagram ended with `error` before an answer. A refusal may mean that the
/// server restarts.
pub(super) fn unanswered(what: &str, error: &io::Error) -> CheckOutcome {
    let why = format!("{what}: {}", reason(error));
    if error.kind() == io::ErrorKind::ConnectionRefused { CheckOutcome::Shut(why) } else { CheckOutcome::Hard(why) }
}

/// Whether this machine has caused an error.
pub(super) fn is_local(error: &io::Error) -> bool {
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL]
        .into_iter()
        .any(|code| error.raw_os_error() == Some(code))
}

/// Describes a connection error in one or two words.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused".to_owned(),
        Some(libc::ECONNRESET | libc::EPIPE) => "reset".to_owned(),
        Some(libc::ETIMEDOUT) => "timeout".to_owned(),
        Some(libc::ENETUNREACH) => "network unreachable".to_owned(),
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        None if error.kind() == io::ErrorKind::ConnectionReset => "reset".to_owned(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        None => error.to_string(),
    }
}

/// The beginning of a text that a server or a program has sent, as one line.
pub(super) fn told(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().take(TOLD).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_this_machine_has_a_problem_then_the_backend_is_not_blamed() {
        assert!(is_local(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_local(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), "no route to host");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), "permission denied");
    }
}
