//! The initial setup of a simulated fleet.

/// The initial setup of a fleet.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) members: usize,
    /// Whether clients return to their former backend when it is up again.
    pub(crate) failback: bool,
    pub(crate) two_services: bool,
    /// Whether the connections of a client reach all members.
    pub(crate) spread: bool,
}
