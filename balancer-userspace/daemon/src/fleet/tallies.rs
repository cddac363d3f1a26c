//! Exchanges counters in a fleet: sends this member's counters to the other members, and reads the other members'
//! counters.

use std::collections::BTreeMap;

use balancer_control::{history::STEP, io::Refused};
use balancer_dataplane::KernelDataplane;
use balancer_fleet::{documents, engine::LONGEST_VALUE, member::Input};
use balancer_listeners::{
    api_server::statistics,
    call::{Calls, Tallies},
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use super::Fleet;
use crate::{
    owner::Owner,
    task_call::{TaskCall, TaskCalls},
};

/// Sends this member's counters to the other members every ten seconds, until the controller has ended.
pub(crate) async fn tell(calls: Calls, told: TaskCalls) {
    let mut step = interval(STEP);
    step.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = false;
    loop {
        step.tick().await;
        if calls.is_closed() {
            return;
        }
        let Some(tally) = statistics::tally(&calls).await else { continue };
        let Ok(tally) = documents::pack(&tally, "what is counted") else { continue };
        if tally.len() <= LONGEST_VALUE {
            let _ = told.send(TaskCall::Tell(tally)).await;
        } else if !std::mem::replace(&mut said, true) {
            warn!(
                "statistics of this member are too large for the fleet: {} bytes of at most {LONGEST_VALUE}; `stats \
                 --fleet` lacks them",
                tally.len()
            );
        }
    }
}

impl Fleet {
    /// Requests the counters of the fleet's other members.
    pub(crate) fn ask_tallies(
        &mut self,
        reply: oneshot::Sender<Result<Tallies, Refused>>,
        owner: &mut Owner<KernelDataplane>,
    ) {
        self.last_asked += 1;
        self.readers.insert(self.last_asked, reply);
        self.handle(Input::AskTallies(self.last_asked), owner);
    }

    pub(super) fn answer_reader(&mut self, id: u64, told: Result<Vec<(String, Vec<u8>)>, String>) {
        let Some(reply) = self.readers.remove(&id) else { return };
        let result = told.map_err(Refused::Conflict).map(|told| {
            let silent = |name: &String| (name.clone(), Err("it has published no statistics yet".to_owned()));
            let mut others: BTreeMap<_, _> = self.member.cards().keys().map(silent).collect();
            others.extend(told.into_iter().map(|(name, bytes)| (name, Ok(bytes))));
            others.remove(self.member.name());
            Tallies { others, shared: self.config.share_clients }
        });
        // Sending fails if the requester no longer waits.
        let _ = reply.send(result);
    }
}
