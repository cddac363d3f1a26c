//! Tests of tables that are computed before the controller needs them.

use balancer_config::fixture::name;

use crate::{controller_test::Bench, io::Change};

#[test]
fn when_a_change_is_made_then_it_uses_the_tables_of_its_proposal() {
    let mut bench = Bench::web();
    for backend in ["web/web1", "web/web2", "web/web3", "web/web4"] {
        bench.pass(backend);
    }
    let change = Change::SetWeight { name: name("web/web2"), weight: 7 };
    let mut copy = bench.controller.clone();
    copy.change(change.clone(), bench.now).unwrap();
    bench.controller.expect(copy.precomputed_since(bench.controller.services()));
    bench.change(change).unwrap();
    let [now, proposed] = [&bench.controller, &copy].map(|of| of.services()[0].made());
    assert!(now[0].is(&proposed[0]));
}
