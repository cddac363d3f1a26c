//! Packets of the same clients on several CPUs at once, during all actions of a controller, with a client table that is
//! too small. How the CPUs interleave is left to chance.
//!
//! Each round ends at rest, and then everything must agree again. `CONTENTION_SECONDS` makes the test longer than in
//! CI. `CONTENTION_SEED` repeats the controller's actions (the times of packets still differ).

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

/// The number of clients: three times as many as the table has room for.
const CLIENTS: u32 = 3000;
const ROOM: u32 = 1000;
const BACKENDS: u8 = 5;
const THREADS: usize = 2;
const ROUND: Duration = Duration::from_millis(300);
/// How much longer than requested the test may take until enough has happened.
const PATIENCE: Duration = Duration::from_secs(60);
const XDP_TX: u32 = 3;

/// The last bytes of a backend's MAC address, which are also those of its IP address.
type Mac = [u8; 2];

fn settings(remember: &str) -> String {
    format!("remember = \"{remember}\"\ntable_size = 251\ndrain = {{ timeout = \"20s\" }}")
}

/// The backends that may serve a client, with the time in which they may.
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
    /// The program's return value.
    action: u32,
}

/// The state that the sending threads share with the changing one.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    /// The number of threads that wait for the end of the pause.
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

/// Sends packets of random clients from one CPU, until the test ends.
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
        // A few hundred clients at a time, so that CPUs use the same entries.
        let first = random.u32(0..CLIENTS);
        for _ in 0..100 {
            let number = (first + random.u32(0..50)) % CLIENTS;
            packets.push(send(program, number, &frames[number as usize], random.u8(0..4) == 0)?);
        }
        // Threads of the kernel end grace periods. They would starve if all CPUs were busy sending.
        thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// The last events, each with its time since the beginning, for the message of a failure.
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

/// The world, and the test's knowledge of it.
struct Contest {
    world: World,
    program: OwnedFd,
    /// The number of buckets of the client table.
    buckets: u32,
    random: Rng,
    /// The last byte of the address of the backend that was added last.
    hosts: u8,
    added: Vec<String>,
    reigns: Vec<Reign>,
    /// The clients that must stay at their backends in this round, because nothing forgets them, unless their backend
    /// stops serving them.
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

    /// Does one random action of a controller while packets come.
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
        // The last configured backend is always up, so that every client has a backend.
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
                // An eighth of the shortest time is longer than a round. After an eighth, a new client may replace an
                // established one.
                let remember = ["1h", "3h", "5m"][self.random.usize(0..3)];
                drop(world.reload(&settings(remember), BACKENDS, ROOM)?);
            }
            _ => world.pass(1)?,
        }
        Ok(())
    }

    /// Adds a backend, or removes an added one, so that its id can be reused.
    fn come_and_go(&mut self) -> Result<()> {
        if self.added.len() > 2 {
            let name = named(&self.added.remove(0));
            self.recorder.note(format!("{name} is removed"));
            self.world.change(Change::Remove { name, force: true })?;
        } else {
            // After a few, the address is that of a recently removed backend that still has clients.
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

    /// Checks that every packet went to a backend that served at that time, and that established clients stayed at
    /// their backends.
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

    /// Checks that everything agrees after passes over the client table, when no packet is on its way.
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

    /// The backends of the known clients with these entries, if their backends keep them.
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

/// Whether clients may be at a backend in this state.
const fn serves(state: BackendState) -> bool {
    matches!(state, BackendState::Up | BackendState::Checking | BackendState::Draining | BackendState::DrainingHealth)
}

/// Totals of all rounds, which show whether the test has tested enough.
#[derive(Debug, Default)]
struct Done {
    rounds: u32,
    changes: u32,
    /// The known clients that were checked at rest.
    known: usize,
    /// The clients that had to stay in the next round.
    stayed: usize,
}

impl Done {
    /// Whether the totals are large enough to be meaningful.
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

/// Runs rounds for this time; on a busy machine, until there were enough.
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
