//! Determines whether this balancer is fit to receive clients, and the reasons if it is not fit.

use std::collections::BTreeMap;

use balancer_config::{config::WhenAlone, words::grouped};
use serde::{Deserialize, Serialize};

/// The maximum number of backends that a reason names; the reason only counts the other backends.
const NAMED: usize = 5;

/// Whether a balancer is fit to receive clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fitness {
    /// The balancer steers clients as intended.
    Ready,
    /// The balancer steers clients, but needs attention.
    Degraded,
    /// The balancer should not receive clients.
    #[default]
    NotReady,
}

impl Fitness {
    /// The name of the fitness: `ready`, `degraded` or `not_ready`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::NotReady => "not_ready",
        }
    }

    /// Whether other machines may send clients to the balancer.
    #[must_use]
    pub const fn serves(self) -> bool {
        match self {
            Self::Ready | Self::Degraded => true,
            Self::NotReady => false,
        }
    }
}

/// A verdict on the balancer's fitness, with the reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub state: Fitness,
    /// The reasons why the balancer is not `ready`, one sentence each; empty if it is `ready`.
    pub reasons: Vec<String>,
}

/// The facts that determine the verdict on the balancer's fitness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub stage: Stage,
    /// The number of interfaces to which the balancer has attached its program.
    pub attached: usize,
    /// The wanted interfaces to which the balancer has not attached its program.
    pub missing: Vec<String>,
    /// The interfaces, without the program, by which replies of `nat` and `snat` backends arrive, each with these
    /// backends (`SERVICE/NAME`).
    pub unattached: BTreeMap<String, Vec<String>>,
    /// Whether the data path lacks something of the wanted state; `None`: it has the wanted state.
    pub out_of_step: Option<OutOfStep>,
    /// Problems of this machine, one sentence each.
    pub troubles: Vec<String>,
    /// The state of the balancer's fleet; `None`: the balancer belongs to no fleet.
    pub fleet: Option<FleetFacts>,
}

/// A failure to bring the data path into the wanted state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfStep {
    /// The reason of the failure.
    pub why: String,
    /// Whether the failure has lasted for longer than a second.
    pub lasts: bool,
}

/// The stages in the life of the balancer's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The process has not finished its startup.
    #[default]
    Starting,
    /// The process serves clients.
    Serving,
    /// The process was asked to end, and is ending.
    Leaving,
}

/// The facts about a member's participation in its fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFacts {
    /// Whether the member has received the fleet's current epoch and the records about clients.
    pub joined: bool,
    /// Whether the engine answers this member.
    pub engine_reachable: bool,
    /// The reason why the engine does not answer, if the engine does not answer.
    pub engine_trouble: Option<String>,
    /// The engine's own message that says why it refuses writes, although it is reachable.
    pub denial: Option<String>,
    /// The reason why this member does not take part in the fleet although it could.
    pub refused: Option<String>,
    /// The part of the fleet's current state that this member does not apply, in words.
    pub lacks: Option<String>,
    /// Steps that an operator should take before the engine fails, one sentence each.
    pub engine_warnings: Vec<String>,
    /// Whether the engine has not answered, or has refused writes, for longer than the lease.
    pub alone: bool,
    /// How the member treats VIPs while it is alone.
    pub when_alone: WhenAlone,
    /// The backends (`SERVICE/NAME`) that the fleet considers up but that this member cannot reach.
    pub unreachable_here: Vec<String>,
}

impl OutOfStep {
    fn reason(&self) -> String {
        format!("the kernel's maps do not hold the last change: {}", self.why)
    }
}

impl FleetFacts {
    /// Returns the facts about a member that has received nothing from the fleet yet.
    #[must_use]
    pub const fn stranger(when_alone: WhenAlone) -> Self {
        Self {
            joined: false,
            engine_reachable: false,
            engine_trouble: None,
            denial: None,
            refused: None,
            lacks: None,
            engine_warnings: Vec::new(),
            alone: false,
            when_alone,
            unreachable_here: Vec::new(),
        }
    }

    /// Returns the problem with the engine, if there is one.
    fn engine(&self) -> Option<String> {
        let because = |why: &Option<String>| why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        match &self.denial {
            Some(why) => Some(format!("etcd takes no writes ({why})")),
            None if self.engine_reachable => None,
            None => Some(format!("etcd is out of reach{}", because(&self.engine_trouble))),
        }
    }
}

/// A verdict on the balancer's fitness, and whether the VIPs are withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// The verdict on the balancer's fitness.
    pub readiness: Readiness,
    /// Whether the operator has withdrawn the VIPs.
    pub withdrawn: bool,
}

impl Announcement {
    /// The verdict that readers of the readiness see. `announced` means that readers of the verdict cannot see whether
    /// this machine has the VIPs, so a withdrawn balancer counts as not ready.
    #[must_use]
    pub fn seen(self, announced: bool) -> Readiness {
        let Self { mut readiness, withdrawn } = self;
        if announced && withdrawn {
            readiness.state = Fitness::NotReady;
            readiness.reasons.insert(0, "it is withdrawn".to_owned());
        }
        readiness
    }
}

