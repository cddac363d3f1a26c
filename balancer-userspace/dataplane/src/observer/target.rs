//! The loaded XDP program that is observed: its maps, and the function that is its entry.

use std::collections::HashMap;

use anyhow::{Context as _, anyhow, bail};
use aya::{
    maps::{MapData, MapInfo},
    programs::{ProgramFd, ProgramInfo, loaded_programs},
};

use super::calls;
use crate::kernel_types;

/// The program that steers, as it is named in the kernel.
const NAME: &str = "balancer";

pub(super) struct Target {
    pub(super) program: ProgramFd,
    /// The id of its entry in its BTF.
    pub(super) entry: u32,
    maps: HashMap<String, u32>,
}

impl Target {
    /// The loaded program with this id. `None`: it is another program, such as another tool's.
    ///
    /// # Errors
    /// When it is gone, cannot be opened, or was loaded without type information.
    pub(super) fn open(id: u32) -> anyhow::Result<Option<Self>> {
        let info = find(id)?;
        if info.name_as_str() != Some(NAME) {
            return Ok(None);
        }
        let program = info.fd().with_context(|| format!("opening the XDP program {id}"))?;
        let Some(btf) = info.btf_id() else {
            bail!("the kernel has no type information (BTF) of the XDP program, and attaches nothing to it");
        };
        let btf = calls::btf(btf).context("reading the type information (BTF) of the XDP program")?;
        let entry = kernel_types::function(&btf, NAME).context("the type information (BTF) of the XDP program")?;
        let mut maps = HashMap::new();
        for map in info.map_ids()?.context("the kernel does not name the maps of a program")? {
            let info = MapInfo::from_id(map)?;
            if let Some(name) = info.name_as_str() {
                maps.insert(name.to_owned(), map);
            }
        }
        Ok(Some(Self { program, entry, maps }))
    }

    /// One of its maps.
    ///
    /// # Errors
    /// When it has none of that name.
    pub(super) fn map(&self, name: &str) -> anyhow::Result<MapData> {
        let id = self.maps.get(name).ok_or_else(|| {
            anyhow!("the running balancer has no map {name}: it is of another version than this command")
        })?;
        MapData::from_id(*id).with_context(|| format!("opening the map {name}"))
    }
}

fn find(id: u32) -> anyhow::Result<ProgramInfo> {
    for program in loaded_programs() {
        let program = program.context("listing the loaded programs")?;
        if program.id() == id {
            return Ok(program);
        }
    }
    bail!("the XDP program {id} is gone")
}
