//! Network namespaces, demo servers and the tools of the privileged tests.

pub mod prog_run;