impl Facts {
    /// The verdict that follows from the facts.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let reasons = self.against();
        if !reasons.is_empty() {
            return Readiness { state: Fitness::NotReady, reasons };
        }
        let reasons = self.doubts();
        let state = if reasons.is_empty() { Fitness::Ready } else { Fitness::Degraded };
        Readiness { state, reasons }
    }

    /// Returns the reasons why clients should not come to the balancer.
    fn against(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        match self.stage {
            Stage::Starting => return vec!["it is starting".to_owned()],
            Stage::Serving => {}
            Stage::Leaving => reasons.push("it is ending".to_owned()),
        }
        if self.attached == 0 {
            reasons.push("the program is on no interface".to_owned());
        }
        reasons.extend(self.out_of_step.iter().filter(|step| step.lasts).map(OutOfStep::reason));
        match &self.fleet {
            Some(fleet) if !fleet.joined => {
                let no_records = || "it has not received the fleet's state and clients yet".to_owned();
                let why = fleet.refused.clone().or_else(|| fleet.engine()).unwrap_or_else(no_records);
                reasons.push(format!("it has not joined the fleet yet: {why}"));
            }
            Some(fleet) if fleet.alone && fleet.when_alone == WhenAlone::Withdraw => {
                let why = fleet.engine().unwrap_or_else(|| "etcd was out of reach".to_owned());
                reasons.push(format!("{why} for longer than the lease (when_alone = \"withdraw\")"));
            }
            Some(_) | None => {}
        }
        reasons
    }

    /// Returns the reasons for the state `degraded`, in which clients may still come to the balancer.
    fn doubts(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.missing.is_empty() {
            reasons.push(format!("the program is not on {}", self.missing.join(", ")));
        }
        reasons.extend(self.unattached.iter().map(|(interface, backends)| unattached(interface, backends)));
        reasons.extend(self.out_of_step.iter().map(OutOfStep::reason));
        reasons.extend(self.troubles.iter().cloned());
        let Some(fleet) = &self.fleet else { return reasons };
        reasons.extend(fleet.engine().map(|why| format!("{why}: changes are refused")));
        reasons.extend(fleet.refused.as_ref().map(|why| format!("it is no member of the fleet: {why}")));
        reasons.extend(fleet.lacks.as_ref().map(|what| format!("it applies the fleet's state only in part: {what}")));
        reasons.extend(fleet.engine_warnings.iter().cloned());
        if !fleet.unreachable_here.is_empty() {
            reasons.push(format!("it cannot reach {}, which the fleet holds up", some(&fleet.unreachable_here)));
        }
        reasons
    }
}

/// Returns the reason that replies of `backends` arrive by an interface without the program.
fn unattached(interface: &str, backends: &[String]) -> String {
    let begin = begin_of_unattached(interface);
    format!("{begin}replies of {} come in: name {interface} in `interfaces` as well", some(backends))
}

/// The words with which the reason about an interface begins that lacks the program, although replies of backends
/// arrive by it.
#[must_use]
pub fn begin_of_unattached(interface: &str) -> String {
    format!("the program is not on {interface}, by which ")
}

