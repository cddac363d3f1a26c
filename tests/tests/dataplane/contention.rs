//! Several CPUs send packets of the same clients at the same time while a controller acts. The client table is too
//! small for all clients. The interleaving of the CPUs is random.
//!
//! At the end of each round, no packets are in progress, and all counters and tables must agree. `CONTENTION_SECONDS`
//! makes the test longer than in CI. `CONTENTION_SEED` repeats the controller's actions, but not the times of packets.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_common::{
    client_table::{BUCKET_ENTRIES, Entry, bucket},
    verdict::DropReason,
};
use balancer_config::states::{Admin, BackendState};
use balancer_control::{
    io::{Change, CheckOutcome},
    keys,
};
use balancer_dataplane::Dataplane as _;
use balancer_packet_model::world::{KEY, World, client, last, named};
use balancer_testkit::{
    frame::{ACK, Frame, SYN},
    prog_run,
    stop::StopOnDrop,
    variable,
};
use fastrand::Rng;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The number of clients, which is three times the capacity of the client table.
const CLIENTS: u32 = 3000;
const ROOM: u32 = 1000;
const BACKENDS: u8 = 5;
const THREADS: usize = 2;
const ROUND: Duration = Duration::from_millis(300);
/// If the totals are too small, the test may run for this much longer than requested.
const PATIENCE: Duration = Duration::from_secs(60);
const XDP_TX: u32 = 3;

/// The last bytes of a backend's MAC address, which equal the last bytes of its IP address.
type Mac = [u8; 2];

fn settings(remember: &str) -> String {
    format!("remember = \"{remember}\"\ntable_size = 251\ndrain = {{ timeout = \"20s\" }}")
}

/// A set of backends that could serve clients, and the period in which the set was valid.
struct Reign {
    begun: Instant,
    gone: Option<Instant>,
    serving: HashSet<Mac>,
}

struct Packet {
    client: u32,
    start: Instant,
    end: Instant,
    opens: bool,
    to: Option<Mac>,
    /// The XDP action that the program returned.
    action: u32,
}

/// The state that the sending threads share with the test's thread.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    /// The number of sending threads that wait for the end of a pause.
    waiting: AtomicU64,
    packets: Mutex<Vec<Packet>>,
}

fn frames(number: u32) -> [Vec<u8>; 2] {
    [SYN, ACK].map(|flags| {
        let mut frame = Frame::tcp("192.0.2.1:40000", "198.51.100.10:80", flags);
        frame.source = SocketAddr::new(client(number).into(), 40_000);
        frame.payload.clear();
        frame.bytes()
    })
}

fn send(program: &OwnedFd, client: u32, frames: &[Vec<u8>; 2], opens: bool) -> Result<Packet> {
    let start = Instant::now();
    let ran = prog_run::run(program.as_fd(), &frames[usize::from(!opens)], 0, 1)?;
    let to = (ran.action == XDP_TX).then(|| [ran.frame[4], ran.frame[5]]);
    Ok(Packet { client, start, end: Instant::now(), opens, to, action: ran.action })
}

/// Sends packets of random clients on one CPU until the test ends.
fn load(program: &OwnedFd, cpu: usize, mut random: Rng, shared: &Shared) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    let frames: Vec<_> = (0..CLIENTS).map(frames).collect();
    let mut packets = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.pause.load(Ordering::Acquire) {
            shared.packets.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.append(&mut packets);
            shared.waiting.fetch_add(1, Ordering::AcqRel);
            while shared.pause.load(Ordering::Acquire) && !shared.stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_micros(100));
            }
            shared.waiting.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        // Each batch uses only a few clients, so that several CPUs use the same entries of the client table.
        let first = random.u32(0..CLIENTS);
        for _ in 0..100 {
            let number = (first + random.u32(0..50)) % CLIENTS;
            packets.push(send(program, number, &frames[number as usize], random.u8(0..4) == 0)?);
        }
        // During the pause, kernel threads can end grace periods of RCU. If all CPUs were busy sending, these kernel
        // threads would starve.
        thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// The last events and the times of the events since the beginning, for error messages.
struct Recorder {
    begun: Instant,
    last: VecDeque<(Duration, String)>,
}

impl Recorder {
    const KEPT: usize = 200;

