//! Replaces the attached programs by programs with larger maps: see [`crate::growth`].

use std::{fs, mem, path::PathBuf};

use anyhow::{Context as _, anyhow};
use aya::maps::MapData;
use tracing::warn;

use super::{Attached, Attacher, NotReplaced};
use crate::{
    classifiers::OnInterface,
    growth::{Growth, Larger},
    programs::Richer,
};

/// The only pinned map that can grow.
const PINNED: &str = "SERVICE_HISTORY";

impl Attacher {
    /// Loads programs with larger maps beside the present ones, and returns these maps. Until
    /// [`use_larger`](Self::use_larger), nothing changes for packets.
    ///
    /// # Errors
    /// Fails if the kernel refuses a map or a program.
    pub fn load_larger(&mut self, growth: Growth) -> anyhow::Result<Larger> {
        // The programs of an attempt that was given up still hold their maps.
        self.larger = None;
        let richer = self.programs.larger(&growth, self.tells).context("making room in the kernel's maps")?;
        let maps = richer.larger_maps(growth.clone())?;
        self.larger = Some((growth, richer));
        Ok(maps)
    }

    /// Replaces the programs on all these interfaces by the programs with larger maps. Packets are steered all the time.
    /// The caller writes to both the present and the larger maps. Returns the growth.
    ///
    /// # Errors
    /// Fails if the kernel refuses the replacement.
    pub fn use_larger(&mut self, attached: &mut [Attached]) -> Result<Growth, NotReplaced> {
        let failed = |error| NotReplaced { error, is_back: true };
        let larger = self.larger.take().filter(|(_, larger)| larger.features() == self.features());
        let larger = larger.ok_or_else(|| failed(anyhow!("the kernel program has changed meanwhile: try again")));
        let (growth, mut larger) = larger?;
        let pin = self.pin_larger(&larger).map_err(failed)?;
        let classifiers = self.classify(attached, &mut larger).map_err(failed)?;
        if let Err(error) = self.replace(attached, &mut larger) {
            detach(classifiers);
            return Err(error);
        }
        for (attached, new) in attached.iter_mut().zip(classifiers) {
            attached.replace_classifiers(new);
        }
        // The programs before may still process packets, and do not see what the caller will write.
        self.grace_periods.wait(self.grace_periods.begin());
        self.programs.adopt(larger);
        if let Some(pin) = pin {
            pin.take_its_place(&mut self.maps);
        }
        Ok(growth)
    }

    /// Attaches the new classifiers that read larger maps beside the present ones.
    fn classify(&self, attached: &[Attached], larger: &mut Richer) -> anyhow::Result<Vec<Vec<OnInterface>>> {
        let mut all = Vec::new();
        for attached in attached {
            let on = (attached.called(), attached.at.ifindex);
            let mut of = Vec::new();
            for classifier in &attached.classifiers {
                match classifier.again(larger.object(), on, self.links.as_ref()) {
                    Ok(new) => of.extend(new),
                    Err(error) => {
                        all.push(of);
                        detach(all);
                        return Err(error);
                    }
                }
            }
            all.push(of);
        }
        Ok(all)
    }

    /// Pins the larger map beside the map that it replaces, if this map grows and the data path may outlive this process.
    fn pin_larger(&self, larger: &Richer) -> anyhow::Result<Option<LargerPin>> {
        let Some(map) = larger.larger_map(PINNED)? else { return Ok(None) };
        let Some(links) = &self.links else { return Ok(Some(LargerPin { map, renaming: None })) };
        let (new, pin) = (links.map(&format!("NEW-{PINNED}")), links.map(PINNED));
        let _left_by_a_failed_attempt = fs::remove_file(&new);
        map.pin(&new).with_context(|| format!("pinning the map {PINNED}"))?;
        Ok(Some(LargerPin { map, renaming: Some((new, pin)) }))
    }
}

fn detach(classifiers: Vec<Vec<OnInterface>>) {
    classifiers.into_iter().flatten().for_each(OnInterface::detach);
}

impl Attached {
    /// Detaches the classifiers of the kinds that `new` has, and keeps `new` in their place.
    fn replace_classifiers(&mut self, new: Vec<OnInterface>) {
        let before = mem::take(&mut self.classifiers);
        let (replaced, others): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|old| new.iter().any(|new| new.is_like(old)));
        self.classifiers = others;
        self.classifiers.extend(new);
        replaced.into_iter().for_each(OnInterface::detach);
    }
}

/// The larger version of the pinned map that can grow.
struct LargerPin {
    map: MapData,
    /// The paths of the pin that this map has and of the pin that it will have, if the map is pinned.
    renaming: Option<(PathBuf, PathBuf)>,
}

impl LargerPin {
    /// Puts the larger map in place of the former map, in one step for the next controller.
    fn take_its_place(self, maps: &mut [(&'static str, MapData)]) {
        let Self { map, renaming } = self;
        if let Some(Err(error)) = renaming.map(|(new, pin)| fs::rename(new, pin)) {
            warn!("the pinned map {PINNED} stays as small as it was: {error}");
        }
        if let Some((_, former)) = maps.iter_mut().find(|(name, _)| *name == PINNED) {
            *former = map;
        }
    }
}
