//! An operator who makes random changes and knows the expected effects of each change.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use balancer_api::model::{AddBackend, SetAdmin};
use balancer_config::{names::BackendName, states::Admin};
use balancer_testkit::{
    faults::{Faults, memory::NoMemory},
    site::{PATIENCE, PORT, Settings, Site},
};
use fastrand::Rng;

use super::{
    ANSWER, BACKENDS, FAMILY,
    history::{History, Kind},
};

/// The time for which known clients of a drained backend stay at the backend.
pub(super) const DRAIN: Duration = Duration::from_secs(3);
/// The minimum number of backends that are ready and healthy at any time.
const FEWEST: usize = 2;
/// The largest error of the wall clock, in seconds: two days.
const JUMP: i64 = 2 * 86_400;

/// Values of `remember` with different tick lengths of one second and 22 seconds, so that the balancer must convert the
/// clients' ages.
const REMEMBER: [&str; 3] = ["300s", "2h", "24h"];
/// The port of a listener that the service has from time to time, and that no client uses. The listener is for
/// datagrams, because `nat` could not distinguish TCP connections to the two ports of the service.
const SPARE_PORT: u16 = 8081;

/// The settings of a backend that the controller has accepted, and must keep from that time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    weight: u16,
    ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Cut,
    Refuses,
}

pub(super) struct Operator<'a> {
    pub(super) site: &'a mut Site,
    faults: &'a Faults,
    rng: Rng,
    pub(super) history: History,
    /// The expected settings of the existing backends.
    wanted: BTreeMap<u16, Wanted>,
    failed: BTreeMap<u16, Fault>,
    /// Whether the service listens on the additional port.
    listens: bool,
    disk_is_well: bool,
    pub(super) deeds: BTreeMap<&'static str, u64>,
}

fn name(number: u16) -> BackendName {
    BackendName { service: "web".to_owned(), backend: format!("web{number}") }
}

impl<'a> Operator<'a> {
    pub(super) fn new(site: &'a mut Site, faults: &'a Faults, rng: Rng) -> Self {
        let wanted = (1..=BACKENDS).map(|number| (number, Wanted { weight: 100, ready: true })).collect();
        let history = History::default();
        let (failed, deeds) = (BTreeMap::new(), BTreeMap::new());
        Self { site, faults, rng, history, wanted, failed, listens: false, disk_is_well: true, deeds }
    }

    fn note(&mut self, kind: &'static str, what: String) {
        *self.deeds.entry(kind).or_default() += 1;
        self.history.note(what);
    }

    /// Performs a random action of the operator.
    pub(super) fn act(&mut self) -> Result<()> {
        let number = self.rng.u16(1..=BACKENDS);
        match self.rng.u32(0..24) {
            0..=2 => self.weigh(number),
            3 | 4 => self.drain(number),
            5 => self.remove(number),
            6 | 7 => self.bring_back(number),
            8 => self.fail(number, Fault::Killed),
            9 => self.fail(number, Fault::Cut),
            10 => self.fail(number, Fault::Refuses),
            11 | 12 => self.mend(number),
            13 => self.restart(),
            14 => self.kill(),
            15 => self.stop_while_changing(number),
            16 => self.apply(),
            17 => self.wear_the_disk(),
            18 => self.turn_the_clock(),
            19 | 20 => self.remember(),
            21 => self.listen(),
            22 => self.starve(),
            _ => self.flood(),
        }
    }

    /// Returns the number of backends that take and answer new clients.
    fn well(&self) -> usize {
        let well = |&(number, wanted): &(&u16, &Wanted)| wanted.ready && !self.failed.contains_key(number);
        self.wanted.iter().filter(well).count()
    }

    fn is_well(&self, number: u16) -> bool {
        self.wanted.get(&number).is_some_and(|wanted| wanted.ready) && !self.failed.contains_key(&number)
    }

