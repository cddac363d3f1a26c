//! Measures the computation time of lookup tables with 65,537 slots, and the time that the core needs to handle a
//! failed backend with all consequences. The goal for the computation of a table with 1,000 backends is 1.8 ms (Maglev,
//! NSDI 2016).

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use balancer_common::{client::HashKey, map_types::Forwarding};
use balancer_config::{
    config::WhenAllDown,
    fixture::{self, config, service},
};
use balancer_control::{
    controller::Controller,
    io::{BackendId, CheckNumber, CheckOutcome, Command, Event, NextHop},
    maglev::{self, Member},
    table::{Builder, Candidate},
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const SLOTS: u32 = 65_537;
const KEY: HashKey = HashKey { k0: 1, k1: 2 };
type Weight = fn(u16) -> u16;

const BACKENDS: [u16; 4] = [3, 8, 100, 1000];

fn names(backends: u16) -> Vec<String> {
    (0..backends).map(|n| format!("web{n}")).collect()
}

/// Builds a base table of equal backends, and a base table with a heavy backend among light backends.
fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    let weights: [(&str, Weight); 2] = [("equal", |_| 100), ("skewed", |n| if n == 0 { 65_535 } else { n })];
    for (label, weight) in weights {
        for backends in BACKENDS {
            let names = names(backends);
            let members: Vec<Member<'_>> =
                (0..backends).zip(&names).map(|(n, name)| Member { id: n + 1, name, weight: weight(n) }).collect();
            group.bench_with_input(BenchmarkId::new(label, backends), &members, |bencher, members| {
                bencher.iter(|| maglev::table(black_box(members), SLOTS, KEY));
            });
        }
    }
    group.finish();
}

/// Builds the live table after one backend has failed, and after half of the backends have failed.
fn failure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("failure");
    for backends in BACKENDS {
        let names = names(backends);
        let without = |down: &dyn Fn(u16) -> bool| -> Vec<Candidate<'_>> {
            (0..backends)
                .zip(&names)
                .map(|(n, name)| Candidate {
                    member: Member { id: n + 1, name, weight: 100 },
                    backup: false,
                    maint: false,
                    takes_new: !down(n),
                    step: None,
                    bound: None,
                })
                .collect()
        };
        // Each iteration fails the other one of the two backends, so that each failure differs from the previous
        // failure.
        let one = [without(&|n| n == 0), without(&|n| n == 1)];
        let half = [without(&|n| n % 2 == 0), without(&|n| n % 2 == 1)];
        for (label, failures) in [("one", one), ("half", half)] {
            let mut builder = Builder::default();
            group.bench_with_input(BenchmarkId::new(label, backends), &failures, |bencher, failures| {
                let mut turn = failures.iter().cycle();
                bencher.iter(|| {
                    turn.next()
                        .map(|candidates| builder.live(black_box(candidates), WhenAllDown::Open, (SLOTS, KEY), &[]))
                });
            });
        }
    }
    group.finish();
}

/// A service whose backends are all up.
struct Site {
    controller: Controller,
    checks: Vec<(BackendId, CheckNumber)>,
    now: Instant,
}

impl Site {
    fn new(backends: u16) -> Self {
        let lines: Vec<String> =
            (0..backends).map(|n| format!("web{n} 10.1.{}.{}:8080", n / 250, n % 250 + 1)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut web = service("web", "203.0.113.1:80", Forwarding::Nat, &lines);
        web.remember = Duration::from_hours(3);
        let now = fixture::now();
        let mut controller = Controller::new(config(vec![web]), KEY);
        let commands = controller.start(now);
        let mut site = Self { controller, checks: Vec::new(), now };
        let mac = [2, 0, 0, 0, 0, 1];
        let next_hop = NextHop {
            ifindex: 2,
            source_mac: mac,
            destination_mac: mac,
            mtu: 1500,
            source: None,
            gateway: None,
            local: false,
        };
        for command in &commands {
            if let Command::WatchNextHop(address) = command {
                site.controller.handle(Event::NextHop { address: *address, next_hop: Ok(next_hop) }, now);
            } else if let Command::StartChecks(check) = command {
                site.checks.push((check.backend, check.number));
            }
        }
        (0..site.checks.len()).for_each(|index| site.bring_back(index));
        site
    }

    /// Ends the running check of a backend with this outcome, and returns the number of commands that the core returns.
    fn check(&mut self, index: usize, outcome: CheckOutcome) -> usize {
        let (backend, check) = self.checks[index % self.checks.len()];
        self.now += Duration::from_millis(100);
        let checked = Event::Checked { backend, check, outcome, took: Duration::from_millis(1), asked: false };
        self.controller.handle(checked, self.now).len()
    }

    fn refuse(&mut self, index: usize) -> usize {
        self.check(index, CheckOutcome::Hard("connect: refused".to_owned()))
    }

    fn bring_back(&mut self, index: usize) {
        (0..2).for_each(|_| {
            self.check(index, CheckOutcome::Passed);
        });
    }
}

/// Measures the time from the last refused check, which decides that the backend is down, to the core's commands.
fn decision(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    for backends in BACKENDS {
        let mut site = Site::new(backends);
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(backends), |bencher| {
            bencher.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    next += 1;
                    (0..2).for_each(|_| {
                        site.refuse(next);
                    });
                    let start = fixture::now();
                    black_box(site.refuse(next));
                    took += start.elapsed();
                    site.bring_back(next);
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, build, failure, decision);
criterion_main!(benches);
