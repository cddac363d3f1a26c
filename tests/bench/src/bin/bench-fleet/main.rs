//! Measures the costs and delays of a fleet with three etcd members and one real balancer, which forwards real packets.
//! The other 31 balancers have no kernel program, but the real protocol, core and sharing of clients. All balancers of
//! the fleet know 1,000,000 clients. All processes run on one machine, so the balancers and etcd share the CPUs of the
//! machine.

mod member;
mod real;

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use balancer_bench::failover::hosts::{self, Hosts, Servers, VIP};
use balancer_common::client_table::{self, BUCKET_ENTRIES};
use balancer_config::{config::Config, file};
use balancer_control::io::Change;
use balancer_etcd::{Engine, Settings, Traffic};
use balancer_testkit::{
    etcd::{EtcdCluster, Options},
    namespace::Namespace,
    outcome::outcome,
};
use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use member::{Known, Light, Order, Report, Told};
use real::{CLIENTS, Real, web};

/// In each second, a member sees one in this many clients again, which is the rate of a million clients that the
/// members remember for three hours.
const REFRESHED: usize = 2_700;
/// The time limit of every step of the benchmark.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the costs and delays of a fleet.
#[derive(Parser)]
struct Args {
    /// Number of members, one of which is the real balancer
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(3..=64))]
    members: u16,
    /// Number of known clients
    #[arg(long, default_value_t = 1_000_000, value_parser = clients)]
    clients: usize,
    /// Number of backends, before the benchmark adds one
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=200))]
    backends: u16,
}

fn clients(text: &str) -> Result<usize, String> {
    let least = usize::from(CLIENTS) * 2;
    let clients: usize = text.parse().map_err(|err| format!("{err}"))?;
    if clients < least { Err(format!("at least {least}")) } else { Ok(clients) }
}

fn main() -> ExitCode {
    outcome(measure(&Args::parse()))
}

fn measure(args: &Args) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark needs root: it makes a network namespace");
    let hosts = Hosts::new()?;
    let places: Vec<(&Namespace, IpAddr)> =
        (1..=3).map(|number| (&hosts.balancer, IpAddr::V4(Ipv4Addr::new(127, 0, 0, number)))).collect();
    let etcd = EtcdCluster::start(&places, &Options { tls: true, ..Options::default() })?;
    // From here on, the threads that the benchmark starts are in the balancer's namespace.
    hosts.balancer.enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(Bench::run(args, &hosts, &etcd));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

struct Bench<'a> {
    args: &'a Args,
    hosts: &'a Hosts,
    etcd: &'a EtcdCluster,
    config: Config,
    entries: usize,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    traffic: Vec<Arc<Traffic>>,
    database: Option<tokio::sync::watch::Receiver<balancer_etcd::Facts>>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
}

fn services(backends: u16) -> Result<String> {
    let mut text = format!(
        "[[service]]\nname = \"web\"\naddress = \"{VIP}\"\nforwarding = \"nat\"\nremember = \"3h\"\n\
         check = {{ type = \"tcp\", fall = 1, rise = 1 }}\n"
    );
    for number in 1..=backends {
        writeln!(text, "[[service.backend]]\nname = \"web{number}\"\naddress = \"{}\"", hosts::backend(number))?;
    }
    Ok(text)
}

fn address(number: u16) -> IpAddr {
    IpAddr::V4(*hosts::backend(number).ip())
}

impl<'a> Bench<'a> {
    async fn run(args: &'a Args, hosts: &'a Hosts, etcd: &'a EtcdCluster) -> Result<()> {
        let (reporter, reports) = mpsc::unbounded_channel();
        let entries = (args.clients * 2).next_power_of_two().max(BUCKET_ENTRIES);
        let config = file::parse(Path::new("bench.toml"), services(args.backends)?.as_bytes())?.0;
        let (orders, traffic) = (Vec::new(), Vec::new());
        let mut bench = Self { args, hosts, etcd, config, entries, orders, traffic, database: None, reports, reporter };
        println!("{} members, {} known clients, three etcds, all on this machine", args.members, args.clients);
        bench.start().await?;
        let (indices, places) = bench.fill().await?;
        let mut real = bench.start_real(places)?;
        bench.idle(&mut real, "idle", Duration::from_secs(15), |_| {}).await?;
        let refreshed = args.clients / REFRESHED;
        let mut next = indices.iter().copied().cycle();
        let orders = bench.orders.clone();
        bench
            .idle(
                &mut real,
                "all clients active: 1 in 2,700 told of again in a second",
                Duration::from_secs(15),
                move |second| {
                    let seen = next.by_ref().take(refreshed).collect();
                    let _ = orders[second % orders.len()].send(Order::See(seen));
                },
            )
            .await?;
        bench.add(&mut real).await?;
        bench.weights().await?;
        bench.failure(&mut real).await?;
        bench.at_home(&mut real, "afterwards")?;
        bench.join().await
    }

