//! A fleet's state as far as one member can apply it.
//!
//! A member may be unable to apply a service of an epoch, because the member's maps have no room for the service, its
//! data path refuses it, or another version wrote it. Such a service stays as the member applied it before, except that
//! its backends get the new verdicts, weights and administrative states. All other services are applied.

use std::collections::{HashMap, HashSet};

use balancer_config::config::{BackendConfig, ServiceConfig};

use crate::{
    io::{BackendId, ServiceId},
    room::{Filling, Room, SizedService},
    state::{SavedBackend, SavedService, SavedState},
};

/// A service in a state of the fleet, as a member reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// The member understands the service.
    Whole(Box<SavedService>),
    /// The member does not understand the service.
    Unread(Unread),
}

/// A service that a member does not understand.
#[derive(Clone, Debug, PartialEq)]
pub struct Unread {
    pub id: ServiceId,
    pub name: String,
    pub ids: Vec<BackendId>,
    /// Those backends that the member understands.
    pub backends: Vec<SavedBackend>,
    /// The reason why the member does not understand the service.
    pub why: String,
}

/// A state of the fleet, as a member reads it.
pub type ReadState = SavedState<Vec<ServiceConfig>, Vec<Read>>;

/// A service that stays as it was, or that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// The service, and the reason why the member does not apply it, as a sentence.
    pub why: String,
    /// The backends of the service about which the member has no opinion, because it does not apply them.
    pub strange: Vec<BackendId>,
}

/// The circumstances under which a member applies a state.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// The room in the maps of the member; `None`: the room is not known.
    pub room: Option<&'a Room>,
    /// The reason why the data path refuses at least one changed service; `None`: it is not known to refuse any.
    pub refused: Option<&'a str>,
}

/// Returns the part of `state` that a member can apply, and the services that it does not apply. `before` is the state
/// that the member has applied so far.
#[must_use]
pub fn as_far_as_possible(
    state: ReadState,
    before: Option<&SavedState>,
    limits: Limits<'_>,
) -> (SavedState, Vec<HeldBack>) {
    let before = before.map_or(&[][..], |before| before.services.as_slice());
    let mut why = reasons(&state.services, before, limits);
    hold_back_whole_services(&state.services, &mut why);
    if why.iter().all(Option::is_none) {
        let (state, read) = state.with_services(());
        let services = read.into_iter().filter_map(|read| if let Read::Whole(of) = read { Some(*of) } else { None });
        return (state.with_services(services.collect()).0, Vec::new());
    }
    let mut held_back = Vec::new();
    let mut services = Vec::new();
    for (read, why) in state.services.iter().zip(why) {
        let Some(why) = why else {
            services.extend(read.whole().cloned());
            continue;
        };
        let stays =
            read.before(before).map(|old| as_before(old, read)).filter(|old| !meets_another(old, &state.services));
        let applied: HashSet<BackendId> =
            stays.iter().flat_map(|service| &service.backends).map(|backend| backend.id).collect();
        let how = if stays.is_some() { "stays as it was" } else { "is missing" };
        held_back.push(HeldBack {
            why: format!("service {} {how}, because {why}", read.name()),
            strange: read.ids().into_iter().filter(|id| !applied.contains(id)).collect(),
        });
        services.extend(stays);
    }
    (state.with_services(services).0, held_back)
}

impl Read {
    fn id(&self) -> ServiceId {
        match self {
            Self::Whole(service) => service.id,
            Self::Unread(unread) => unread.id,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Whole(service) => &service.settings.name,
            Self::Unread(unread) => &unread.name,
        }
    }

    fn ids(&self) -> Vec<BackendId> {
        match self {
            Self::Whole(service) => service.backends.iter().map(|backend| backend.id).collect(),
            Self::Unread(unread) => unread.ids.clone(),
        }
    }

    fn whole(&self) -> Option<&SavedService> {
        match self {
            Self::Whole(service) => Some(service),
            Self::Unread(_) => None,
        }
    }

    /// The same service in an earlier state.
    fn before<'a>(&self, before: &'a [SavedService]) -> Option<&'a SavedService> {
        before.iter().find(|old| old.id == self.id() && old.settings.name == self.name())
    }
}

