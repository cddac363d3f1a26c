//! Computes the first commands of a controller, and starts to watch next hops, before the data path exists.

use balancer_control::{applied::Applied, controller::Controller, io::Command};
use balancer_netlink::neighbours::Neighbours;
use tokio::time::Instant;

/// A started controller with its first commands.
pub struct Beginning {
    pub(super) controller: Controller,
    /// The commands that still have to be carried out.
    pub(super) commands: Vec<Command>,
    /// The effects of the commands about next hops, which this module has already carried out.
    pub(super) applied: Applied,
    at: Instant,
}

impl Beginning {
    /// Starts `controller`, and makes `neighbours` watch the addresses that the controller names.
    #[must_use]
    pub fn new(mut controller: Controller, neighbours: &Neighbours) -> Self {
        let at = Instant::now();
        let now = at.into_std();
        let all = if controller.is_follower() { controller.start_following(now) } else { controller.start(now) };
        let (mut commands, mut applied) = (Vec::new(), Applied::default());
        for command in all {
            if let Command::WatchNextHop(address) = command {
                neighbours.watch(address);
            } else if let Command::UnwatchNextHop(address) = command {
                neighbours.unwatch(address);
            } else {
                commands.push(command);
                continue;
            }
            applied.note(&command);
        }
        Self { controller, commands, applied, at }
    }

    /// The time at which the controller was started.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }
}
