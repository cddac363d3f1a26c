//! What the controller decides. No I/O, no clock, no tokio: events in, commands out.

pub mod io;
