use std::net::Ipv4Addr;

use super::{
    super::resolve::tests::{OWN_MAC, PEER_MAC, entry, key, link, on_link},
    *,
};

const ADDRESS: &str = "10.0.0.9";
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];

struct Bench {
    tracker: Tracker,
    now: Instant,
}

impl Bench {
    /// Makes a tracker that watches `ADDRESS` on the link of eth0 (2), and that has queried the neighbour; eth1 (3)
    /// exists too.
    fn new() -> Self {
        let mut bench = Self { tracker: Tracker::default(), now: Instant::now() };
        bench.tracker.resync(vec![link(2, "eth0"), link(3, "eth1")], Vec::new(), true, bench.now);
        bench.tracker.watch(address(), bench.now);
        bench.route(on_link(2));
        assert_eq!(bench.evaluate(), [key(2, ADDRESS)]);
        assert_eq!(bench.news(), None);
        bench
    }

    fn known() -> Self {
        let mut bench = Self::new();
        bench.neighbour(NeighbourState::Reachable);
        assert_eq!(bench.settle(), Some(Ok(hop(2, PEER_MAC))));
        bench
    }

    fn route(&mut self, route: Result<Route, NoRoute>) {
        assert_eq!(self.tracker.stale_routes(), [address()]);
        self.tracker.set_route(address(), route);
    }

    fn neighbour(&mut self, state: NeighbourState) {
        self.apply(Update::Neighbour(key(2, ADDRESS), entry(state)));
    }

    fn apply(&mut self, update: Update) {
        self.tracker.apply(update, self.now);
    }

    fn evaluate(&mut self) -> Vec<NeighbourKey> {
        assert!(self.tracker.is_due(self.now));
        self.tracker.evaluate(self.now)
    }

    /// Advances the time by the debounce time, and evaluates the changes.
    fn settle(&mut self) -> Option<Result<NextHop, String>> {
        self.now += DEBOUNCE;
        self.evaluate();
        self.news()
    }

    fn news(&mut self) -> Option<Result<NextHop, String>> {
        self.tracker.next_news().map(|event| {
            let Event::NextHop { address: of, next_hop } = event else { panic!("{event:?}") };
            assert_eq!(of, address());
            next_hop
        })
    }

    /// Advances the time to the next deadline, and returns the neighbours to query at that time.
    fn next(&mut self) -> Vec<NeighbourKey> {
        self.now = self.tracker.deadline().unwrap();
        self.evaluate()
    }
}

fn address() -> IpAddr {
    ADDRESS.parse().unwrap()
}

fn hop(ifindex: u32, destination_mac: [u8; 6]) -> NextHop {
    NextHop { ifindex, source_mac: OWN_MAC, destination_mac, mtu: 1500, source: None, gateway: None, local: false }
}

fn silent() -> Option<Result<NextHop, String>> {
    Some(Err("no neighbour: 10.0.0.9 does not answer on eth0".to_owned()))
}

#[test]
fn when_a_neighbour_is_silent_then_it_is_asked_every_second_and_given_up_after_patience() {
    let mut bench = Bench::new();
    let start = bench.now;
    let mut asked = Vec::new();
    let mut told = Vec::new();
    while bench.now < start + Duration::from_secs(5) {
        if !bench.next().is_empty() {
            asked.push(bench.now - start);
        }
        if let Some(news) = bench.news() {
            assert_eq!(Some(news), silent());
            told.push(bench.now - start);
        }
    }
    assert_eq!(asked, [1, 2, 3, 4, 5].map(Duration::from_secs));
    assert_eq!(told, [PATIENCE]);

    bench.neighbour(NeighbourState::Reachable);
    assert_eq!(bench.settle(), Some(Ok(hop(2, PEER_MAC))));
    assert_eq!(bench.tracker.deadline(), None);
}