    fn note(&mut self, what: String) {
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
        }
        self.last.push_back((self.begun.elapsed(), what));
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "what happened before:")?;
        self.last.iter().try_for_each(|(at, what)| writeln!(f, "{:>12.6} s  {what}", at.as_secs_f64()))
    }
}

/// The world, and the test's records about the world.
struct Contest {
    world: World,
    program: OwnedFd,
    /// The number of buckets in the client table.
    buckets: u32,
    random: Rng,
    /// The last byte in the address of the most recently added backend.
    hosts: u8,
    added: Vec<String>,
    reigns: Vec<Reign>,
    /// The clients that must stay at their backends in this round while these backends serve: no action of the round
    /// has made the controller forget these clients.
    staying: BTreeMap<u32, Mac>,
    packets: u64,
    opened: u64,
    recorder: Recorder,
}

impl Contest {
    fn new(seed: u64) -> Result<Self> {
        let mut world = World::new(&settings("1h"), BACKENDS, ROOM)?;
        let program = world.program()?;
        let mut new = Self {
            buckets: world.buckets()?,
            world,
            program,
            random: Rng::with_seed(seed),
            added: Vec::new(),
            hosts: 0,
            reigns: Vec::new(),
            staying: BTreeMap::new(),
            packets: 0,
            opened: 0,
            recorder: Recorder { begun: Instant::now(), last: VecDeque::new() },
        };
        new.reigns.push(new.reign(Instant::now()));
        Ok(new)
    }

    fn reign(&self, begun: Instant) -> Reign {
        let backends = self.world.controller().services().iter().flat_map(|service| service.backends());
        let serving = backends.filter(|backend| serves(backend.state())).map(|backend| last(backend.address().ip()));
        Reign { begun, gone: None, serving: serving.collect() }
    }

    /// Carries out one random action of a controller while the threads send packets.
    fn act(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.act_at_random()?;
        if let Some(reign) = self.reigns.last_mut() {
            reign.gone = Some(Instant::now());
        }
        self.reigns.push(self.reign(begun));
        Ok(())
    }

    fn act_at_random(&mut self) -> Result<()> {
        // The last configured backend is always up, so that at least one backend serves every client.
        let name = format!("web{}", self.random.u8(1..BACKENDS));
        let refused = CheckOutcome::Hard("connect: refused".to_owned());
        let world = &mut self.world;
        let action = self.random.u8(0..20);
        self.recorder.note(format!("action {action} on {name} begins"));
        match action {
            0..=4 => drop(world.change_weight(&name, self.random.u16(1..300))?),
            5..=6 => drop(world.admin(&name, Admin::Drain, None)?),
            7 => drop(world.admin(&name, Admin::Maint, None)?),
            8..=11 => drop(world.admin(&name, Admin::Ready, None)?),
            12 => world.checked(&name, &refused, 3)?,
            13..=14 => world.checked(&name, &CheckOutcome::Passed, 2)?,
            15 => {
                let number = self.random.u32(0..CLIENTS);
                self.staying.remove(&number);
                world.forget(client(number))?;
            }
            16 => {
                let of = last(world.controller().backend(&named(&name))?.address().ip());
                self.staying.retain(|_, at| *at != of);
                world.forget_all(&name)?;
            }
            17 => self.come_and_go()?,
            18 => {
                // After an eighth of `remember` without packets, a new client may replace an established client. An
                // eighth of the shortest `remember` in this list is longer than a round.
                let remember = ["1h", "3h", "5m"][self.random.usize(0..3)];
                drop(world.reload(&settings(remember), BACKENDS, ROOM)?);
            }
            _ => world.pass(1)?,
        }
        Ok(())
    }

    /// Adds a backend, or removes a backend that the test has added, so that the controller can reuse the backend's id.
    fn come_and_go(&mut self) -> Result<()> {
        if self.added.len() > 2 {
            let name = named(&self.added.remove(0));
            self.recorder.note(format!("{name} is removed"));
            self.world.change(Change::Remove { name, force: true })?;
        } else {
            // After a few additions, the new address is the address of a recently removed backend that still has
            // clients.
            self.hosts = self.hosts % 5 + 1;
            let host = self.hosts;
            let name = format!("more{host}");
            if !self.added.contains(&name) {
                self.recorder.note(format!("{name} is added"));
                self.world.add(&name, host)?;
                self.added.push(name);
            }
        }
        Ok(())
    }

