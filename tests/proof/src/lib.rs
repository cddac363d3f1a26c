//! Searches that visit all states of a small world, on the code that runs. `docs/dev/proof.md` names the worlds, their
//! invariants and what was measured.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::wildcard_enum_match_arm, reason = "most events concern one rule only")]

pub mod decisions;
pub mod machine;
pub mod rows;
pub mod search;

/// The data path's own files, with memory, grace periods and a scanning thread whose steps the search chooses.
#[path = "../../../balancer-userspace/dataplane/src"]
#[expect(dead_code, unreachable_pub, reason = "the search uses a part of it")]
mod dataplane {
    pub(crate) use balancer_dataplane::{Forgotten, KnownClient, Swept};

    pub(crate) use crate::machine::{grace, mapped};

    pub(crate) mod clients;
    mod former_clients {
        //! No earlier controller has left a client table.
        use balancer_common::client_table::Entry;

        use super::mapped::AtomicU64;

        pub(super) struct FormerClients;

        impl FormerClients {
            pub(super) fn catch_up(&self, _: &[AtomicU64], _: impl Fn(Entry) -> bool) -> Vec<Entry> {
                Vec::new()
            }

            pub(super) fn replace(self) -> anyhow::Result<()> {
                Ok(())
            }
        }
    }
    pub(crate) mod memory;
    mod mirrored;
    mod regions;
    mod reported;
    #[path = "../../../tests/proof/src/scanner.rs"]
    mod scanner;
    mod stickiness;
    #[path = "../../../tests/proof/src/stores.rs"]
    pub mod stores;
    mod sweep;
    mod tables;
}

pub use dataplane::stores;
use dataplane::{clients, grace, mapped, memory};
