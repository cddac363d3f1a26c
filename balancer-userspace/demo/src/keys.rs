//! Reads single key presses, without waiting for the end of a line.

use std::{
    io::{self, IsTerminal as _, Stdin},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{FlushArg, LocalFlags, SetArg, Termios, tcflush, tcgetattr, tcsetattr},
};

/// Standard input in a mode that returns each key press at once. Dropping the value restores the previous mode.
pub(crate) struct Keys {
    input: Stdin,
    before: Termios,
}

impl Keys {
    /// Sets the mode of standard input; returns `None` if standard input is not a terminal.
    pub(crate) fn new() -> Result<Option<Self>> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&input).context("tcgetattr")?;
        let mut single = before.clone();
        // The flag for signals stays set: Ctrl-C must still end the demo.
        single.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(&input, SetArg::TCSANOW, &single).context("tcsetattr")?;
        Ok(Some(Self { input, before }))
    }

    pub(crate) fn pressed(&self) -> Result<bool> {
        let ready = poll(&mut [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO);
        Ok(ready.context("poll")? > 0)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // If the terminal no longer exists, there is no mode to restore.
        let _ = tcflush(&self.input, FlushArg::TCIFLUSH);
        let _ = tcsetattr(&self.input, SetArg::TCSANOW, &self.before);
    }
}
