//! Tests of fleets that take longer than a landing has time for.

mod kubernetes;
mod many_clients;
