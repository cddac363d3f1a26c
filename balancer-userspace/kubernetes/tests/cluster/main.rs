//! The controller between a cluster and a balancer that are stand-ins.

mod manuals;
mod services;
mod support;