/// For each service, the reason why the member cannot apply it.
fn reasons(services: &[Read], before: &[SavedService], limits: Limits<'_>) -> Vec<Option<String>> {
    let mut why = vec![None; services.len()];
    let mut changed = Vec::new();
    let mut filling = Filling::new(before.iter().map(sized));
    for (read, why) in services.iter().zip(&mut why) {
        match read {
            Read::Unread(unread) => *why = Some(format!("this balancer does not understand it: {}", unread.why)),
            Read::Whole(service) => match read.before(before) {
                Some(old) if is_same(old, service) => filling.keep(sized(service)),
                old => changed.push((old, &**service, why)),
            },
        }
    }
    // A service that was there before comes before new services, so that these cannot take its room.
    changed.sort_by_key(|(old, ..)| old.is_none());
    for (old, service, why) in changed {
        *why = match (limits.refused, limits.room) {
            (Some(refused), _) => Some(refused.to_owned()),
            (None, Some(room)) => beyond(service, room).or_else(|| filling.add(old.map(sized), sized(service), room)),
            (None, None) => None,
        };
    }
    why
}

/// The rows that the data path lacks for the highest backend id of a service.
fn beyond(service: &SavedService, room: &Room) -> Option<String> {
    let highest = service.backends.iter().map(|backend| backend.id.0).max()?;
    let rows = room.backends;
    (u32::from(highest) >= rows).then(|| format!("it has the backend id {highest}, and the data path has {rows} rows"))
}

/// Holds back both parts of a service with two address families if one part is held back.
fn hold_back_whole_services(services: &[Read], why: &mut [Option<String>]) {
    let held_back: HashMap<&str, String> =
        services.iter().zip(&*why).filter_map(|(read, why)| Some((read.name(), why.clone()?))).collect();
    for (read, why) in services.iter().zip(why) {
        if why.is_none() {
            *why = held_back.get(read.name()).cloned();
        }
    }
}

fn sized(service: &SavedService) -> SizedService<'_> {
    SizedService { settings: &service.settings, backends: service.backends.len() }
}

/// Whether the configurations of a service are equal except for weights, which need no room.
fn is_same(old: &SavedService, new: &SavedService) -> bool {
    let alike = |(old, new): (&SavedBackend, &SavedBackend)| {
        old.id == new.id && BackendConfig { weight: old.config.weight, ..new.config.clone() } == old.config
    };
    old.settings == new.settings
        && old.backends.len() == new.backends.len()
        && old.backends.iter().zip(&new.backends).all(alike)
}

/// A service as it was, with the new run-time states of those backends that still belong to the service.
fn as_before(old: &SavedService, now: &Read) -> SavedService {
    let new = match now {
        Read::Whole(service) => &service.backends,
        Read::Unread(unread) => &unread.backends,
    };
    let new: HashMap<BackendId, &SavedBackend> = new.iter().map(|backend| (backend.id, backend)).collect();
    let ids: HashSet<BackendId> = now.ids().into_iter().collect();
    let stays = old.backends.iter().filter(|backend| ids.contains(&backend.id));
    let backends = stays.map(|backend| match new.get(&backend.id) {
        Some(now) => {
            let config = BackendConfig { weight: now.config.weight, ..backend.config.clone() };
            SavedBackend { config, ..SavedBackend::clone(now) }
        }
        None => backend.clone(),
    });
    let mut service = SavedService { backends: backends.collect(), ..old.clone() };
    if let Read::Whole(now) = now {
        service.outage.clone_from(&now.outage);
    }
    let there: HashSet<BackendId> = service.backends.iter().map(|backend| backend.id).collect();
    service.outage.iter_mut().for_each(|outage| outage.held.retain(|id| there.contains(id)));
    service
}

/// Whether a service as it was listens where another service of the new state listens.
fn meets_another(stays: &SavedService, services: &[Read]) -> bool {
    let others = services.iter().filter_map(|read| match read {
        Read::Whole(service) if service.settings.name != stays.settings.name => Some(&service.settings.listen),
        Read::Whole(_) | Read::Unread(_) => None,
    });
    let mut others = others.flatten();
    others.any(|other| {
        stays.settings.listen.iter().any(|own| {
            // A range within another one is allowed.
            let meet = own.ports == other.ports || own.ports.crosses(other.ports);
            own.address == other.address && own.protocol == other.protocol && meet
        })
    })
}
