//! A tour that shows the events of a day in a cluster within a minute, and the clients that move.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balancer_api::model::StatusView;
use balancer_config::states::BackendState;

use crate::{
    config::name,
    hosts::{Hosts, SPARE, STARTED},
    ip_hash,
    load::{Load, Seen},
};

/// The footnote to which the sign ¹ refers.
pub(crate) const FOOTNOTE: &str =
    " ¹ clients that nginx's rule for ip_hash sends elsewhere, computed for the same addresses";

/// The maximum time until the effect of a step is visible.
const EFFECT_LIMIT: Duration = Duration::from_secs(60);

/// The index of the server that the tour drains.
const DRAINED: u16 = 1;

/// The index of the server that the tour kills.
const KILLED: u16 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    LogIn,
    Add,
    Drain,
    TakeBack,
    Kill,
    Restart,
    End,
}

/// The start of each step in the one-minute tour, in seconds.
const STEPS: [(u64, Action); 7] = [
    (0, Action::LogIn),
    (8, Action::Add),
    (18, Action::Drain),
    (30, Action::TakeBack),
    (38, Action::Kill),
    (50, Action::Restart),
    (60, Action::End),
];

impl Action {
    fn sentence(self) -> String {
        match self {
            Self::LogIn => "Clients log in; each gets a session on one server.".to_owned(),
            Self::Add => format!("{} is added.", name(SPARE)),
            Self::Drain => format!("{} is drained: its clients stay, newcomers go elsewhere.", name(DRAINED)),
            Self::TakeBack => format!("{} is taken back.", name(DRAINED)),
            Self::Kill => format!("{} is killed: its clients move, nobody else does.", name(KILLED)),
            Self::Restart => format!("{} is back.", name(KILLED)),
            Self::End => "The tour is over; the commands above are yours. Ctrl-C ends the demo.".to_owned(),
        }
    }

    /// The index of the server at which the effect of the action is visible, and the states that the server may then
    /// have.
    const fn effect(self) -> Option<(u16, &'static [BackendState])> {
        match self {
            Self::LogIn | Self::End => None,
            Self::Add => Some((SPARE, &[BackendState::Up])),
            Self::Drain => Some((DRAINED, &[BackendState::Draining, BackendState::Drained])),
            Self::TakeBack => Some((DRAINED, &[BackendState::Up])),
            Self::Kill => Some((KILLED, &[BackendState::Down])),
            Self::Restart => Some((KILLED, &[BackendState::Up])),
        }
    }

    fn has_happened(self, status: &StatusView) -> bool {
        let Some((server, states)) = self.effect() else { return true };
        let name = name(server);
        let mut backends = status.services.iter().flat_map(|service| &service.backends);
        backends.any(|backend| backend.name == name && states.iter().any(|state| state.word() == backend.state))
    }

    /// The lists of servers that nginx would have in service before and after the action, in the order of nginx's
    /// configuration.
    const fn servers(self) -> Option<(&'static [bool], &'static [bool])> {
        const THREE: &[bool] = &[true; 3];
        const FOUR: &[bool] = &[true; 4];
        const NO_DRAINED: &[bool] = &[true, false, true, true];
        const NO_KILLED: &[bool] = &[false, true, true, true];
        match self {
            Self::LogIn | Self::End => None,
            Self::Add => Some((THREE, FOUR)),
            Self::Drain => Some((FOUR, NO_DRAINED)),
            Self::TakeBack => Some((NO_DRAINED, FOUR)),
            Self::Kill => Some((FOUR, NO_KILLED)),
            Self::Restart => Some((NO_KILLED, FOUR)),
        }
    }
}

/// A step of the tour, and the effect of the step so far.
#[derive(Clone, Debug)]
struct Step {
    action: Action,
    begun: Instant,
    /// The clients' observations when the step began.
    before: Seen,
    /// The number of clients that nginx would have moved, counting the clients that existed when the step began.
    ip_hash: usize,
    /// The number of rounds of the clients at the time when the effect became visible.
    shown: Option<u64>,
}

impl Step {
    fn line(&self, now: &Seen) -> String {
        let sentence = self.action.sentence();
        if self.action.servers().is_none() {
            return sentence;
        }
        let clients = self.before.clients();
        let moved = now.moves() - self.before.moves();
        let details = match self.action {
            Action::Drain => {
                let there = now.clients_of(&name(DRAINED)).saturating_sub(self.before.clients_of(&name(DRAINED)));
                format!("; newcomers there: {there} of {}", now.clients() - clients)
            }
            Action::Kill => {
                let there = self.before.clients_of(&name(KILLED));
                let own = now.moves_from(&name(KILLED)) - self.before.moves_from(&name(KILLED));
                format!(" ({own} of {there} on {}, {} of the others)", name(KILLED), moved - own)
            }
            Action::LogIn | Action::Add | Action::TakeBack | Action::Restart | Action::End => String::new(),
        };
        format!("{sentence} Moved: {moved} of {clients}{details}; nginx ip_hash: {} ¹", self.ip_hash)
    }

    /// Whether the effect of the step is visible and all clients have experienced it.
    fn is_settled(&mut self, status: &StatusView, load: &Load) -> Result<bool> {
        let rounds = load.rounds();
        if self.shown.is_none() && self.action.has_happened(status) {
            self.shown = Some(rounds);
        }
        ensure!(
            self.shown.is_some() || self.begun.elapsed() < EFFECT_LIMIT,
            "nothing was seen of this within {} s: {}",
            EFFECT_LIMIT.as_secs(),
            self.action.sentence()
        );
        Ok(self.shown.is_some_and(|shown| rounds >= shown + 2))
    }
}

