//! How long lookup tables take over 65,537 slots. The goal for 1,000 backends is 1.8 ms (Maglev, NSDI 2016).

use std::hint::black_box;

use balancer_common::client::HashKey;
use balancer_core::{
    maglev::{self, Member},
    table::{Builder, Candidate},
};
use balancer_model::config::WhenAllDown;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const SLOTS: u32 = 65_537;
const KEY: HashKey = HashKey { k0: 1, k1: 2 };
type Weight = fn(u16) -> u16;

const BACKENDS: [u16; 3] = [3, 100, 1000];

fn names(backends: u16) -> Vec<String> {
    (0..backends).map(|n| format!("web{n}")).collect()
}

/// A base table, of equal backends and of one heavy among light ones.
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

/// The live table after one backend has failed, and after half of them have.
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
                })
                .collect()
        };
        // In turn, so that each failure is another one than the last.
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

criterion_group!(benches, build, failure);
criterion_main!(benches);
