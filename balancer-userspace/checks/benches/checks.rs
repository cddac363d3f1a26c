//! Measures the cost of 1,000 health checks every 2 s: the processor time of this process (with checks and controller)
//! in percent of one core. The checked servers run in another process and are reached over loopback. `--json` lists the
//! cost for each period separately.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command as Process, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use balancer_checks::prober::Prober;
use balancer_common::client::HashKey;
use balancer_config::file;
use balancer_control::{
    controller::Controller,
    io::{CheckOutcome, CheckSpec, Command, Event},
};
use balancer_runtime::supervisor::Supervisor;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

const BACKENDS: u32 = 1000;
const WARM_UP: Duration = Duration::from_secs(4);
/// The period in which the prober checks every backend once.
const PERIOD: Duration = Duration::from_secs(2);
const PERIODS: u32 = 5;
const MEASURED: Duration = Duration::from_secs(PERIOD.as_secs() * PERIODS as u64);
/// The argument with which the benchmark starts the process of the servers.
const SERVE: &str = "serve";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if std::env::args().nth(1).as_deref() == Some(SERVE) {
        return runtime.block_on(serve());
    }
    let json = std::env::args().any(|argument| argument == "--json");
    let servers = Servers::start()?;
    let about = format!("{BACKENDS} backends, each checked every {} s, for {} s", PERIOD.as_secs(), MEASURED.as_secs());
    if !json {
        println!("{about}:");
    }
    let mut series = Vec::new();
    for (check, target) in [("tcp", servers.plain), ("http", servers.plain), ("https", servers.secure)] {
        let measured = runtime.block_on(measure(check, target))?;
        if json {
            ensure!(measured.failed == 0, "{check}: {} checks failed{}", measured.failed, measured.why);
            series.push(serde_json::json!({
                "of": check, "what": "processor time, of one core", "unit": "%", "ours": true, "samples": measured.periods
            }));
        } else {
            measured.print(check);
        }
    }
    if json {
        let title = "A thousand health checks every 2 s";
        let document = serde_json::json!({
            "benchmark": "checks", "title": title, "about": about, "series": series, "left_out": []
        });
        println!("{document:#}");
    }
    Ok(())
}

/// The measured cost of checks of one kind.
struct Measured {
    /// The processor time in each period, in percent of one core.
    periods: Vec<f64>,
    used: Duration,
    lasted: Duration,
    passed: u32,
    failed: u32,
    /// The reason why the last check failed.
    why: String,
}

impl Measured {
    fn print(&self, check: &str) {
        let Self { used, lasted, passed, failed, why, .. } = self;
        let percent = percent(*used, *lasted);
        let each = *used / (passed + failed).max(1);
        println!("{check:>6}: {percent:5.2} % of one core, {each:?} a check, {passed} passed, {failed} failed{why}");
    }
}

fn percent(used: Duration, lasted: Duration) -> f64 {
    100.0 * used.as_secs_f64() / lasted.as_secs_f64()
}

async fn measure(check: &str, target: SocketAddr) -> Result<Measured> {
    let (events_in, mut events) = mpsc::channel(1024);
    let mut prober = Prober::new(events_in, &Supervisor::default())?;
    let mut controller = Controller::new(configuration(check)?, HashKey { k0: 1, k1: 2 });
    let start = Instant::now();
    for command in controller.start(start.into_std()) {
        if let Command::StartChecks(spec) = command {
            prober.start(CheckSpec { target, ..*spec });
        }
    }
    let mut waiting = Vec::new();
    // The start of each period, and the processor time that the process had used by then.
    let mut marks: Vec<(Instant, Duration)> = Vec::new();
    let (mut passed, mut failed) = (0u32, 0u32);
    let mut why = String::new();
    let end = start + WARM_UP + MEASURED;
    while let Ok(1..) = timeout_at(end, events.recv_many(&mut waiting, 1024)).await {
        let now = Instant::now();
        let count = marks.len() as u32;
        if count < PERIODS && now >= start + WARM_UP + PERIOD * count {
            marks.push((now, processor_time()?));
            if count == 0 {
                (passed, failed) = (0, 0);
            }
        }
        for event in &waiting {
            if let Event::Checked { outcome, .. } = event {
                if *outcome == CheckOutcome::Passed {
                    passed += 1;
                } else {
                    failed += 1;
                    why = format!(" (the last: {})", outcome.words().1);
                }
            }
        }
        controller.handle_all(waiting.drain(..), now.into_std());
    }
    let &(began, before) = marks.first().context("no check ended")?;
    let (used, lasted) = (processor_time()? - before, began.elapsed());
    marks.push((Instant::now(), processor_time()?));
    let periods = marks.iter().zip(marks.iter().skip(1));
    let periods = periods.map(|((from, before), (to, after))| percent(*after - *before, *to - *from)).collect();
    Ok(Measured { periods, used, lasted, passed, failed, why })
}

/// A configuration of one service with all backends, at a VIP that no client connects to.
fn configuration(check: &str) -> Result<balancer_config::config::Config> {
    let mut text = format!(
        "[[service]]\nname = \"web\"\naddress = \"198.51.100.10:80\"\nforwarding = \"nat\"\ntable_size = 131071\n\
         check = {{ type = \"{check}\" }}\n"
    );
    for number in 0..BACKENDS {
        let address = std::net::Ipv4Addr::from(0x0a00_0001 + number);
        text += &format!("[[service.backend]]\nname = \"web{number}\"\naddress = \"{address}\"\n");
    }
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("balancer.toml");
    std::fs::write(&file, text)?;
    Ok(file::load(&file)?.0)
}

fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// The process that runs the servers. Dropping the value ends the process.
struct Servers {
    process: Child,
    plain: SocketAddr,
    secure: SocketAddr,
}

impl Servers {
    fn start() -> Result<Self> {
        let mut process = Process::new(std::env::current_exe()?).arg(SERVE).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().context("no output")?;
        let lines: Vec<String> = BufReader::new(output).lines().take(2).collect::<Result<_, _>>()?;
        ensure!(lines.len() == 2, "the servers do not start");
        Ok(Self { process, plain: lines[0].parse()?, secure: lines[1].parse()? })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn serve() -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let plain = TcpListener::bind("127.0.0.1:0").await?;
    let secure = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}\n{}", plain.local_addr()?, secure.local_addr()?);
    loop {
        tokio::select! {
            stream = plain.accept() => {
                let (stream, _) = stream?;
                tokio::spawn(answer(stream));
            }
            stream = secure.accept() => {
                let (stream, _) = stream?;
                let accepted = acceptor.accept(stream);
                tokio::spawn(async move {
                    if let Ok(stream) = accepted.await {
                        answer(stream).await;
                    }
                });
            }
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = [0; 1024];
    if matches!(stream.read(&mut request).await, Ok(1..)) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
        let _ = stream.shutdown().await;
    }
}
