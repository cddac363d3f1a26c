//! Handles changes that users request.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use balancer_config::{
    config::{BackendConfig, Config, ServiceConfig},
    names::BackendName,
    states::{Admin, Forced},
    validate::Valid,
    words::counted,
};

use super::{Controller, reconcile::Reconciled, sizes::Sizes};
use crate::{
    agreed::Role,
    io::{Change, Command, Refused},
    moves::Moves,
    report,
    service::Backend,
    table::Tier,
};

/// The weight of a backend that a user adds without a weight.
const DEFAULT_WEIGHT: u16 = 100;

impl Controller {
    /// Makes the whole change, or refuses it and changes nothing. Returns the commands and one line that says what the
    /// controller has done. The commands include reports about effects on backends other than the named backend.
    ///
    /// # Errors
    /// [`Refused`] says why the controller has changed nothing.
    pub fn change(&mut self, change: Change, now: Instant) -> Result<(String, Vec<Command>), Refused> {
        if let Change::Reload(config) | Change::Reset(config) = &change
            && self.is_follower()
        {
            // In a fleet, not this controller but the fleet decides about the services.
            return self.take_over_settings(Config::clone(config));
        }
        self.refuse_as_follower()?;
        let done = self.make(change, now)?;
        self.generation += 1;
        Ok(done)
    }

    fn make(&mut self, change: Change, now: Instant) -> Result<(String, Vec<Command>), Refused> {
        match change {
            Change::Add { name, address, address6, port, weight, backup, limits } => {
                let (mut services, index) = self.edit(&name.service)?;
                let Some(service) = services.get_mut(index).map(Arc::make_mut) else {
                    return Err(self.no_service(&name.service));
                };
                if service.backends.iter().any(|backend| backend.name == name.backend) {
                    return Err(Refused::Conflict(format!(
                        "backend {name} exists already: choose another name, or remove it first"
                    )));
                }
                let port = service.port_of(&name.backend, port).map_err(Refused::Invalid)?;
                let address = service.without_implied_port((address, port).into());
                let address6 = address6.map(|address| service.without_implied_port((address, port).into()));
                if let Some(fault) = limits.fault(service.remember, service.forwarding) {
                    return Err(Refused::Invalid(fault));
                }
                let weight = weight.unwrap_or(DEFAULT_WEIGHT);
                service.backends.push(BackendConfig {
                    name: name.backend.clone(),
                    renamed_from: None,
                    address,
                    address6,
                    weight,
                    backup,
                    limits,
                    check: None,
                    quic_server_id: None,
                    discovered: None,
                });
                self.reconfigure(services, &name, "added", now)
            }
            Change::Remove { name, force } => {
                let discovered = self.backend(&name)?.config().discovered.as_deref();
                if let Some(listed) = discovered.filter(|of| of.gone.is_none() && self.is_discovered(&name.service, of))
                {
                    return Err(Refused::Conflict(format!(
                        "backend {name} is a target of {}: take it out there, or drain it here",
                        listed.source
                    )));
                }
                if !force && self.parts(&name).any(Backend::may_keep_known) {
                    // The number of clients comes from the last sweep, which may be some seconds old.
                    let known = self.precomputed.known_clients.or_else(|| self.swept_clients(&name));
                    return Ok(self.leave(&name, known, now));
                }
                let (mut services, index) = self.edit(&name.service)?;
                if let Some(service) = services.get_mut(index).map(Arc::make_mut) {
                    service.backends.retain(|backend| backend.name != name.backend);
                }
                self.reconfigure(services, &name, "removed", now)
            }
            Change::SetSteer { service, steer } => self.set_steer(&service, steer, now),
            Change::RotateQuicKey { service, key } => self.rotate_quic_key(&service, key, now),
            Change::AddListener { service, listener } => self.add_listener(&service, listener, now),
            Change::RemoveListener { service, listener } => self.remove_listener(&service, listener, now),
            Change::SetWeight { name, weight } => self.set_weight(&name, weight, now),
            Change::SetLimits { name, limits } => self.set_limits(&name, limits, now),
            Change::SetAdmin { name, admin, timeout } => self.set_admin(&name, admin, timeout, now),
            Change::ForceHealth { name, forced } => self.force(&name, forced, now),
            Change::Agent { name, said } => self.hear(&name, said, now),
            Change::Bound { service, bounds } => self.bound(&service, &bounds, now),
            Change::Full { service, full } => self.fill(&service, &full, now),
            Change::AddRule { service, prefix, action, ttl } => self.add_rule(&service, prefix, action, ttl, now),
            Change::RemoveRule { service, prefix } => self.remove_rule(&service, prefix, now),
            Change::SetDropIn { name, text, services } => self.set_drop_in(name, text, services, now),
            Change::Reload(config) => self.take_over_file(*config, false, now),
            Change::Reset(config) => self.take_over_file(*config, true, now),
            Change::Discover { service, source, targets, waiting } => {
                self.discover(&service, &source, &targets, &waiting, now)
            }
        }
    }

