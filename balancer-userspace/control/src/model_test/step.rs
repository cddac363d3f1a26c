//! Random steps of the model test: events and changes.

use std::time::Duration;

use balancer_config::states::{Admin, Forced};
use proptest::{prelude::*, sample::Index};

#[derive(Clone, Debug)]
pub(super) enum Step {
    Check(Index, u8, u8),
    NextHop(Index, bool),
    /// Several backends are checked at the same time, often enough for a verdict on each of them.
    Together(Vec<(Index, u8)>),
    Add {
        service: Index,
        name: u8,
        host: u8,
        port: Option<u16>,
        weight: Option<u16>,
        backup: bool,
    },
    Remove(Index, bool),
    Admin(Index, Admin, Option<Duration>),
    Weight(Index, u16),
    Force(Index, Option<Forced>),
    /// An agent reports a percentage, and whether its backend is down.
    Agent(Index, u8, bool),
    /// A backend starts or stops giving slots away, and the other backends of its service stop giving slots away.
    Bound(Index, Option<u8>),
    /// A backend becomes full or has room again, and all other backends of its service have room.
    Full(Index, bool),
    /// A backend gets a limit on its clients, or loses this limit.
    Limit(Index, Option<u32>),
    Rule(Index, u8, u8),
    /// A service's list gets other targets: the targets in this bit mask, beginning with the target at this index. Each
    /// has the address of the target this many places further on, and all have this weight.
    Discover(u8, u8, u8, u16),
    /// A service starts or stops listening on one of a few further addresses.
    Listen(Index, Index, bool),
    Reload(Vec<Edit>),
    /// The drop-in gets a service with the backends in this bit mask and this weight, or is removed.
    DropIn(Option<(u8, u16)>),
    /// Every client whose number is divisible by this number connects.
    Connect(u32),
    Forget(u32),
    Sweep,
    Wait(Duration),
    /// One command of the next change or event fails.
    Fail(Index),
    Restart,
}

/// The configuration file changes in this way.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Add(Index, u8, u8),
    Remove(Index),
    Weight(Index, u16),
    Move(Index, u8),
    AddService,
    DropService(Index),
    Resize(Index),
    Policy(Index, u16),
    /// A service and its first backend get new names; if the flag is set, the file does not state their former names.
    Rename(Index, u8, bool),
    /// A service starts or stops listening on one of a few further addresses.
    Listen(Index, Index),
    Prefix(Index),
}

fn weight() -> impl Strategy<Value = u16> {
    prop_oneof![3 => 1u16..300, 1 => Just(0), 1 => Just(u16::MAX)]
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<Index>;
    prop_oneof![
        1 => (index(), 0..8u8, 0..12u8).prop_map(|(index, name, host)| Edit::Add(index, name, host)),
        1 => index().prop_map(Edit::Remove),
        1 => (index(), weight()).prop_map(|(index, weight)| Edit::Weight(index, weight)),
        1 => (index(), 0..12u8).prop_map(|(index, host)| Edit::Move(index, host)),
        1 => Just(Edit::AddService),
        1 => index().prop_map(Edit::DropService),
        1 => index().prop_map(Edit::Resize),
        1 => (index(), 0..3u8, prop::bool::weighted(0.2)).prop_map(|(index, to, silent)| Edit::Rename(index, to, silent)),
        1 => (index(), index()).prop_map(|(index, at)| Edit::Listen(index, at)),
        1 => index().prop_map(Edit::Prefix),
        4 => (index(), any::<u16>()).prop_map(|(index, bits)| Edit::Policy(index, bits)),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let admin = prop_oneof![Just(Admin::Ready), Just(Admin::Drain), Just(Admin::Maint)];
    let timeout = prop::option::of((1u64..60).prop_map(Duration::from_secs));
    let forced = prop_oneof![Just(None), Just(Some(Forced::Up)), Just(Some(Forced::Down))];
    let add = (index(), 0..8u8, 0..12u8, prop_oneof![4 => Just(None), 1 => (1u16..3).prop_map(Some)]);
    let add = (add, prop::option::of(weight()), prop::bool::weighted(0.2)).prop_map(
        |((service, name, host, port), weight, backup)| Step::Add { service, name, host, port, weight, backup },
    );
    let together = prop::collection::vec((index(), 0..3u8), 2..5);
    let shift = prop_oneof![3 => Just(0u8), 1 => 1..4u8];
    prop_oneof![
        8 => (index(), 0..7u8, 1..5u8).prop_map(|(index, outcome, times)| Step::Check(index, outcome, times)),
        4 => (index(), prop::bool::weighted(0.7)).prop_map(|(index, found)| Step::NextHop(index, found)),
        2 => together.prop_map(Step::Together),
        3 => add,
        2 => (index(), any::<bool>()).prop_map(|(index, force)| Step::Remove(index, force)),
        4 => (index(), admin, timeout).prop_map(|(index, admin, timeout)| Step::Admin(index, admin, timeout)),
        2 => (index(), weight()).prop_map(|(index, weight)| Step::Weight(index, weight)),
        2 => (index(), 0..3u8, prop::bool::weighted(0.3)).prop_map(|(index, half, down)| Step::Agent(index, 50 * half, down)),
        2 => (index(), prop::option::of(1..10u8)).prop_map(|(index, tenths)| Step::Bound(index, tenths)),
        2 => (index(), any::<bool>()).prop_map(|(index, full)| Step::Full(index, full)),
        2 => (index(), prop::option::of(1..9u32)).prop_map(|(index, most)| Step::Limit(index, most)),
        3 => (index(), forced).prop_map(|(index, forced)| Step::Force(index, forced)),
        2 => (index(), 0..3u8, 0..5u8).prop_map(|(index, prefix, kind)| Step::Rule(index, prefix, kind)),
        4 => (0..16u8, 0..4u8, shift, weight())
            .prop_map(|(targets, first, shift, weight)| Step::Discover(targets, first, shift, weight)),
        3 => (index(), index(), prop::bool::weighted(0.6)).prop_map(|(index, at, add)| Step::Listen(index, at, add)),
        3 => prop::collection::vec(edit(), 0..4).prop_map(Step::Reload),
        2 => prop::option::weighted(0.8, (0..16u8, weight())).prop_map(Step::DropIn),
        4 => (1..4u32).prop_map(Step::Connect),
        1 => (1..4u32).prop_map(Step::Forget),
        4 => Just(Step::Sweep),
        3 => (1u64..60).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        4 => index().prop_map(Step::Fail),
        1 => Just(Step::Restart),
    ]
}
