//! The same faults and healthy sites in the other modes, which take longer than a landing has time for.

use balancer_common::map_types::Forwarding;

use super::{
    alike::all_are_told_apart,
    faults::{a_route_with_the_smaller_mtu_is_right, all_are_found, the_missing_interface_is_named},
    healthy::{nothing_is_found, nothing_is_found_over_the_other_family},
};

#[test]
fn when_a_fault_is_seeded_in_a_dsr_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(Forwarding::Dsr, &[]);
}

#[test]
fn when_a_fault_is_seeded_in_a_nat_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(Forwarding::Nat, &[]);
}

#[test]
fn when_a_fault_is_seeded_in_an_snat_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(Forwarding::Snat, &[]);
}

#[test]
fn when_a_fault_is_seeded_in_an_ipip_site_then_the_doctor_names_it_and_its_cure_works() {
    all_are_found(Forwarding::Ipip, &[]);
}

#[test]
fn when_faults_look_alike_in_sites_of_the_other_modes_then_the_doctor_tells_them_apart() {
    for forwarding in [Forwarding::Nat, Forwarding::Snat, Forwarding::Ipip, Forwarding::Gue] {
        all_are_told_apart(forwarding, &[]);
    }
}

#[test]
fn when_clients_come_in_where_the_program_of_other_modes_is_not_then_the_doctor_names_the_interface() {
    the_missing_interface_is_named(&[Forwarding::Dsr, Forwarding::Snat, Forwarding::Ipip]);
}

#[test]
fn when_the_route_to_a_dsr_or_snat_backend_has_the_smaller_mtu_then_the_doctor_finds_nothing() {
    a_route_with_the_smaller_mtu_is_right(Forwarding::Dsr);
    a_route_with_the_smaller_mtu_is_right(Forwarding::Snat);
}

#[test]
fn when_backends_of_ipip_are_of_the_other_family_then_a_healthy_site_has_no_finding() {
    nothing_is_found_over_the_other_family(Forwarding::Ipip);
}

#[test]
fn when_a_dsr_site_is_healthy_then_nothing_is_found() {
    nothing_is_found(Forwarding::Dsr);
}

#[test]
fn when_an_snat_site_is_healthy_then_nothing_is_found() {
    nothing_is_found(Forwarding::Snat);
}

#[test]
fn when_an_ipip_site_is_healthy_then_nothing_is_found() {
    nothing_is_found(Forwarding::Ipip);
}
