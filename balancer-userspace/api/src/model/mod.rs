//! JSON bodies of the control API. The fields have the names that the product's documentation uses.

mod changes;
mod clients;
mod configuration;
mod plan;
mod rules;
mod services;
mod status;

pub use balancer_control::{
    fleet::{FleetMember, FleetSnapshot},
    rates::Rates,
    readiness::{Fitness, Readiness, begin_of_unattached},
    rules::Action,
    run_time::RunTimeChange,
};

pub use changes::*;
pub use clients::*;
pub use configuration::*;
pub use plan::*;
pub use rules::*;
pub use services::*;
pub use status::*;

/// The default percentage of steered clients: all clients.
const fn all() -> u8 {
    100
}
