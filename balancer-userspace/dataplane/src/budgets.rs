//! Limits for each CPU on the work that outsiders can cause, computed from the number of CPUs.

/// Limits on the numbers of actions in a period of 2^30 ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// The number of "packet too big" errors that the program may send.
    pub errors: u32,
    /// The number of packets that the program may reject with a reset or an ICMP error.
    pub rejections: u32,
    /// The number of echo requests to VIPs that the program may answer.
    pub echo: u32,
    /// The number of first fragments that the program may remember.
    pub fragments: u32,
    /// The number of replies that may wait until the kernel resolves a neighbour.
    pub waiting: u32,
}

/// The limits for the whole machine. A machine with very many CPUs may exceed these limits, because each CPU gets at
/// least `LEAST`, in case a single CPU receives all packets of a kind.
const MACHINE: Budgets = Budgets { errors: 8000, rejections: 8000, echo: 8000, fragments: 65_536, waiting: 8000 };
const LEAST: Budgets = Budgets { errors: 250, rejections: 250, echo: 250, fragments: 2048, waiting: 250 };

impl Budgets {
    /// Returns the limits for each of `cpus` CPUs.
    #[must_use]
    pub fn of_each(cpus: usize) -> Self {
        let share = |machine: u32, least: u32| (machine / u32::try_from(cpus.max(1)).unwrap_or(u32::MAX)).max(least);
        Self {
            errors: share(MACHINE.errors, LEAST.errors),
            rejections: share(MACHINE.rejections, LEAST.rejections),
            echo: share(MACHINE.echo, LEAST.echo),
            fragments: share(MACHINE.fragments, LEAST.fragments),
            waiting: share(MACHINE.waiting, LEAST.waiting),
        }
    }

    /// Returns the limits for each online CPU of this machine.
    #[must_use]
    pub fn here() -> Self {
        Self::of_each(aya::util::online_cpus().map_or(1, |cpus| cpus.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_cpus_are_many_then_they_share_the_machines_budget() {
        assert_eq!(Budgets::of_each(0), MACHINE);
        assert_eq!(Budgets::of_each(1), MACHINE);
        assert_eq!(
            Budgets::of_each(4),
            Budgets { errors: 2000, rejections: 2000, echo: 2000, fragments: 16_384, waiting: 2000 }
        );
        assert_eq!(Budgets::of_each(4096), LEAST);
    }
}