    /// Starts the real balancer, which joins the fleet.
    fn start_real(&mut self, places: HashMap<u16, u16>) -> Result<Real> {
        let mut servers = Servers::default();
        self.hosts.listen(&(1..=self.args.backends + 1).collect::<Vec<_>>(), &mut servers)?;
        let services = services(self.args.backends)?;
        let (mut real, took) = Real::start(self.hosts, self.etcd, &services, self.entries, servers, places)?;
        println!("the real balancer joins: ready after {}", milliseconds(took));
        self.at_home(&mut real, "then")?;
        Ok(real)
    }

    fn at_home(&self, real: &mut Real, when: &str) -> Result<()> {
        let strangers = real.strangers(self.hosts)?;
        println!(
            "packets of {CLIENTS} clients through it, {when}: {strangers} not at the backend that the fleet knows"
        );
        Ok(())
    }

    fn start_member(&mut self) -> Result<()> {
        let certificates = self.etcd.certificates().context("no certificates")?;
        let engine = Engine::start(Settings {
            prefix: balancer_etcd::prefix_of("bench"),
            endpoints: self.etcd.endpoints(),
            ca: Some(certificates.ca.clone()),
            cert: Some(certificates.cert.clone()),
            key: Some(certificates.key.clone()),
            lease: Duration::from_secs(5),
        });
        self.traffic.push(Arc::clone(&engine.traffic));
        self.database.get_or_insert_with(|| engine.facts.clone());
        let (orders, ordered) = mpsc::unbounded_channel();
        let number = self.orders.len() + 1;
        self.orders.push(orders);
        let light = Light::new(number, self.config.clone(), self.entries, engine, self.reporter.clone());
        tokio::spawn(light.serve(ordered));
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        let begin = Instant::now();
        for _ in 1..self.args.members {
            self.start_member()?;
        }
        let done = self.all(self.orders.len(), |told| matches!(told, Told::InStep(_))).await?;
        println!("all in step after {}", milliseconds(done - begin));
        // During the pause, the balancers finish their first checks and votes.
        sleep(Duration::from_secs(3)).await;
        while self.reports.try_recv().is_ok() {}
        Ok(())
    }

    /// Waits until `members` members of the fleet have reported the event. Returns the time of the last report.
    async fn all(&mut self, members: usize, is: impl Fn(&Told) -> bool) -> Result<Instant> {
        let mut have = HashSet::new();
        let waiting = async {
            while let Some((number, told, at)) = self.reports.recv().await {
                if is(&told) && have.insert(number) && have.len() == members {
                    return Ok(at);
                }
            }
            anyhow::bail!("nobody reports")
        };
        timeout(PATIENCE, waiting).await.context("it takes too long")?
    }

