//! The DNS queries that the services of a configuration need.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    dns::{DnsSource, Records},
    listeners::Family,
    service::ServiceConfig,
};

/// The queries, each with the address families that the services want.
pub type Questions = BTreeMap<DnsSource, BTreeSet<Family>>;

impl ServiceConfig {
    /// The address families that the services want from a source.
    #[must_use]
    pub fn families_of(&self, dns: &DnsSource) -> Vec<Family> {
        let by_listeners = || match dns.records {
            Records::Services | Records::Backend { .. } => self.families(),
            Records::Addresses { .. } => vec![self.first().family()],
        };
        dns.family.map_or_else(by_listeners, |family| vec![family])
    }
}

/// Collects the queries that the services need.
#[must_use]
pub fn questions(services: &[Arc<ServiceConfig>]) -> Questions {
    let mut questions = Questions::new();
    for service in services {
        for dns in service.discover.iter().filter_map(|list| list.source.dns()) {
            questions.entry(dns.clone()).or_default().extend(service.families_of(dns));
        }
    }
    questions
}
