//! This machine's own network cards, as the machines of `cargo xtask test --kernels` have them: each two are joined by a
//! cable, the first with the second and so on.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_testkit::{namespace::Namespace, site::PATIENCE};

/// The two ends of each cable, by names that no host of a site has.
pub(crate) const CABLES: [[&str; 2]; 2] = [["card0", "card1"], ["card2", "card3"]];

/// The cards, which no namespace has. Once this is dropped that is so again, if all namespaces are gone that have some.
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

/// Gives the cards these names: a namespace that had them last has given them others, and may still be going.
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

/// In the order of their places, which never changes: the device and the name that it has now.
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

/// Puts a card into a host.
pub(crate) fn give(card: &str, host: &Namespace, name: &str) -> Result<()> {
    ip(&["link", "set", card, "netns", host.name(), "name", name])
}

/// On this machine itself.
fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(arguments).output()?;
    ensure!(done.status.success(), "{arguments:?}: {done:?}");
    Ok(())
}
