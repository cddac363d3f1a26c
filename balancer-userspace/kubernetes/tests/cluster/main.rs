//! Tests of the controller between stand-ins for a cluster and a balancer.

mod manuals;
mod services;
mod support;
