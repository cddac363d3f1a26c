//! The command `balancer run`.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    panic::{self, PanicHookInfo},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use balancer_config::{file, value};
use balancer_daemon::arena;
use balancer_listeners::configuration::Configurations;
use balancer_runtime::{service_manager, supervisor::panicked};
use clap::ValueEnum;
use tracing::field::Field;
use tracing_subscriber::{
    EnvFilter,
    fmt::format::{Writer, debug_fn},
};

use super::{
    Failure,
    journal::{self, WithPriority},
};

/// The number of threads of the tokio runtime. Two threads are enough: the kernel forwards packets, and this process
/// mainly runs one task and its sockets.
const WORKER_THREADS: usize = 2;
/// The maximum time for which unfinished work delays the end of the process.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Interface to attach to, which overrides the configuration; may be repeated
    #[arg(long = "interface", value_name = "IF", value_parser = value::interface)]
    interfaces: Vec<String>,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Lowest level of lines to log
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    /// One line per event
    Text,
    /// One JSON object per event
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

pub(super) fn run(args: Args, socket: Option<PathBuf>) -> Result<(), Failure> {
    serve(args, socket).inspect_err(|failure| service_manager::failed(&failure.to_string()))
}

fn serve(args: Args, socket: Option<PathBuf>) -> Result<(), Failure> {
    arena::share();
    let mut parser = file::Parser::default();
    let (mut config, warnings) = parser.load(&args.config)?;
    let as_written = config.clone();
    let mut named = Vec::new();
    if !args.interfaces.is_empty() {
        config.interfaces.clear();
        for interface in args.interfaces {
            if !config.interfaces.contains(&interface) {
                config.interfaces.push(interface);
            }
        }
        named.clone_from(&config.interfaces);
    }
    if config.interfaces.is_empty() {
        return Err(anyhow!(
            "no interface to attach to; give --interface IF, or interfaces = [\"IF\"] in {}",
            args.config.display()
        )
        .into());
    }
    if let Some(socket) = socket {
        config.control.socket =
            std::path::absolute(&socket).with_context(|| format!("cannot resolve {}", socket.display()))?;
    }
    start_log(args.log_format, args.log_level)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    let launch = balancer_daemon::run::Launch {
        config,
        as_written,
        named,
        file: args.config,
        configurations: Configurations::new(parser),
    };
    let ended = runtime.block_on(balancer_daemon::run::run(launch));
    // The time limit is needed because a pending read of a file may never finish.
    runtime.shutdown_timeout(FAREWELL);
    Ok(ended?)
}

pub(super) fn start_log(format: LogFormat, level: LogLevel) -> anyhow::Result<()> {
    let filter = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "warn,balancer=info",
        LogLevel::Debug => "info,balancer=debug",
        LogLevel::Trace => "trace",
    };
    let mut log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(io::stderr);
    if !io::stderr().is_terminal() {
        log = log.with_ansi(false);
    }
    match (format, journal::is_standard_error()) {
        (LogFormat::Text, false) => log.fmt_fields(debug_fn(text_field)).with_target(false).try_init(),
        // The format contains no time, because the journal adds the time.
        (LogFormat::Text, true) => log
            .fmt_fields(debug_fn(text_field))
            .with_target(false)
            .without_time()
            .map_event_format(WithPriority)
            .try_init(),
        (LogFormat::Json, false) => log.json().flatten_event(true).try_init(),
        (LogFormat::Json, true) => log.json().flatten_event(true).map_event_format(WithPriority).try_init(),
    }
    .map_err(|error| anyhow!("cannot start the log: {error}"))?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs a panic as a normal log line, so that programs that read the log can report it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let (thread, place) = (thread::current(), panic.location().map(ToString::to_string).unwrap_or_default());
    tracing::error!(
        "the thread {} {} ({place}); this is a mistake in the program",
        thread.name().unwrap_or("without a name"),
        panicked(panic.payload())
    );
}

/// Writes a field of a log line, unless the message already contains the field's text.
fn text_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        "service" | "backend" => Ok(()),
        // These fields tell where another crate has logged the line, and are left out.
        name if name.starts_with("log.") => Ok(()),
        name => write!(writer, " {name}={value:?}"),
    }
}
