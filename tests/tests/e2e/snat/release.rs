//! The same test in the other topologies, which takes longer than a landing has time for.

use balancer_testkit::topology::Shape;

use super::the_other_family_serves;

#[test]
fn when_backends_have_the_other_family_only_then_every_client_is_served_in_the_other_topologies() {
    the_other_family_serves([(Shape::OneLegged, "native"), (Shape::TwoLegged, "generic")]);
}