/// The rule that determines when the next step starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Each step starts at a fixed time, so that viewers can follow the tour.
    Minute,
    /// Each step starts when all clients have experienced the effect of the previous step.
    Settled,
}

/// The tour and the progress of its steps.
pub(crate) struct Tour {
    pace: Pace,
    begun: Instant,
    steps: Vec<Step>,
    /// The text lines about finished steps.
    done: Vec<String>,
}

impl Tour {
    /// Makes a tour that takes a minute, for viewers.
    pub(crate) fn in_a_minute() -> Self {
        Self::at(Pace::Minute)
    }

    /// Makes a tour that runs as fast as possible.
    pub(crate) fn at_once() -> Self {
        Self::at(Pace::Settled)
    }

    fn at(pace: Pace) -> Self {
        Self { pace, begun: Instant::now(), steps: Vec::new(), done: Vec::new() }
    }

    /// Whether the last step of the tour has begun.
    pub(crate) const fn is_over(&self) -> bool {
        self.steps.len() == STEPS.len()
    }

    /// Starts the steps that are due, and returns the text lines of the steps that have ended.
    pub(crate) fn advance(&mut self, status: &StatusView, hosts: &mut Hosts, load: &Load) -> Result<Vec<String>> {
        let before = self.done.len();
        while let Some(&(at, action)) = STEPS.get(self.steps.len())
            && self.is_due(at, status, load)?
        {
            self.begin(action, hosts, load)?;
        }
        Ok(self.done[before..].to_vec())
    }

    fn is_due(&mut self, at: u64, status: &StatusView, load: &Load) -> Result<bool> {
        match (self.pace, self.steps.last_mut()) {
            (Pace::Minute, _) => Ok(self.begun.elapsed() >= Duration::from_secs(at)),
            (Pace::Settled, None) => Ok(true),
            (Pace::Settled, Some(step)) => step.is_settled(status, load),
        }
    }

    fn begin(&mut self, action: Action, hosts: &mut Hosts, load: &Load) -> Result<()> {
        let before = load.seen();
        if let Some(step) = self.steps.last() {
            self.done.push(step.line(&before));
        }
        let ip_hash = action.servers().map_or(0, |(old, new)| ip_hash::moved(before.addresses(), old, new));
        perform(action, hosts, load)?;
        self.steps.push(Step { action, begun: Instant::now(), before, ip_hash, shown: None });
        Ok(())
    }

    /// Returns the text about the tour, which the demo shows beside the table.
    pub(crate) fn text(&self, now: &Seen) -> String {
        let Some(current) = self.steps.last() else { return String::new() };
        let mut text = String::new();
        for line in &self.done {
            text += &format!("   {line}\n");
        }
        text += &format!(" ► {}\n", current.line(now));
        if !self.is_over() {
            text += "   (any key ends the tour)\n";
        }
        text + FOOTNOTE + "\n\n"
    }
}

fn perform(action: Action, hosts: &mut Hosts, load: &Load) -> Result<()> {
    match action {
        Action::LogIn | Action::End => Ok(()),
        Action::Add => {
            hosts.start_backend(SPARE)?;
            let address = hosts.backend_address(SPARE).to_string();
            command(hosts, &["backend", "add", &format!("web/{}", name(SPARE)), &address])
        }
        Action::Drain => {
            command(hosts, &["backend", "drain", &format!("web/{}", name(DRAINED)), "--timeout", "1h"])?;
            load.admit_newcomers();
            Ok(())
        }
        Action::TakeBack => command(hosts, &["backend", "ready", &format!("web/{}", name(DRAINED))]),
        Action::Kill => {
            hosts.running.stop_backend(&name(KILLED));
            Ok(())
        }
        Action::Restart => hosts.start_backend(KILLED),
    }
}

fn command(hosts: &Hosts, arguments: &[&str]) -> Result<()> {
    let output = hosts.running.cli(arguments)?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`balancer {}`: {}", arguments.join(" "), words.trim());
    Ok(())
}

const _: () = assert!(STARTED == 3 && SPARE == 3, "the lists of servers above say which there are");

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Action, STEPS, Seen, Step};

    #[test]
    fn when_a_step_is_over_then_it_tells_what_moved_since_it_began() {
        let mut before = Seen::default();
        for (server, clients) in [("web1", 40), ("web2", 60)] {
            before.backends.entry(server.to_owned()).or_default().clients = clients;
        }
        before.backends.entry("web2".to_owned()).or_default().moved_in = 5;
        let mut now = before.clone();
        now.backends.entry("web2".to_owned()).or_default().moved_in = 45;
        now.backends.entry("web1".to_owned()).or_default().moved_out = 39;
        let step = Step { action: Action::Kill, begun: Instant::now(), before, ip_hash: 77, shown: None };
        let line = step.line(&now);
        assert!(line.ends_with("Moved: 40 of 100 (39 of 40 on web1, 1 of the others); nginx ip_hash: 77 ¹"), "{line}");
    }

    #[test]
    fn when_the_steps_are_listed_then_each_continues_from_the_one_before() {
        assert!(STEPS.is_sorted_by_key(|&(at, _)| at));
        for pair in STEPS.windows(2) {
            if let (Some((_, after)), Some((before, _))) = (pair[0].1.servers(), pair[1].1.servers()) {
                assert_eq!(after, before, "{pair:?}");
            }
        }
    }
}
