//! Network namespaces, demo servers and the tools of the privileged tests.

pub mod frame;
pub mod prog_run;
pub mod rig;
