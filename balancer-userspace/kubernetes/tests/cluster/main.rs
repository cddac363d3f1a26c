//! Tests of the controller with a simulated cluster and a simulated balancer.

mod manuals;
mod services;
mod support;
