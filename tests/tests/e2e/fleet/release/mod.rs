//! Tests of fleets that take longer than a landing has time for.

mod agents;
mod bounded;
mod denials;
mod discovery;
mod engine;
mod files;
mod growth;
mod imports;
mod kubernetes;
mod many_clients;
mod modes;
mod quic;
mod verdicts;
