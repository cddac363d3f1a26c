//! Thousands of services, which take longer than a landing has time for.

use nix::sys::signal::Signal;

use super::{
    Row, fill,
    killed::{SERVICES, end_at_steps},
};

#[test]
fn when_two_thousand_services_come_one_by_one_then_the_maps_grow_and_known_clients_stay() {
    fill(&Row { commands: 2000, services: 1, forwarding: "nat", slots: 251, grows: 4 });
}

#[test]
fn when_the_balancer_is_killed_at_any_step_of_a_growth_then_the_next_one_takes_over() {
    // So many services also need a longer map of the counts that outlive the balancer.
    end_at_steps(1, 4200, Signal::SIGKILL);
}

#[test]
fn when_the_balancer_is_stopped_at_any_step_of_a_growth_then_the_next_one_takes_over() {
    end_at_steps(1, SERVICES, Signal::SIGTERM);
}