    /// Makes the clients known to all members of the fleet. Returns the indexes of the clients' entries, and the
    /// backends of the clients that send real packets.
    async fn fill(&mut self) -> Result<(Vec<usize>, HashMap<u16, u16>)> {
        let buckets = self.entries / BUCKET_ENTRIES;
        let mut counts = vec![0; buckets];
        let mut clients = Vec::with_capacity(self.args.clients);
        let mut places = HashMap::new();
        let mut know = |hash: u64| {
            let (bucket, tag) = (client_table::bucket(hash, buckets as u32 - 1) as usize, (hash >> 32) as u32);
            let backend = fastrand::u16(..self.args.backends);
            let has_room = counts[bucket] < BUCKET_ENTRIES;
            if has_room {
                clients.push(Known { index: bucket * BUCKET_ENTRIES + counts[bucket], tag, backend });
                counts[bucket] += 1;
            }
            (has_room.then_some(backend), clients.len())
        };
        for number in 1..=CLIENTS {
            let (place, _) = know(real::hash(number));
            places.insert(number, place.context("no room for a client")? + 1);
        }
        while know(fastrand::u64(1 << 32..)).1 < self.args.clients {}
        let indices = clients.iter().map(|client| client.index).collect();
        let clients = Arc::new(clients);
        self.orders.iter().for_each(|orders| drop(orders.send(Order::Fill(Arc::clone(&clients)))));
        self.all(self.orders.len(), |told| matches!(told, Told::Filled)).await?;
        // During the pause, the first member sends all its records to the other members.
        sleep(Duration::from_secs(3)).await;
        Ok((indices, places))
    }

    fn bytes(&self, real: &Real) -> Result<(u64, u64)> {
        let sum = |of: fn(&Traffic) -> u64| -> u64 { self.traffic.iter().map(|traffic| of(traffic)).sum() };
        let (sent, received) = real.bytes(self.hosts)?;
        Ok((sum(Traffic::sent) + sent, sum(Traffic::received) + received))
    }

    async fn idle(&self, real: &mut Real, what: &str, time: Duration, mut each: impl FnMut(usize)) -> Result<()> {
        let (before, busy, real_busy, begin) = (self.bytes(real)?, cpu()?, real.cpu()?, Instant::now());
        for second in 0..time.as_secs() {
            each(usize::try_from(second)?);
            sleep(Duration::from_secs(1)).await;
        }
        let (busy, real_busy, elapsed) = (cpu()? - busy, real.cpu()? - real_busy, begin.elapsed().as_secs_f64());
        let after = self.bytes(real)?;
        let rate = |bytes: u64| bytes as f64 / elapsed / 1000.0;
        let percent = |time: Duration| time.as_secs_f64() / elapsed * 100.0;
        let (sent, received) = (rate(after.0 - before.0), rate(after.1 - before.1));
        println!(
            "{what}: {sent:.1} KB/s to etcd, {received:.1} KB/s from it, of all members; CPU of the real balancer {:.2}%, \
             of another member {:.2}%; {}",
            percent(real_busy),
            percent(busy) / self.orders.len() as f64,
            self.database()
        );
        Ok(())
    }

    fn database(&self) -> String {
        let bytes = self.database.as_ref().map_or(0, |facts| facts.borrow().database_bytes);
        format!("etcd's database {:.1} MB", bytes as f64 / 1e6)
    }

    /// Makes a change at one member of the fleet. Returns the time until all members had applied the change, and the
    /// time until the user got the answer.
    async fn change(&mut self, at: usize, change: Change) -> Result<(Duration, Duration)> {
        while self.reports.try_recv().is_ok() {}
        let (answer, answered) = oneshot::channel();
        let begin = Instant::now();
        let _ = self.orders[at].send(Order::Change(Box::new(change), answer));
        let members = self.orders.len();
        let applied = self.all(members, |told| matches!(told, Told::Applied(_))).await?;
        let said = timeout(PATIENCE, answered).await.context("no answer")??.map_err(anyhow::Error::msg)?;
        let all = self.args.members;
        ensure!(said == format!("{all} of {all}"), "applied by {said}");
        Ok((applied - begin, begin.elapsed()))
    }

    async fn add(&mut self, real: &mut Real) -> Result<()> {
        let (number, before) = (self.args.backends + 1, self.bytes(real)?);
        let change = Change::Add {
            name: web(number),
            address: address(number),
            address6: None,
            port: Some(hosts::backend(number).port()),
            weight: None,
            backup: false,
            limits: Default::default(),
        };
        let (applied, answered) = self.change(1, change).await?;
        let after = self.bytes(real)?;
        println!(
            "{} → {number} backends: applied by all but the real one after {}, answered for all after {}; {:.0} KB to etcd, \
             {:.0} KB from it",
            self.args.backends,
            milliseconds(applied),
            milliseconds(answered),
            (after.0 - before.0) as f64 / 1000.0,
            (after.1 - before.1) as f64 / 1000.0
        );
        // During the pause, the members check the new backend and react to the results.
        sleep(Duration::from_secs(3)).await;
        self.at_home(real, "with one backend more")
    }