/// Returns a list of names such as `web/web1, web/web2 and 3 more`.
fn some(names: &[String]) -> String {
    let (shown, others) = names.split_at(names.len().min(NAMED));
    let shown = shown.join(", ");
    if others.is_empty() { shown } else { format!("{shown} and {} more", grouped(others.len() as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serving(fleet: Option<FleetFacts>) -> Facts {
        Facts { stage: Stage::Serving, attached: 1, fleet, ..Facts::default() }
    }

    fn member() -> FleetFacts {
        FleetFacts { joined: true, engine_reachable: true, ..FleetFacts::stranger(WhenAlone::Serve) }
    }

    #[test]
    fn when_facts_are_judged_then_the_balancer_serves_or_not() {
        use Fitness::{Degraded, NotReady, Ready};
        let fleet = |change: fn(&mut FleetFacts)| {
            let mut member = member();
            change(&mut member);
            serving(Some(member))
        };
        let alone = serving(None);
        for (facts, state, reasons) in [
            (Facts::default(), NotReady, &["it is starting"][..]),
            (alone.clone(), Ready, &[]),
            (Facts { stage: Stage::Leaving, ..alone.clone() }, NotReady, &["it is ending"]),
            (Facts { attached: 0, ..alone.clone() }, NotReady, &["the program is on no interface"]),
            (Facts { missing: vec!["eth1".to_owned()], ..alone.clone() }, Degraded, &["the program is not on eth1"]),
            (
                Facts { unattached: BTreeMap::from([("lb1".to_owned(), owned(&["a/a1", "a/a2"]))]), ..alone.clone() },
                Degraded,
                &[
                    "the program is not on lb1, by which replies of a/a1, a/a2 come in: name lb1 in `interfaces` as well",
                ],
            ),
            (Facts { troubles: owned(&["no"]), ..alone.clone() }, Degraded, &["no"]),
            (out_of_step(&alone, false), Degraded, &["the kernel's maps do not hold the last change: no room"]),
            (out_of_step(&alone, true), NotReady, &["the kernel's maps do not hold the last change: no room"]),
            (
                serving(Some(FleetFacts::stranger(WhenAlone::Serve))),
                NotReady,
                &["it has not joined the fleet yet: etcd is out of reach"],
            ),
            (
                fleet(|fleet| fleet.joined = false),
                NotReady,
                &["it has not joined the fleet yet: it has not received the fleet's state and clients yet"],
            ),
            (fleet(|_| {}), Ready, &[]),
            (fleet(|fleet| fleet.engine_reachable = false), Degraded, &["etcd is out of reach: changes are refused"]),
            (
                fleet(|fleet| (fleet.engine_reachable, fleet.alone) = (false, true)),
                Degraded,
                &["etcd is out of reach: changes are refused"],
            ),
            (
                fleet(|fleet| {
                    (fleet.engine_reachable, fleet.alone, fleet.when_alone) = (false, true, WhenAlone::Withdraw);
                }),
                NotReady,
                &["etcd is out of reach for longer than the lease (when_alone = \"withdraw\")"],
            ),
            (
                fleet(|fleet| (fleet.engine_reachable, fleet.engine_trouble) = (false, Some("refused".to_owned()))),
                Degraded,
                &["etcd is out of reach (refused): changes are refused"],
            ),
            (
                fleet(|fleet| fleet.denial = Some("mvcc: database space exceeded".to_owned())),
                Degraded,
                &["etcd takes no writes (mvcc: database space exceeded): changes are refused"],
            ),
            (
                fleet(|fleet| {
                    (fleet.denial, fleet.alone) = (Some("permission denied".to_owned()), true);
                    fleet.when_alone = WhenAlone::Withdraw;
                }),
                NotReady,
                &["etcd takes no writes (permission denied) for longer than the lease (when_alone = \"withdraw\")"],
            ),
            (
                fleet(|fleet| (fleet.joined, fleet.refused) = (false, Some("lb1 is there already".to_owned()))),
                NotReady,
                &["it has not joined the fleet yet: lb1 is there already"],
            ),
            (
                fleet(|fleet| fleet.refused = Some("lb1 is there already".to_owned())),
                Degraded,
                &["it is no member of the fleet: lb1 is there already"],
            ),
            (
                fleet(|fleet| fleet.lacks = Some("service web stays as it was, because it is too large".to_owned())),
                Degraded,
                &["it applies the fleet's state only in part: service web stays as it was, because it is too large"],
            ),
            (
                fleet(|fleet| fleet.engine_warnings = vec!["etcd's database is nearly full".to_owned()]),
                Degraded,
                &["etcd's database is nearly full"],
            ),
            (
                fleet(|fleet| fleet.unreachable_here = (1..=7).map(|number| format!("web/web{number}")).collect()),
                Degraded,
                &[
                    "it cannot reach web/web1, web/web2, web/web3, web/web4, web/web5 and 2 more, which the fleet holds up",
                ],
            ),
        ] {
            let readiness = facts.readiness();
            assert_eq!((readiness.state, readiness.reasons.as_slice()), (state, &*owned(reasons)), "{facts:?}");
        }
    }

    fn out_of_step(facts: &Facts, lasts: bool) -> Facts {
        Facts { out_of_step: Some(OutOfStep { why: "no room".to_owned(), lasts }), ..facts.clone() }
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn when_a_balancer_is_withdrawn_then_it_is_not_ready_to_those_who_cannot_see_its_vips() {
        let readiness = Facts { missing: owned(&["eth1"]), ..serving(None) }.readiness();
        for (withdrawn, announced) in [(false, false), (false, true), (true, false)] {
            assert_eq!(Announcement { readiness: readiness.clone(), withdrawn }.seen(announced), readiness);
        }
        let withdrawn = Announcement { readiness, withdrawn: true }.seen(true);
        assert_eq!(withdrawn.state, Fitness::NotReady);
        assert_eq!(withdrawn.reasons, ["it is withdrawn", "the program is not on eth1"]);
    }

    #[test]
    fn when_fitness_is_shown_then_the_word_is_that_of_json() {
        for fitness in [Fitness::Ready, Fitness::Degraded, Fitness::NotReady] {
            assert_eq!(serde_json::to_value(fitness).unwrap(), fitness.word());
        }
        assert!(Fitness::Ready.serves() && Fitness::Degraded.serves() && !Fitness::NotReady.serves());
    }
}
