//! The network cards of the virtual machines that `cargo xtask test --kernels` starts. A cable connects the first card
//! with the second card, and another cable connects the third card with the fourth card.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_testkit::{namespace::Namespace, site::PATIENCE};

/// The names of the two cards at the ends of each cable; no host of a site uses these names.
pub(crate) const CABLES: [[&str; 2]; 2] = [["card0", "card1"], ["card2", "card3"]];

/// The network cards, which are in no namespace of a test. The cards return to the test's machine when the value and
/// all namespaces with cards are dropped.
pub(crate) struct Cards;

impl Cards {
    pub(crate) fn take() -> Result<Self> {
        name().map(|()| Self)
    }
}

impl Drop for Cards {
    fn drop(&mut self) {
        if let Err(error) = name() {
            eprintln!("network cards are lost: {error:#}");
        }
    }
}

/// Waits until all cards have returned, because an earlier namespace may still be ending, and restores the cards'
/// names.
fn name() -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let cards = present()?;
        if cards.len() == CABLES.as_flattened().len() {
            let named = cards.iter().map(|(_, name)| name).zip(CABLES.as_flattened());
            return named.filter(|(name, card)| name != card).try_for_each(|(name, card)| {
                ip(&["link", "set", name, "down"])?;
                ip(&["link", "set", name, "name", card])
            });
        }
        ensure!(Instant::now() < deadline, "four network cards are wanted, there are {cards:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Returns the cards' devices in a fixed order, with their current names.
fn present() -> Result<Vec<(PathBuf, String)>> {
    let mut cards = Vec::new();
    for interface in fs::read_dir("/sys/class/net")? {
        let interface = interface?;
        if let Ok(device) = fs::canonicalize(interface.path().join("device")) {
            cards.push((device, interface.file_name().to_string_lossy().into_owned()));
        }
    }
    cards.sort();
    Ok(cards)
}

/// Moves a card to a host and renames it.
pub(crate) fn give(card: &str, host: &Namespace, name: &str) -> Result<()> {
    ip(&["link", "set", card, "netns", host.name(), "name", name])
}

/// Runs `ip` on the test's machine, outside of all namespaces.
fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output()?;
    ensure!(done.status.success(), "{arguments:?}: {done:?}");
    Ok(())
}