    /// Applies the services and the settings of a configuration file.
    fn take_over_file(
        &mut self,
        mut config: Config,
        reset: bool,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let differences = self.settings.differences(&config);
        if !differences.refused.is_empty() {
            return Err(Refused::Conflict(differences.refused.join("; ")));
        }
        let done = self.reload(&mem::take(&mut config.services), &differences, reset, now)?;
        self.settings.take_over(config);
        Ok(done)
    }

    /// Applies all settings of a configuration except its services.
    fn take_over_settings(&mut self, config: Config) -> Result<(String, Vec<Command>), Refused> {
        let differences = self.settings.differences(&config);
        if !differences.refused.is_empty() {
            return Err(Refused::Conflict(differences.refused.join("; ")));
        }
        self.settings.take_over(Config { services: Valid::default(), ..config });
        let message = match differences.changed.as_slice() {
            [] => report::NOTHING_CHANGED.to_owned(),
            changed => format!("configuration applied, {} changed", changed.join(", ")),
        };
        Ok((message, differences.reports().collect()))
    }

    /// The number of a backend's known clients at the last sweep; `None`: this controller decides for a fleet and has no
    /// client table in which it could count clients.
    pub(super) fn swept_clients(&self, name: &BackendName) -> Option<u64> {
        (self.role != Role::Decides).then(|| self.parts(name).map(Backend::known_clients).sum())
    }

    pub(super) fn reconcile_around(&mut self, name: &BackendName, now: Instant) -> Reconciled {
        self.reconcile(|service| service.name() == name.service, Vec::new(), Some(name), now)
    }

    /// Starts to drain a backend that is to be removed.
    pub(super) fn leave(&mut self, name: &BackendName, known: Option<u64>, now: Instant) -> (String, Vec<Command>) {
        self.parts_mut(name).for_each(Backend::leave);
        let reconciled = self.reconcile_around(name, now);
        let message = self.done(name, "drains before it is removed", &reconciled);
        let mut commands = reconciled.commands;
        commands.extend(self.remove_those_that_left(now));
        // A controller that decides for a fleet has no client table in which it could count clients.
        let clients = known.map_or_else(
            || "its known clients leave first".to_owned(),
            |known| counted(known as usize, "known client"),
        );
        (format!("{message}; {clients} (--force does not wait for them)"), commands)
    }

    /// Sets the weight of a backend. Every weight is valid in combination with all other weights, so this function does
    /// not validate the rest of the configuration.
    fn set_weight(&mut self, name: &BackendName, weight: u16, now: Instant) -> Result<(String, Vec<Command>), Refused> {
        let old = self.backend(name)?.weight();
        if old == weight {
            return Ok((format!("backend {name} has weight {weight} already: nothing changed"), Vec::new()));
        }
        let legs = self.services.those_mut(|service| service.name() == name.service);
        legs.for_each(|service| service.set_weight(&name.backend, weight));
        let reconciled = self.reconcile_around(name, now);
        Ok((self.done(name, &format!("weight {old} → {weight}"), &reconciled), reconciled.commands))
    }