    /// Checks that every packet went to a backend that served at the packet's time, and that established clients stayed
    /// at their backends.
    fn look_at(&mut self, packets: Vec<Packet>) -> Result<()> {
        self.staying.retain(|_, at| self.reigns.iter().all(|reign| reign.serving.contains(at)));
        for packet in &packets {
            let from = self.reigns.partition_point(|reign| reign.gone.is_some_and(|gone| gone < packet.start));
            let mut live = self.reigns.iter().skip(from).take_while(|reign| reign.begun <= packet.end);
            let Some(to) = packet.to else {
                let reasons = self.world.dataplane().drop_stats()?.reasons;
                let reasons: Vec<_> = DropReason::ALL.iter().zip(reasons).filter(|(_, count)| *count > 0).collect();
                let (client, verdict) = (packet.client, packet.action);
                let [from, to] = [packet.start, packet.end].map(|at| at.saturating_duration_since(self.recorder.begun));
                bail!(
                    "client {client} was not sent on from {from:?} to {to:?} (verdict {verdict}, drops {reasons:?}), and somebody takes every client"
                )
            };
            ensure!(live.any(|reign| reign.serving.contains(&to)), "to {to:?}, which served nobody");
            let stays = self.staying.get(&packet.client).unwrap_or(&to);
            ensure!(*stays == to, "client {} was established at {stays:?} and went to {to:?}", packet.client);
            self.opened += u64::from(packet.opens);
        }
        self.packets += packets.len() as u64;
        if let Some(last) = self.reigns.pop() {
            self.reigns = vec![last];
        }
        Ok(())
    }

    /// Checks that all counters and tables agree after complete sweeps, while no packet is in progress.
    fn at_rest(&mut self) -> Result<usize> {
        self.world.pass(3)?;
        let entries = self.world.entries()?;
        self.no_entry_is_of_a_backend_that_is_gone(&entries)?;
        let known = self.known(&entries, |_| true);
        for (&number, &to) in &known {
            for opens in [false, true, false] {
                let packet = send(&self.program, number, &frames(number), opens)?;
                ensure!(packet.to == Some(to), "client {number} is known at {to:?} and went to {:?}", packet.to);
                self.packets += 1;
                self.opened += u64::from(opens);
            }
        }
        self.all_packets_are_counted()?;
        let backends = self.world.connections_by_backend()?;
        self.recorder.note(format!("all agree at rest after {} packets; connections {backends:?}", self.packets));
        let entries = self.world.entries()?;
        self.staying = self.known(&entries, Entry::established);
        Ok(known.len())
    }

    fn no_entry_is_of_a_backend_that_is_gone(&self, entries: &BTreeMap<u32, [u64; BUCKET_ENTRIES]>) -> Result<()> {
        let controller = self.world.controller();
        let present = controller.services().iter().flat_map(|service| service.backends()).map(|backend| backend.id().0);
        let ids: HashSet<u16> = present.chain(controller.gone().iter().map(|gone| gone.row.id.0)).collect();
        for entry in entries.values().flatten().map(|&word| Entry(word)).filter(|entry| !entry.is_empty()) {
            ensure!(ids.contains(&entry.backend()), "an entry of backend {}, which there is not", entry.backend());
        }
        Ok(())
    }

    /// Returns the backends of the known clients that `which` accepts, as far as the backends keep their clients.
    fn known(
        &self,
        entries: &BTreeMap<u32, [u64; BUCKET_ENTRIES]>,
        which: impl Fn(Entry) -> bool,
    ) -> BTreeMap<u32, Mac> {
        let backends = self.world.controller().services().iter().flat_map(|service| service.backends());
        let serving: HashMap<u16, Mac> = backends
            .filter(|backend| serves(backend.state()))
            .map(|backend| (backend.id().0, last(backend.address().ip())))
            .collect();
        let key = keys::client_key(KEY, "web").begun();
        let place = |number: u32| {
            let hash = key.v4(u32::from_ne_bytes(client(number).octets()));
            let bucket = entries.get(&bucket(hash, self.buckets - 1))?;
            let entry = bucket.iter().map(|&word| Entry(word)).find(|entry| entry.tag() == (hash >> 32) as u32)?;
            serving.get(&entry.backend()).filter(|_| which(entry)).map(|&mac| (number, mac))
        };
        (0..CLIENTS).filter_map(place).collect()
    }

