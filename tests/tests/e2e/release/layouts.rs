//! Tests of an upgrade whose version cannot read the kept maps.

use balancer_common::map_types::{Forwarding, LAYOUT_VERSION};
use balancer_testkit::users::Users;

use crate::restart::{refusal, rewrite_notes};

#[test]
fn when_a_version_cannot_read_the_maps_then_clients_are_exported_and_imported_and_nobody_moves() {
    let mut users = Users::new(Forwarding::Nat, |settings| settings.on_exit = "keep");
    users.visit(1..=200);
    users.add_web5();
    users.nobody_moves("when web5 was added");
    let file = users.site.files().join("clients.txt");
    let file = file.to_str().unwrap();
    users.site.cli(&["client", "export", "web", "-o", file]).unwrap();
    users.site.controller().process().stop().unwrap();
    rewrite_notes(&users.site, &format!("\"layout_version\":{LAYOUT_VERSION}"), "\"layout_version\":99");
    let refused = refusal(&users.site);
    assert!(refused.contains("left maps of layout 99 running") && refused.contains("`balancer detach`"), "{refused}");
    users.site.detach().unwrap();
    users.site.start_again().unwrap();
    let said = users.site.cli(&["client", "import", "web", file]).unwrap();
    assert!(said.contains("200"), "{said}");
    users.nobody_moves("when the version with the other layout had imported them");
}
