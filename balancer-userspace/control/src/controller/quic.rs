//! The key by which the servers of a service encode themselves in QUIC connection IDs.

use std::{sync::Arc, time::Instant};

use balancer_config::{
    names::BackendName,
    quic::{Format, QuicKey},
};

use super::Controller;
use crate::io::{Command, Refused};

impl Controller {
    pub(super) fn rotate_quic_key(
        &mut self,
        service: &str,
        key: QuicKey,
        now: Instant,
    ) -> Result<(String, Vec<Command>), Refused> {
        let (mut services, index) = self.edit(service)?;
        let Some(config) = services.get_mut(index).map(Arc::make_mut) else {
            return Err(self.no_service(service));
        };
        let Some(quic) = &mut config.quic else {
            return Err(Refused::Conflict(format!("service {service} has no quic, so it has no key to rotate")));
        };
        if quic.format == Format::Nlb {
            return Err(Refused::Conflict(format!(
                "service {service} has format = \"nlb\", whose server IDs are readable: there is no key to rotate"
            )));
        }
        *quic = quic.rotated(key);
        let (new, old) = (quic.current.config, quic.before.map_or(0, |before| before.config));
        let about = BackendName { service: service.to_owned(), backend: String::new() };
        let (_, reconciled) = self.configure(services, Some(&about), now)?;
        let message = format!(
            "service {service} has a new key of quic under config {new}: the balancer still understands connection IDs of config \
             {old}, until the next rotation"
        );
        Ok((message, reconciled.commands))
    }
}