    fn all_packets_are_counted(&self) -> Result<()> {
        let seen: u64 = self.world.dataplane().interface_stats(1)?.verdicts.iter().sum();
        let counters = self.world.counters()?;
        let (connections, decided) = (counters.connections, counters.decisions.iter().sum::<u64>());
        let (packets, opened) = (self.packets, self.opened);
        if (seen, connections, decided) != (packets, opened, opened) {
            let backends = self.world.connections_by_backend()?;
            bail!(
                "{seen} verdicts of {packets} packets, {connections} connections and {decided} decisions of {opened}; \
                 by backend {backends:?}"
            );
        }
        Ok(())
    }
}

/// Returns whether a backend in the given state may have clients.
const fn serves(state: BackendState) -> bool {
    matches!(state, BackendState::Up | BackendState::Checking | BackendState::Draining | BackendState::DrainingHealth)
}

/// The totals of all rounds, which show whether the test was thorough enough.
#[derive(Debug, Default)]
struct Done {
    rounds: u32,
    changes: u32,
    /// The number of known clients that the test has checked while no packet was in progress.
    known: usize,
    /// The number of clients that had to stay at their backends in the following round.
    stayed: usize,
}

impl Done {
    /// Returns whether the totals are large enough to be meaningful.
    const fn is_enough(&self, packets: u64) -> bool {
        packets > 10_000 && self.known > 1000 && self.stayed > 1000 && self.changes > self.rounds
    }
}

#[test]
fn when_everything_is_at_rest_then_cpus_and_controller_agree() -> Result<()> {
    let seconds = variable::number("CONTENTION_SECONDS")?.unwrap_or(10);
    let seed = variable::number("CONTENTION_SEED")?.unwrap_or_else(|| fastrand::u64(..));
    println!("CONTENTION_SEED={seed}");
    contend(Duration::from_secs(seconds), seed).with_context(|| format!("CONTENTION_SEED={seed}"))
}

/// Runs rounds for `time`, and longer on a busy machine until the totals are large enough.
fn contend(time: Duration, seed: u64) -> Result<()> {
    let mut contest = Contest::new(seed)?;
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).is_ok_and(|is| is)).take(THREADS).collect();
    let shared = Shared::default();
    let mut done = Done::default();
    let begun = Instant::now();
    thread::scope(|scope| {
        let shared = &shared;
        let _stop = StopOnDrop(&shared.stop);
        let mut threads = Vec::new();
        for (number, &cpu) in (0..THREADS as u64).zip(cpus.iter().cycle()) {
            let program = contest.world.program()?;
            threads.push(scope.spawn(move || load(&program, cpu, Rng::with_seed(seed ^ number), shared)));
        }
        while begun.elapsed() < time || !done.is_enough(contest.packets) && begun.elapsed() < time + PATIENCE {
            let until = Instant::now() + ROUND;
            while Instant::now() < until {
                contest.act()?;
                done.changes += 1;
            }
            shared.pause.store(true, Ordering::Release);
            while shared.waiting.load(Ordering::Acquire) < THREADS as u64 {
                ensure!(!threads.iter().any(thread::ScopedJoinHandle::is_finished), "a thread has ended");
                thread::sleep(Duration::from_micros(100));
            }
            let packets = std::mem::take(&mut *shared.packets.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
            let looked = contest.look_at(packets);
            looked.with_context(|| format!("in round {}; {}", done.rounds, contest.recorder))?;
            done.stayed += contest.staying.len();
            let known = contest.at_rest();
            done.known +=
                known.with_context(|| format!("at the end of round {}; {}", done.rounds, contest.recorder))?;
            done.rounds += 1;
            shared.pause.store(false, Ordering::Release);
            while shared.waiting.load(Ordering::Acquire) > 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        shared.stop.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    println!("{} packets, {done:?}", contest.packets);
    ensure!(done.is_enough(contest.packets), "no load: {} packets, {done:?}", contest.packets);
    Ok(())
}