#[test]
fn when_a_next_hop_changes_then_each_change_is_told_once() {
    let mut bench = Bench::known();
    for state in [NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe, NeighbourState::Reachable] {
        bench.neighbour(state);
        assert_eq!(bench.settle(), None, "{state}");
    }
    let moved = Neighbour { state: NeighbourState::Reachable, mac: Some(OTHER_MAC) };
    bench.apply(Update::Neighbour(key(2, ADDRESS), moved));
    assert_eq!(bench.settle(), Some(Ok(hop(2, OTHER_MAC))));

    bench.apply(Update::Link(Link { mtu: 9000, ..link(2, "eth0") }));
    assert_eq!(bench.settle(), Some(Ok(NextHop { mtu: 9000, ..hop(2, OTHER_MAC) })));
}

#[test]
fn when_a_change_is_undone_before_it_is_told_then_it_is_not_told() {
    let mut bench = Bench::known();
    bench.neighbour(NeighbourState::Failed);
    bench.now += DEBOUNCE;
    bench.evaluate();
    bench.neighbour(NeighbourState::Reachable);
    assert_eq!(bench.settle(), None);
}

#[test]
fn when_a_neighbour_answers_soon_then_its_next_hop_does_not_flap() {
    let mut bench = Bench::known();
    bench.apply(Update::NeighbourGone(key(2, ADDRESS)));
    bench.now += DEBOUNCE;
    assert_eq!(bench.evaluate(), [key(2, ADDRESS)]);
    let incomplete = Neighbour { state: NeighbourState::Incomplete, mac: None };
    bench.apply(Update::Neighbour(key(2, ADDRESS), incomplete));
    assert_eq!(bench.settle(), None);
    bench.neighbour(NeighbourState::Reachable);
    assert_eq!(bench.settle(), None);
}

#[test]
fn when_the_kernel_gives_up_a_neighbour_then_it_is_lost_at_once() {
    let mut bench = Bench::known();
    bench.neighbour(NeighbourState::Failed);
    assert_eq!(bench.settle(), silent());
}

#[test]
fn when_a_neighbour_stays_gone_then_it_is_lost_after_patience() {
    let mut bench = Bench::known();
    bench.apply(Update::NeighbourGone(key(2, ADDRESS)));
    assert_eq!(bench.settle(), None);
    let start = bench.now;
    let lost = loop {
        bench.next();
        if let Some(news) = bench.news() {
            break news;
        }
    };
    assert_eq!((Some(lost), bench.now - start), (silent(), PATIENCE));
}

#[test]
fn when_interface_or_route_change_then_the_next_hop_follows() {
    let mut bench = Bench::known();
    bench.apply(Update::Link(Link { up: false, running: false, ..link(2, "eth0") }));
    bench.route(Err(NoRoute::Missing));
    assert_eq!(bench.settle(), Some(Err("interface eth0 is down".to_owned())));

    bench.apply(Update::Neighbour(key(3, ADDRESS), entry(NeighbourState::Permanent)));
    bench.apply(Update::Routes(Some("10.0.0.0/24".parse().unwrap())));
    bench.route(on_link(3));
    assert_eq!(bench.settle(), Some(Ok(hop(3, PEER_MAC))));

    bench.apply(Update::LinkGone(3));
    bench.route(Err(NoRoute::Missing));
    assert_eq!(bench.settle(), Some(Err("no route to 10.0.0.9".to_owned())));
}

#[test]
fn when_a_change_does_not_concern_a_watched_address_then_it_is_ignored() {
    let mut bench = Bench::known();
    bench.apply(Update::Routes(Some("10.0.1.0/24".parse().unwrap())));
    bench.apply(Update::Routes(Some("::/0".parse().unwrap())));
    bench.apply(Update::Neighbour(key(2, "10.0.0.8"), entry(NeighbourState::Reachable)));
    bench.apply(Update::Link(link(2, "eth0")));
    assert_eq!(bench.tracker.deadline(), None);
    bench.apply(Update::Routes(Some("0.0.0.0/0".parse().unwrap())));
    assert_eq!(bench.tracker.stale_routes(), [address()]);
}