    async fn weights(&mut self) -> Result<()> {
        let mut times = Vec::new();
        for (round, weight) in (0..15).zip([50, 200].into_iter().cycle()) {
            let change = Change::SetWeight { name: web(1 + round % self.args.backends), weight };
            times.push(self.change(usize::from(round) % self.orders.len(), change).await?.0);
            sleep(Duration::from_millis(300)).await;
        }
        times.sort_unstable();
        println!(
            "a weight: applied by all after {} (median of 15; {} to {})",
            milliseconds(times[7]),
            milliseconds(times[0]),
            milliseconds(times[14])
        );
        Ok(())
    }

    /// Makes the checks of all members except the real balancer find a backend down, one member after another within
    /// 100 ms.
    async fn failure(&mut self, real: &mut Real) -> Result<()> {
        let (mut applied_after, mut stray_after) = (Vec::new(), Vec::new());
        for number in 1..=3.min(self.args.backends - 1) {
            let load = real.load(self.hosts, number)?;
            sleep(Duration::from_millis(200)).await;
            while self.reports.try_recv().is_ok() {}
            let left = usize::from(self.args.backends + 1 - number);
            for orders in &self.orders {
                let _ = orders.send(Order::Lose(address(number)));
                sleep(Duration::from_millis(100) / u32::try_from(self.orders.len())?).await;
            }
            let (last_needed, applied) = self.voted_and_applied(left).await?;
            let on_the_wall = SystemTime::now().duration_since(UNIX_EPOCH)? - last_needed.elapsed();
            let stray = real.last_stray(number)?;
            load.stop()?;
            applied_after.push(applied - last_needed);
            // The real balancer may learn of the failure before the members without a kernel program.
            stray_after.push(stray.saturating_sub(on_the_wall));
            sleep(Duration::from_secs(1)).await;
        }
        let text = |times: Vec<Duration>| times.into_iter().map(milliseconds).collect::<Vec<_>>().join(", ");
        println!(
            "a backend down: from the last vote needed until the last packet goes there: {}; until all others apply it: {}",
            text(stray_after),
            text(applied_after)
        );
        Ok(())
    }

    /// Returns the time of the last necessary vote against a backend, and the time when all members without a kernel
    /// program had applied the resulting change. After the change, `left` backends are up.
    async fn voted_and_applied(&mut self, left: usize) -> Result<(Instant, Instant)> {
        let needed = usize::from(self.args.members) / 2 + 1;
        let (mut voted, mut applied, mut last_needed) = (HashSet::new(), HashSet::new(), None);
        let waiting = async {
            while let Some((member, told, at)) = self.reports.recv().await {
                match told {
                    Told::Voted if voted.insert(member) && voted.len() == needed => last_needed = Some(at),
                    Told::Applied(up) if up == left && applied.insert(member) => {
                        if applied.len() == self.orders.len() {
                            return Some(at);
                        }
                    }
                    Told::Voted | Told::Applied(_) | Told::InStep(_) | Told::Filled => {}
                }
            }
            None
        };
        let last = timeout(PATIENCE, waiting).await.context("it is not down everywhere")?.context("nobody reports")?;
        Ok((last_needed.context("nobody voted")?, last))
    }

    async fn join(&mut self) -> Result<()> {
        while self.reports.try_recv().is_ok() {}
        let begin = Instant::now();
        self.start_member()?;
        let clients = self.args.clients;
        let done = self.all(1, |told| matches!(told, Told::InStep(known) if *known == clients)).await?;
        // During the pause, the etcd servers report their status to the benchmark.
        sleep(Duration::from_secs(5)).await;
        println!(
            "one more member: in step, with all clients, after {}; {}",
            milliseconds(done - begin),
            self.database()
        );
        Ok(())
    }
}

/// Returns the CPU time that the benchmark process has used.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    let microseconds: i64 = times.iter().map(|time| time.tv_sec() * 1_000_000 + time.tv_usec()).sum();
    Ok(Duration::from_micros(microseconds.unsigned_abs()))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}