    /// Returns whether the controller made the change. The controller may refuse the change only if the disk has a
    /// fault, and must then have changed nothing.
    fn made(&mut self, what: &str, result: Result<()>) -> Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(error) if self.disk_is_well => Err(error.context(format!("{what} is refused"))),
            Err(error) => {
                self.history.note(format!("{what}: refused ({error:#})"));
                self.look_at_the_state()?;
                Ok(false)
            }
        }
    }

    fn weigh(&mut self, number: u16) -> Result<()> {
        if !self.wanted.contains_key(&number) {
            return Ok(());
        }
        let weight = self.rng.u16(20..=200);
        let what = format!("weight web{number} {weight}");
        self.note("weights", what.clone());
        let result = self.site.api(|api| async move { api.set_weight(&name(number), weight).await }).map(drop);
        if self.made(&what, result)?
            && let Some(wanted) = self.wanted.get_mut(&number)
        {
            wanted.weight = weight;
        }
        Ok(())
    }

    fn drain(&mut self, number: u16) -> Result<()> {
        if !self.is_well(number) || self.well() <= FEWEST {
            return Ok(());
        }
        let what = format!("drain web{number}");
        self.note("drains", what.clone());
        let begun = Instant::now();
        let drain = SetAdmin { admin: Admin::Drain, timeout: None };
        let result = self.site.api(|api| async move { api.set_admin(&name(number), &drain).await }).map(drop);
        if self.made(&what, result)?
            && let Some(wanted) = self.wanted.get_mut(&number)
        {
            wanted.ready = false;
            self.history.begin(number, begun + DRAIN, Kind::Moves);
        }
        Ok(())
    }

    fn remove(&mut self, number: u16) -> Result<()> {
        if !self.is_well(number) || self.well() <= FEWEST {
            return Ok(());
        }
        let what = format!("remove web{number}");
        self.note("removals", what.clone());
        let begun = Instant::now();
        let result = self.site.api(|api| async move { api.remove_backend(&name(number), false).await }).map(drop);
        if self.made(&what, result)? {
            self.wanted.remove(&number);
            self.history.begin(number, begun + DRAIN, Kind::Moves);
        }
        Ok(())
    }

    /// Makes a backend ready, or adds a removed backend again.
    fn bring_back(&mut self, number: u16) -> Result<()> {
        let result = match self.wanted.get(&number).copied() {
            Some(Wanted { ready: true, .. }) => return Ok(()),
            Some(_) => {
                let ready = SetAdmin { admin: Admin::Ready, timeout: None };
                self.site.api(|api| async move { api.set_admin(&name(number), &ready).await }).map(drop)
            }
            None => self.add(number),
        };
        let what = format!("ready web{number}");
        self.note("returns", what.clone());
        if self.made(&what, result)? {
            let weight = self.wanted.get(&number).map_or(100, |wanted| wanted.weight);
            self.wanted.insert(number, Wanted { weight, ready: true });
            if !self.failed.contains_key(&number) {
                self.site.wait_state(number, &["up"])?;
                self.history.end(number);
            }
        }
        Ok(())
    }

    /// Adds a backend to the service. The name of a backend is free again when the previous backend of that name is
    /// gone.
    fn add(&mut self, number: u16) -> Result<()> {
        let at = self.site.backend_address(FAMILY, number);
        // Only `nat` changes the port of a packet.
        let address = if at.port() == PORT { at.ip().to_string() } else { at.to_string() };
        let backend = AddBackend {
            name: format!("web{number}"),
            address,
            address6: None,
            weight: Some(100),
            backup: false,
            max_clients: None,
            max_connections: None,
        };
        let gone = Instant::now() + PATIENCE;
        loop {
            let there = self
                .site
                .status()?
                .services
                .iter()
                .flat_map(|service| &service.backends)
                .any(|of| of.name == backend.name);
            if !there {
                break;
            }
            ensure!(Instant::now() < gone, "{} does not go", backend.name);
            thread::sleep(Duration::from_millis(100));
        }
        self.site.api(|api| async move { api.add_backend("web", &backend).await }).map(drop)
    }

    fn fail(&mut self, number: u16, fault: Fault) -> Result<()> {
        if !self.is_well(number) || self.well() <= FEWEST || !self.failed.is_empty() {
            return Ok(());
        }
        self.note("failures", format!("{fault:?} web{number}"));
        let kind = if fault == Fault::Refuses { Kind::Moves } else { Kind::Silent };
        self.history.begin(number, Instant::now(), kind);
        self.failed.insert(number, fault);
        match fault {
            Fault::Killed => self.site.kill_backend(number),
            Fault::Cut => self.site.topology().switch().ip(&format!("link set web{number} down")).map(drop),
            Fault::Refuses => self.site.fail_backend(number, "503"),
        }
    }

    fn mend(&mut self, number: u16) -> Result<()> {
        let Some(fault) = self.failed.remove(&number) else { return Ok(()) };
        self.note("repairs", format!("repair web{number} ({fault:?})"));
        match fault {
            Fault::Killed => self.site.start_backend(number)?,
            Fault::Cut => drop(self.site.topology().switch().ip(&format!("link set web{number} up"))?),
            Fault::Refuses => self.site.fail_backend(number, "ok")?,
        }
        if self.is_well(number) {
            self.site.wait_state(number, &["up"])?;
            self.history.end(number);
        }
        Ok(())
    }

    /// Repairs the disk, because a controller that cannot write its state does not start.
    fn mend_the_disk(&mut self) -> Result<()> {
        if !self.disk_is_well {
            self.note("disks healed", "the disk is well".to_owned());
            self.faults.heal()?;
            self.disk_is_well = true;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.mend_the_disk()?;
        self.note("restarts", "restart".to_owned());
        self.site.restart(|_| {})?;
        self.look_at_the_state()
    }

    fn kill(&mut self) -> Result<()> {
        self.note("kills", "kill -9".to_owned());
        self.site.controller().process().kill()?;
        self.come_back()
    }

    /// Takes all memory from the controller, so that the kernel kills the controller at its next allocation.
    fn starve(&mut self) -> Result<()> {
        self.note("times without memory", "no memory is left".to_owned());
        let group = NoMemory::new()?;
        group.take(self.site.controller().process().pid())?;
        let deadline = Instant::now() + PATIENCE;
        while self.site.controller().process().exited()?.is_none() {
            if Instant::now() > deadline {
                self.site.controller().process().kill()?;
                bail!("{}", self.history.story_until_now("it does without more memory"));
            }
            // The controller allocates memory for requests and answers.
            let _ = self.site.status();
        }
        self.come_back()
    }

    fn come_back(&mut self) -> Result<()> {
        self.mend_the_disk()?;
        // The traffic continues while no controller runs.
        thread::sleep(Duration::from_millis(self.rng.u64(0..1500)));
        self.site.start_again()?;
        self.history.note("started again");
        self.look_at_the_state()
    }

    /// Stops the controller in the middle of a change. If the controller answers, the answer says whether the
    /// controller made the change. Without an answer, the controller's state says whether the controller made the
    /// change.
    fn stop_while_changing(&mut self, number: u16) -> Result<()> {
        let Some(before) = self.wanted.get(&number).copied() else { return Ok(()) };
        self.mend_the_disk()?;
        let weight = self.rng.u16(20..=200);
        self.note("stops in the middle", format!("weight web{number} {weight} and stop"));
        let mut asker = Command::new(self.faults.program());
        asker.args(["backend", "weight", &format!("web/web{number}"), &weight.to_string()]);
        asker
            .env("BALANCER_SOCKET", self.site.files().join("balancer.sock"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut asker = asker.spawn().context("cannot start `balancer backend weight`")?;
        thread::sleep(Duration::from_millis(self.rng.u64(0..60)));
        self.site.restart(|_| {})?;
        let granted = asker.wait()?.success();
        let now = self.weights()?.get(&number).copied();
        ensure!(
            now == Some(weight) || !granted && now == Some(before.weight),
            "web{number} has the weight {now:?}, was {}; {weight} was granted: {granted}",
            before.weight
        );
        self.wanted.insert(number, Wanted { weight: now.unwrap_or(weight), ..before });
        self.look_at_the_state()
    }

    /// Applies the unchanged configuration file, after which run-time changes must still be in effect.
    fn apply(&mut self) -> Result<()> {
        self.note("applies", "apply the same file".to_owned());
        self.apply_with(|_| {})
    }

    fn apply_with(&mut self, adapt: impl FnOnce(&mut Settings)) -> Result<()> {
        let result = self.site.apply(adapt).map(drop);
        if self.made("apply", result)? { self.look_at_the_state() } else { Ok(()) }
    }

    /// Applies a configuration file with another `remember`, which is long enough for all clients. After applying the
    /// file, run-time changes must still be in effect.
    fn remember(&mut self) -> Result<()> {
        let remember = self.rng.choice(REMEMBER).unwrap_or(REMEMBER[0]);
        self.note("changes of remember", format!("apply remember = {remember}"));
        self.apply_with(|settings| settings.remember = remember)
    }

    fn listen(&mut self) -> Result<()> {
        let verb = if self.listens { "remove" } else { "add" };
        let what = format!("listen {verb} {SPARE_PORT}");
        self.note("listeners", what.clone());
        let listener = format!("{}/udp", SocketAddr::new(self.site.topology().vip(FAMILY), SPARE_PORT));
        let result = self.site.cli(&["service", "listen", verb, "web", &listener]).map(drop);
        if self.made(&what, result)? {
            self.listens = !self.listens;
            self.look_at_the_state()?;
        }
        Ok(())
    }

    fn wear_the_disk(&mut self) -> Result<()> {
        if !self.disk_is_well {
            return self.mend_the_disk();
        }
        self.disk_is_well = false;
        match self.rng.u32(0..4) {
            0 => {
                self.note("full disks", "the disk is full".to_owned());
                self.faults.fill()
            }
            1 => {
                self.note("read-only disks", "the disk is read-only".to_owned());
                self.faults.read_only(true)
            }
            2 => {
                self.note("broken disks", "fsync fails".to_owned());
                self.faults.synchronising(libc::EIO, 0)
            }
            _ => {
                self.note("slow disks", "fsync takes 300 ms".to_owned());
                self.faults.synchronising(0, 300)
            }
        }
    }

    /// Changes the wall clock of the machine. After the change, no deadline may come earlier or later, even if the
    /// controller restarts.
    fn turn_the_clock(&mut self) -> Result<()> {
        let seconds = self.rng.i64(-JUMP..=JUMP);
        self.note("clocks turned", format!("the wall clock is wrong by {seconds} s"));
        self.faults.wall_clock(seconds)
    }

    /// Sends requests of many unknown clients at the same time.
    fn flood(&mut self) -> Result<()> {
        self.note("floods", "a hundred new clients".to_owned());
        let first = self.rng.u16(3000..20_000);
        let replies = self.site.ask(FAMILY, first..first + 100, ANSWER)?;
        if !self.history.is_silent() {
            for reply in replies {
                reply.context("a new client is not answered")?;
            }
        }
        Ok(())
    }

    fn weights(&self) -> Result<BTreeMap<u16, u16>> {
        let status = self.site.status()?;
        let backends = status.services.iter().flat_map(|service| &service.backends);
        let number = |name: &str| name.strip_prefix("web").and_then(|number| number.parse().ok());
        Ok(backends.filter_map(|backend| Some((number(&backend.name)?, backend.weight))).collect())
    }

    /// Checks that exactly the settings that the controller has accepted exist. A backend that the controller is
    /// removing may still exist.
    fn look_at_the_state(&self) -> Result<()> {
        let status = self.site.status()?;
        let mut wrong = String::new();
        for (number, wanted) in &self.wanted {
            let name = format!("web{number}");
            let found = status.services.iter().flat_map(|service| &service.backends).find(|of| of.name == name);
            let is = found.map(|of| Wanted { weight: of.weight, ready: of.admin == "ready" });
            if is != Some(*wanted) {
                let _infallible = writeln!(wrong, "{name} is {is:?}, and {wanted:?} was granted");
            }
        }
        let listeners = status.services.iter().flat_map(|service| &service.listeners);
        let listens = listeners.filter(|of| of.listener.contains(&format!(":{SPARE_PORT}/"))).count();
        if listens != usize::from(self.listens) {
            let _infallible =
                writeln!(wrong, "it listens on port {SPARE_PORT} {listens} times; granted: {}", self.listens);
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("{}", self.history.story_until_now(&wrong))
    }

    /// Repairs all faults, and adds all removed backends again.
    pub(super) fn heal(&mut self) -> Result<()> {
        self.mend_the_disk()?;
        for number in 1..=BACKENDS {
            self.mend(number)?;
            self.bring_back(number)?;
        }
        self.await_checks()?;
        for number in 1..=BACKENDS {
            self.site.wait_state(number, &["up"])?;
            self.history.end(number);
        }
        self.look_at_the_state()
    }

    /// Waits until a check that began after the repair has succeeded for every backend. A check that began before the
    /// repair may still fail, and may turn a backend down that the balancer has not yet found down.
    fn await_checks(&self) -> Result<()> {
        let passed = |number: u16| -> Result<f64> {
            let backend = format!("backend=\"web{number}\"");
            self.site.metrics()?.sum("health_checks_total", &["service=\"web\"", &backend, "result=\"passed\""])
        };
        let before: Vec<f64> = (1..=BACKENDS).map(passed).collect::<Result<_>>()?;
        let deadline = Instant::now() + PATIENCE;
        for (number, before) in (1..).zip(before) {
            while passed(number)? < before + 2.0 {
                ensure!(Instant::now() < deadline, "the checks of web{number} do not pass");
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// Checks, without other traffic, that known and new clients reach the backends that the controller names, and that
    /// the metrics count all connections of these clients.
    pub(super) fn look(&mut self, clients: u16) -> Result<()> {
        let first = self.rng.u16(3000..20_000);
        let all: Vec<u16> = (1..=clients).chain(first..first + 24).collect();
        let before = self.site.metrics()?;
        let said: BTreeMap<u16, String> =
            all.iter().map(|&client| Ok((client, self.site.locate(FAMILY, client)?.1))).collect::<Result<_>>()?;
        let seen = self.site.homes(FAMILY, all.iter().copied())?;
        let differ: Vec<_> = all.iter().filter(|client| said[client] != seen[client]).collect();
        ensure!(
            differ.is_empty(),
            "{}",
            self.history.story_until_now(&format!("said and seen of {differ:?} differ: {said:?} {seen:?}"))
        );
        self.history.seen(seen);
        let after = self.site.metrics()?;
        for counter in ["connections_total", "decisions_total"] {
            let counted = after.sum(counter, &[])? - before.sum(counter, &[])?;
            ensure!(counted == all.len() as f64, "{counter}: {counted} more, with {} connections", all.len());
        }
        self.site.controller().ensure_running()
    }
}
