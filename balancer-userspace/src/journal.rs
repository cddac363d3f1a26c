//! Formats messages for standard error if standard error is connected to systemd's journal. The journal reads the
//! priority of a line from `<N>` at the beginning of the line, see `sd-daemon(3)`.

use std::{
    env, fmt,
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Whether standard error is the stream that `JOURNAL_STREAM` names. The existence of the variable proves nothing,
/// because the output of a child process may go elsewhere.
pub(super) fn is_standard_error() -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else { return false };
    let own = io::stderr().as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata());
    own.is_ok_and(|own| named == format!("{}:{}", own.dev(), own.ino()))
}

/// Returns `text` with an error's priority at the beginning of each line.
pub(super) fn error(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("<{}>{line}", priority(Level::ERROR))).collect();
    lines.join("\n")
}

/// A log format that adds the priority to the beginning of each line of another format.
pub(super) struct WithPriority<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(out, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, out, event)
    }
}

/// The priority of a level, as a number of `syslog(3)`.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
