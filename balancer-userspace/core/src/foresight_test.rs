//! Tables that are made before they are wanted.

use balancer_model::fixture::name;

use crate::{
    controller_test::Bench,
    io::{Change, CheckOutcome},
    state_test::many,
    table::Made,
};

const REFUSED: fn() -> CheckOutcome = || CheckOutcome::Hard("connect: refused".to_owned());

fn up() -> Bench {
    let mut bench = Bench::web();
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.pass(backend);
    }
    assert!(bench.controller.take_doubts().is_none());
    bench
}

/// Has what is in doubt foreseen; gives the tables that are wanted if it comes.
fn foresee(bench: &mut Bench) -> Vec<Made> {
    let foresight = bench.controller.take_doubts().unwrap().resolve();
    let made = foresight.of(bench.service().id()).to_vec();
    bench.controller.foresee(foresight);
    made
}

/// Whether the table that slots were last refilled from is one of `made`.
fn has_taken(bench: &Bench, made: &[Made]) -> bool {
    bench.service().made().get(1).is_some_and(|refill| made.iter().any(|made| made.is(refill)))
}

#[test]
fn a_backend_that_begins_to_fail_has_its_table_made() {
    let mut bench = up();
    bench.check("web/web2", REFUSED());
    let made = foresee(&mut bench);
    bench.check("web/web2", REFUSED());
    assert!(bench.controller.take_doubts().is_none(), "it is made already");
    assert!(!has_taken(&bench, &made));
    bench.check("web/web2", REFUSED());
    assert!(has_taken(&bench, &made));
}

#[test]
fn each_of_several_finds_its_table_and_so_do_all() {
    let mut bench = up();
    for backend in ["web/web1", "web/web3", "web/web1"] {
        bench.check(backend, REFUSED());
    }
    let both = foresee(&mut bench);
    bench.check("web/web1", REFUSED());
    assert!(has_taken(&bench, &both), "one alone was not foreseen");
    let again = foresee(&mut bench);
    let last = [&both, &again].map(|made| made.last().unwrap());
    assert!(last[0].is(last[1]), "it was made again");
    bench.check("web/web3", REFUSED());
    bench.check("web/web3", REFUSED());
    assert!(has_taken(&bench, &both));
}

#[test]
fn of_very_many_those_are_foreseen_whose_checks_come_next() {
    let (mut bench, _) = Bench::new(vec![many('a', 9)]);
    let all: Vec<String> = (0..9).map(|number| format!("web/a{number}")).collect();
    for backend in &all {
        bench.pass(backend);
    }
    for backend in all.iter().skip(1).rev().cycle().take(16) {
        bench.check(backend, REFUSED());
    }
    let made = foresee(&mut bench);
    bench.check("web/a4", REFUSED());
    assert!(!has_taken(&bench, &made), "the fifth was foreseen");
    let made = foresee(&mut bench);
    bench.check("web/a8", REFUSED());
    assert!(has_taken(&bench, &made), "the first was not");
}

#[test]
fn one_that_recovers_is_in_doubt_no_longer() {
    let mut bench = up();
    bench.check("web/web2", REFUSED());
    let made = foresee(&mut bench);
    bench.check("web/web2", CheckOutcome::Passed);
    assert!(bench.controller.take_doubts().is_none());
    bench.refuse("web/web2");
    assert!(!has_taken(&bench, &made), "it was given up");
}

#[test]
fn a_change_takes_the_tables_of_its_proposal() {
    let mut bench = up();
    let change = Change::SetWeight { name: name("web/web2"), weight: 7 };
    let mut copy = bench.controller.clone();
    copy.change(change.clone(), bench.now).unwrap();
    bench.controller.expect(copy.foresight_since(bench.controller.services()));
    bench.change(change).unwrap();
    let [now, proposed] = [&bench.controller, &copy].map(|of| of.services()[0].made());
    assert!(now[0].is(&proposed[0]));
}
