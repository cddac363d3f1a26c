//! Stories: the history of a simulated fleet as a list of steps, which the simulation can shorten.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use super::{setup::Setup, store::Time, world::World};
use crate::member::Mutation;

/// Everything in a simulation that follows from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    /// The seed, which also determines all delays in the store.
    pub(crate) seed: u64,
    pub(crate) setup: Setup,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The client with this number opens a connection.
    Packet(u32),
    /// A user makes a request that is derived from this number.
    ChangeRequest(u64),
    /// A component fails or is repaired; this number determines which.
    Disturb(u64),
    Pass(Time),
    /// The simulation repairs all faults, and all members must then agree.
    Settle,
}

/// The result of running a story.
pub(crate) struct End {
    pub(crate) world: World,
    /// The violated property, if the run found a violation.
    pub(crate) wrong: Option<String>,
    /// The number of steps that the run has started.
    steps: usize,
}

/// The maximum number of runs with which the simulation shortens a story.
const ATTEMPTS: usize = 400;

thread_local! {
    static EXPECTS_PANICS: Cell<bool> = const { Cell::new(false) };
}

impl Story {
    /// Creates a story in which periods with failures and periods without failures alternate.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let setup =
            Setup { members: rng.usize(2..=4), failback: rng.bool(), two_services: rng.bool(), spread: rng.bool() };
        let mut steps = vec![Step::Settle];
        for _ in 0..3 {
            let trouble = rng.u8(1..=6);
            for _ in 0..rng.usize(5..40) {
                steps.extend((0..rng.usize(..12)).map(|_| Step::Packet(rng.u32(..120))));
                match rng.u8(..10) {
                    0..=2 => steps.push(Step::ChangeRequest(rng.u64(..))),
                    roll if roll < 2 + trouble => steps.push(Step::Disturb(rng.u64(..))),
                    _ => {}
                }
                steps.push(Step::Pass(rng.u64(1..150) * 10));
            }
            steps.push(Step::Settle);
        }
        Self { seed, setup, steps }
    }

    /// Runs the story from the beginning.
    pub(crate) fn tell(&self, mutation: Option<Mutation>) -> End {
        expect_panics();
        let mut end = End { world: World::new(self.seed, &self.setup, mutation), wrong: None, steps: 0 };
        let told = catch_unwind(AssertUnwindSafe(|| {
            for step in &self.steps {
                end.steps += 1;
                end.world.step(step);
            }
        }));
        EXPECTS_PANICS.set(false);
        end.wrong = told.err().map(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        });
        end
    }

    /// Returns the shortest failing story that the attempts find, and the result of running it.
    pub(crate) fn shrunk(mut self, mutation: Option<Mutation>) -> (Self, End) {
        let mut end = self.tell(mutation);
        let mut attempts = ATTEMPTS;
        self.steps.truncate(end.steps);
        let mut size = self.steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut shorter = self.clone();
                shorter.steps.drain(at..self.steps.len().min(at + size));
                if !self.replace(shorter, mutation, &mut end, &mut attempts) {
                    at += size;
                }
            }
            size /= 2;
        }
        let fewer = |change: fn(&mut Setup)| {
            let mut simpler = self.clone();
            change(&mut simpler.setup);
            simpler
        };
        let simpler = [
            fewer(|setup| setup.members = 2),
            fewer(|setup| setup.members = 3),
            fewer(|setup| setup.two_services = false),
        ];
        for story in simpler {
            if story.setup.members <= self.setup.members {
                let steps = self.steps.clone();
                self.replace(Self { steps, ..story }, mutation, &mut end, &mut attempts);
            }
        }
        (self, end)
    }

    /// Replaces this story by the story `other` if `other` fails as well.
    fn replace(&mut self, other: Self, mutation: Option<Mutation>, end: &mut End, attempts: &mut usize) -> bool {
        if *attempts == 0 {
            return false;
        }
        *attempts -= 1;
        let ended = other.tell(mutation);
        let goes_wrong = ended.wrong.is_some();
        if goes_wrong {
            *self = other;
            self.steps.truncate(ended.steps);
            *end = ended;
        }
        goes_wrong
    }

    pub(crate) const fn len(&self) -> usize {
        self.steps.len()
    }
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet(client) => self.packet(client),
            Step::ChangeRequest(number) => self.change_request(&mut fastrand::Rng::with_seed(number)),
            Step::Disturb(number) => self.disturb(&mut fastrand::Rng::with_seed(number)),
            Step::Pass(time) => self.pass(time),
            Step::Settle => self.settle(),
        }
    }
}

/// Keeps panics of this thread from being printed, because shortening a story causes hundreds of panics.
fn expect_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !EXPECTS_PANICS.get() {
                before(panic);
            }
        }));
    });
    EXPECTS_PANICS.set(true);
}
