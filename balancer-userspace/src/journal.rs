//! Writes to standard error if it is systemd's journal. The journal reads a line's priority from `<N>` at its
//! beginning, as `sd-daemon(3)` says.

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

/// Whether standard error is the stream that `JOURNAL_STREAM` names. The variable alone does not show that, because a
/// child's output may go elsewhere.
pub(super) fn is_standard_error() -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else { return false };
    let own = io::stderr().as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata());
    own.is_ok_and(|own| named == format!("{}:{}", own.dev(), own.ino()))
}

/// Returns `text` with the priority of an error at the beginning of each line.
pub(super) fn error(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("<{}>{line}", priority(Level::ERROR))).collect();
    lines.join("\n")
}

/// Formats lines like another format, with the priority at their beginning.
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

/// The priority, numbered like in `syslog(3)`.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
