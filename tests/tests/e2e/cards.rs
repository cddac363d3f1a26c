//! This machine's own network cards, as in the machines of `cargo xtask test --kernels`: a cable joins the first with
//! the second, and so on.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_testkit::{namespace::Namespace, site::PATIENCE};

/// The two ends of each cable. No host of a site uses these names.
pub(crate) const CABLES: [[&str; 2]; 2] = [["card0", "card1"], ["card2", "card3"]];

/// The cards, which are in no namespace. They return here when this value and all namespaces with cards are dropped.
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

/// Gives the cards these names, because an earlier namespace has renamed them and may still be ending.
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

/// The devices in their fixed order, with their current names.
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

/// Moves a card to a host.
pub(crate) fn give(card: &str, host: &Namespace, name: &str) -> Result<()> {
    ip(&["link", "set", card, "netns", host.name(), "name", name])
}

/// Runs `ip` on this machine itself.
fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output()?;
    ensure!(done.status.success(), "{arguments:?}: {done:?}");
    Ok(())
}