    pub(super) fn set_admin(
        &mut self,
        name: &BackendName,
        admin: Admin,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let remembers = self.service(&name.service)?.remembers();
        let word = match admin {
            Admin::Ready => "ready",
            Admin::Drain if remembers => "draining",
            Admin::Drain => "drained",
            Admin::Maint => "in maintenance",
        };
        if self.backend(name)?.admin() == admin && timeout.is_none() {
            let kept = if admin == Admin::Ready { self.kept_back(name) } else { String::new() };
            return Ok((format!("backend {name} is {word} already: nothing changed{kept}"), Vec::new()));
        }
        self.parts_mut(name).for_each(|backend| backend.set_admin(admin, timeout));
        let reconciled = self.reconcile_around(name, now);
        let kept = if admin == Admin::Ready { self.kept_back(name) } else { String::new() };
        Ok((self.done(name, word, &reconciled) + &kept, reconciled.commands))
    }

    /// Says why the backend takes no new clients although the operator lets it; empty if it takes new clients.
    fn kept_back(&self, name: &BackendName) -> String {
        let Some(part) = self.parts(name).find(|part| !part.may_take_new()) else { return String::new() };
        let why = if part.reason().is_empty() { String::new() } else { format!(": {}", part.reason()) };
        format!("; it takes no new clients, because it is {}{why}", part.state().word())
    }

    fn force(
        &mut self,
        name: &BackendName,
        forced: Option<Forced>,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let what = match forced {
            Some(Forced::Up) => "forced up",
            Some(Forced::Down) => "forced down",
            None => "follows its checks",
        };
        if self.backend(name)?.forced() == forced {
            let already = if forced.is_some() { format!("is {what}") } else { what.to_owned() };
            return Ok((format!("backend {name} {already} already: nothing changed"), Vec::new()));
        }
        self.parts_mut(name).for_each(|backend| backend.force(forced));
        let reconciled = self.reconcile_around(name, now);
        let what = match forced {
            Some(_) => what.to_owned(),
            None => format!("{what} again, is {}", self.backend(name)?.state().word()),
        };
        Ok((self.done(name, &what, &reconciled), reconciled.commands))
    }

    /// A copy of the current configuration that the caller can change, and the index of the service called `name`.
    pub(super) fn edit(&self, name: &str) -> Result<(Vec<Arc<ServiceConfig>>, usize), Refused> {
        let configs = self.present();
        let index = configs.iter().position(|service| service.name == name);
        Ok((configs, index.ok_or_else(|| self.no_service(name))?))
    }

    pub(super) fn reconfigure(
        &mut self,
        services: Vec<Arc<ServiceConfig>>,
        subject: &BackendName,
        what: &str,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let before = Sizes::before(&self.services);
        let (_, reconciled) = self.configure(services, Some(subject), now)?;
        let resized = before.resized(&self.services, &subject.service);
        Ok((self.done(subject, what, &reconciled) + &resized, reconciled.commands))
    }

    /// Returns a line such as `backend web/web4 added: 13,107 of 65,537 slots moved, 215 needless`, and appends a note
    /// if the service is in an unusual state now.
    pub(super) fn done(&self, name: &BackendName, what: &str, reconciled: &Reconciled) -> String {
        let mut message = format!("backend {name} {what}");
        let none = Moves::default();
        let (mut moved, mut tiers) = (Vec::new(), String::new());
        for service in self.legs(&name.service) {
            let moves = reconciled.moves.get(&service.id()).unwrap_or(&none);
            moved.push(format!("{}{}", service.prefix(), report::moved(moves, service.table_size())));
            if service.tier() != Tier::Primaries {
                tiers += &format!("; service {} {}", service.label(), report::tier(service.tier()));
            }
        }
        if !moved.is_empty() {
            message += &format!(": {}{tiers}", moved.join(", "));
        }
        message
    }
}
