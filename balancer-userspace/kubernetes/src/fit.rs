//! Determines which services the balancer would accept.

use balancer_config::file::{self, ConfigErrors};

use crate::drop_in::{self, DropIn, ServiceText};

/// The valid settings of a service, and the reason if they differ from the wanted service.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The service with its valid settings; `None` if the balancer would not accept the service in any form.
    pub service: Option<ServiceText>,
    /// The mistake in the wanted service.
    pub wrong: Option<String>,
}

/// A service that the balancer has refused, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub service: ServiceText,
    /// The reason for the refusal, in the balancer's words.
    pub why: String,
}

/// Returns `wanted` if the balancer would accept it and has not `refused` it. If not, the function returns the wanted
/// service with its earlier settings, or the earlier service.
#[must_use]
pub fn alone(wanted: ServiceText, before: Option<&ServiceText>, refused: Option<&Refusal>) -> Fitted {
    let refused = refused.filter(|refused| is_alike(&refused.service, &wanted));
    if before == Some(&wanted) && refused.is_none() {
        return Fitted { service: Some(wanted), wrong: None };
    }
    let taken_alone = refused.map_or_else(|| taken(&wanted.alone()), |refused| Err(refused.why.clone()));
    let wrong = match taken_alone {
        Ok(()) => return Fitted { service: Some(wanted), wrong: None },
        Err(wrong) => Some(wrong),
    };
    let before = before.filter(|before| refused.is_none_or(|refused| !is_alike(&refused.service, before)));
    let Some(before) = before else { return Fitted { service: None, wrong } };
    let (settings, forwarding) = (before.settings.clone(), before.forwarding.clone());
    let milder = ServiceText { settings, forwarding, ports: before.ports.clone(), ..wanted };
    let fits = taken(&milder.alone()).is_ok();
    Fitted { service: Some(if fits { milder } else { before.clone() }), wrong }
}

/// Returns those `services` that the balancer would accept together, and for each other service the reason for the
/// refusal. Services that are in the drop-in `before` take precedence.
#[must_use]
pub fn together(before: &DropIn, services: Vec<ServiceText>) -> (Vec<ServiceText>, Vec<(String, String)>) {
    let fits = |services: &[ServiceText]| taken(&DropIn { services: services.to_vec(), ..DropIn::default() }.text());
    if fits(&services).is_ok() {
        return (services, Vec::new());
    }
    let (mut fitting, mut wrong) = (Vec::new(), Vec::new());
    let (there, new): (Vec<_>, Vec<_>) =
        services.into_iter().partition(|service| before.service(&service.name).is_some());
    for service in there.into_iter().chain(new) {
        fitting.push(service);
        if let Err(error) = fits(&fitting) {
            wrong.extend(fitting.pop().map(|service: ServiceText| (service.name, error)));
        }
    }
    fitting.sort_by(|one, other| one.name.cmp(&other.name));
    (fitting, wrong)
}

/// Whether two versions of a service are equal, apart from their backends.
fn is_alike(one: &ServiceText, other: &ServiceText) -> bool {
    let bare = |service: &ServiceText| ServiceText { backends: Vec::new(), ..service.clone() };
    bare(one) == bare(other)
}

fn taken(text: &str) -> Result<(), String> {
    let parsed = file::parse_drop_in(drop_in::NAME, drop_in::NAME.as_ref(), text.as_bytes());
    parsed.map(drop).map_err(|errors| first(&errors))
}

/// Returns the first mistake, without the line number, which refers to a temporary file.
fn first(errors: &ConfigErrors) -> String {
    errors.findings().first().map(|finding| finding.text.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, listen: &str) -> ServiceText {
        ServiceText {
            name: name.to_owned(),
            listen: vec![listen.to_owned()],
            forwarding: "nat".to_owned(),
            ..ServiceText::default()
        }
    }

    fn with(service: &ServiceText, key: &str, value: &str) -> ServiceText {
        let mut service = service.clone();
        service.settings.insert(key.to_owned(), value.into());
        service
    }

    #[test]
    fn when_a_setting_is_wrong_then_the_one_before_stays_and_all_else_changes() {
        let before = with(&service("k8s.a.a", "198.51.100.1:80"), "remember", "1h");
        let wanted = with(&service("k8s.a.a", "198.51.100.1:81"), "remember", "1 fortnight");
        let fitted = alone(wanted.clone(), Some(&before), None);
        assert!(fitted.wrong.unwrap().contains("fortnight"));
        assert_eq!(fitted.service, Some(with(&service("k8s.a.a", "198.51.100.1:81"), "remember", "1h")));
        assert_eq!(alone(wanted, None, None).service, None);
    }

    #[test]
    fn when_the_balancer_has_refused_a_service_then_it_stays_as_it_was_until_it_is_another() {
        let before = service("k8s.a.a", "198.51.100.1:80");
        let wanted = with(&before, "remember", "1h");
        let refused = Refusal { service: wanted.clone(), why: "restart it".to_owned() };
        let fitted = alone(wanted.clone(), Some(&before), Some(&refused));
        assert_eq!((fitted.service, fitted.wrong), (Some(before.clone()), Some("restart it".to_owned())));
        assert_eq!(alone(wanted.clone(), Some(&wanted), Some(&refused)).service, None, "it was never in force");
        let other = with(&before, "remember", "2h");
        assert_eq!(alone(other.clone(), Some(&before), Some(&refused)).service, Some(other));
    }

    #[test]
    fn when_two_services_do_not_fit_together_then_the_one_that_was_there_stays() {
        let (old, new) = (service("k8s.b.old", "198.51.100.1:80"), service("k8s.a.new", "198.51.100.1:80"));
        let before = DropIn { services: vec![old.clone()], ..DropIn::default() };
        let (fitting, wrong) = together(&before, vec![new, old.clone()]);
        assert_eq!(fitting, [old]);
        assert_eq!(wrong[0].0, "k8s.a.new");
        assert!(wrong[0].1.contains("198.51.100.1:80 is the service on line"), "{wrong:?}");
    }
}