#[test]
fn when_a_change_was_missed_then_a_resync_finds_it() {
    let mut bench = Bench::known();
    let moved = Neighbour { state: NeighbourState::Stale, mac: Some(OTHER_MAC) };
    bench.tracker.resync(vec![link(2, "eth0")], vec![(key(2, ADDRESS), moved)], false, bench.now);
    bench.route(on_link(2));
    assert_eq!(bench.settle(), Some(Ok(hop(2, OTHER_MAC))));
    assert_eq!(bench.tracker.unconfirmed(), [key(2, ADDRESS)]);
}

#[test]
fn when_routes_are_many_then_resyncs_look_up_some_at_a_time_and_all_in_turn() {
    const MANY: u32 = 2 * AGAIN as u32 + 7;
    let mut tracker = Tracker::default();
    let now = Instant::now();
    let all: BTreeSet<IpAddr> = (0..MANY).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
    let links = || vec![link(2, "eth0")];
    all.iter().for_each(|&address| tracker.watch(address, now));
    let mut looked_up = |missed: bool, links: Vec<Link>| {
        tracker.resync(links, Vec::new(), missed, now);
        let stale = tracker.stale_routes();
        stale.iter().for_each(|&address| tracker.set_route(address, on_link(2)));
        stale
    };
    assert_eq!(looked_up(true, links()).len(), all.len(), "none is known");
    let mut seen = BTreeSet::new();
    for expected in [AGAIN, AGAIN, 7] {
        let stale = looked_up(false, links());
        assert_eq!(stale.len(), expected);
        seen.extend(stale);
    }
    assert_eq!(seen, all);
    assert_eq!(looked_up(false, links()).len(), AGAIN, "from the first on");
    assert_eq!(looked_up(true, links()).len(), all.len(), "changes were missed");
    let down = vec![Link { up: false, ..link(2, "eth0") }];
    assert_eq!(looked_up(false, down).len(), all.len(), "nobody told of the link");
}

#[test]
fn when_an_address_is_watched_again_then_it_is_told_again_and_unwatched_it_is_silent() {
    let mut bench = Bench::known();
    bench.tracker.watch(address(), bench.now);
    bench.route(on_link(2));
    bench.evaluate();
    assert_eq!(bench.news(), Some(Ok(hop(2, PEER_MAC))));

    bench.neighbour(NeighbourState::Failed);
    bench.now += DEBOUNCE;
    bench.evaluate();
    bench.tracker.unwatch(address());
    assert_eq!(bench.news(), None);
}

#[test]
fn when_there_are_gateways_then_they_are_asked_for_and_kept() {
    let mut bench = Bench::known();
    let gateway = key(2, "10.0.0.254");
    bench.tracker.set_gateways(BTreeSet::from([gateway, key(2, ADDRESS)]));
    assert_eq!(bench.tracker.evaluate(bench.now), [gateway], "the other one is known");
    assert_eq!(bench.tracker.evaluate(bench.now), [], "a moment ago");

    bench.apply(Update::Neighbour(gateway, entry(NeighbourState::Stale)));
    assert_eq!(bench.tracker.evaluate(bench.now), []);
    assert_eq!(bench.tracker.unconfirmed(), [gateway]);
    bench.apply(Update::NeighbourGone(gateway));
    bench.now += RETRY;
    assert_eq!(bench.tracker.evaluate(bench.now), [gateway]);
    assert!(!bench.tracker.has_news(), "nobody waits for it");
}

#[test]
fn when_a_client_is_wanted_then_it_is_asked_for_only_where_that_helps() {
    let bench = Bench::known();
    assert!(bench.tracker.is_unknown(key(2, "10.0.0.77")));
    assert!(!bench.tracker.is_unknown(key(2, ADDRESS)), "known");
    assert!(!bench.tracker.is_unknown(key(77, "10.0.0.77")), "no such interface");
}
