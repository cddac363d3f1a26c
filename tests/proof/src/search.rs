//! Breadth-first search through all states of a small world.

use std::{
    collections::HashSet,
    fmt::{self, Debug, Write as _},
    hash::{BuildHasher as _, Hash},
    sync::LazyLock,
};

use foldhash::fast::FixedState;

/// A world with states, of which each event makes another state.
pub trait World {
    /// A state, with all that the world needs to continue from it.
    type State: Clone;
    /// An event, which its `Debug` output writes in Rust.
    type Event: Copy + Debug;

    /// The first state.
    fn first(&self) -> Self::State;

    /// The events that may happen in a state.
    fn events(&self, state: &Self::State) -> Vec<Self::Event>;

    /// The state after an event.
    ///
    /// # Errors
    /// Returns the invariant that the event breaks.
    fn after(&self, state: &Self::State, event: Self::Event) -> Result<Self::State, String>;

    /// A hash of the state: two states with the same hash have the same future.
    fn key(&self, state: &Self::State) -> u128;
}

/// The shortest sequence of events that breaks an invariant.
#[derive(Clone, Debug)]
pub struct Broken<E> {
    /// The events, of which the last breaks the invariant.
    pub events: Vec<E>,
    /// The invariant, and what happened instead.
    pub invariant: String,
}

/// The result of a search.
#[derive(Clone, Debug)]
pub struct Searched<E> {
    /// The number of different states.
    pub states: usize,
    /// The number of events that were tried.
    pub events: usize,
    /// The number of events up to which all sequences were tried.
    pub depth: usize,
    /// Whether no state is left to be visited, so that sequences of any length are covered.
    pub is_complete: bool,
    /// The first sequence found that breaks an invariant; no other sequence is shorter.
    pub broken: Option<Broken<E>>,
}

/// Visits the states of `world`, those after fewer events first, until an invariant breaks, no state is left, or `most`
/// states are known.
#[must_use]
pub fn search<W: World>(world: &W, most: usize) -> Searched<W::Event> {
    let first = world.first();
    let mut known = HashSet::from([world.key(&first)]);
    // For each state, the state before it and the event between the two.
    let mut origins: Vec<(usize, Option<W::Event>)> = vec![(0, None)];
    let mut layer = vec![(0, first)];
    let mut searched = Searched { states: 1, events: 0, depth: 0, is_complete: false, broken: None };
    while !layer.is_empty() && searched.states < most {
        let mut next = Vec::new();
        for (origin, state) in &layer {
            for event in world.events(state) {
                searched.events += 1;
                match world.after(state, event) {
                    Ok(after) => {
                        if known.insert(world.key(&after)) {
                            next.push((origins.len(), after));
                            origins.push((*origin, Some(event)));
                        }
                    }
                    Err(invariant) => {
                        let events = path(&origins, *origin).into_iter().chain([event]).collect();
                        searched.broken = Some(Broken { events, invariant });
                        searched.states = known.len();
                        return searched;
                    }
                }
            }
            if known.len() >= most {
                searched.states = known.len();
                return searched;
            }
        }
        searched.depth += 1;
        searched.states = known.len();
        layer = next;
    }
    searched.is_complete = layer.is_empty();
    searched
}

fn path<E: Copy>(origins: &[(usize, Option<E>)], mut at: usize) -> Vec<E> {
    let mut events = Vec::new();
    while let Some(&(before, Some(event))) = origins.get(at) {
        events.push(event);
        at = before;
    }
    events.reverse();
    events
}

/// Lets `events` happen in `world` from its first state on.
///
/// # Errors
/// Returns the invariant that an event breaks.
pub fn play<W: World>(world: &W, events: &[W::Event]) -> Result<W::State, String> {
    events.iter().try_fold(world.first(), |state, &event| world.after(&state, event))
}

impl<E: Debug> Broken<E> {
    /// The sequence in the form of a test of `world`, an expression.
    #[must_use]
    pub fn test(&self, world: &str) -> String {
        let mut text = String::from("#[test]\nfn when_these_events_happen_then_the_rule_holds() {\n");
        let _ = writeln!(text, "    // {}", self.invariant);
        let _ = writeln!(text, "    play(\n        &{world},\n        &[");
        for event in &self.events {
            let _ = writeln!(text, "            {event:?},");
        }
        text + "        ],\n    )\n    .unwrap();\n}\n"
    }
}

impl<E> fmt::Display for Searched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = if self.is_complete { "all of them" } else { "more exist" };
        write!(f, "{} states ({reach}), {} events tried, depth {}", self.states, self.events, self.depth)
    }
}

/// Hashes `value` to 128 bits; among a hundred million states, two different ones share a hash with a probability below
/// 10⁻²².
#[must_use]
pub fn key(value: &impl Hash) -> u128 {
    static HASHERS: LazyLock<[FixedState; 2]> = LazyLock::new(|| [1, 2].map(FixedState::with_seed));
    let [high, low] = HASHERS.each_ref().map(|hasher| u128::from(hasher.hash_one(value)));
    high << 64 | low
}
