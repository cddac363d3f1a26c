//! What the tasks of the daemon share: their supervision, clocks, the history of events, files of lines, packet sockets,
//! and the notifications to the service manager.

pub mod clocks;
pub mod events;
pub mod file_version;
pub mod lines;
pub mod packet_socket;
pub mod precedence;
pub mod service_manager;
pub mod shutdown;
pub mod supervisor;
pub mod tasks_by_key;
