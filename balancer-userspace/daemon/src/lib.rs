//! The running balancer: the task that owns the controller and the maps, with the tasks that it starts and joins. Begin
//! reading in `run`, which starts everything, and `owner`, which decides what reaches the maps.

pub mod arena;
mod fleet;
mod flows;
mod growing;
pub mod host;
pub mod host_state;
mod kernel_log;
mod near_clients;
pub mod owner;
pub mod persistence;
mod removed_backends;
mod resume;
pub mod run;
mod task_call;
pub mod untrusted;
