//! The backends of a service, found by the names or addresses by which other programs call them.

use std::net::{IpAddr, SocketAddr};

use balancer_api::model::BackendView;
use balancer_config::value;

/// The backends of a service, in their order.
pub(super) struct Backends(Vec<Known>);

struct Known {
    name: String,
    addresses: Vec<String>,
}

impl Backends {
    pub(super) fn of(views: Vec<BackendView>) -> Self {
        let known = |view: BackendView| {
            let families = view.families.into_iter().map(|family| family.address);
            Known { name: view.name, addresses: std::iter::once(view.address).chain(families).collect() }
        };
        Self(views.into_iter().map(known).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn name_at(&self, place: usize) -> Option<&str> {
        self.0.get(place).map(|known| known.name.as_str())
    }

    pub(super) fn named(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|known| known.name == name).map(|known| known.name.as_str())
    }

    /// The backend with this address, written as nginx writes it: with a port, and with brackets around IPv6. A backend
    /// without a port of its own has the address with any port.
    pub(super) fn at(&self, text: &str) -> Option<&str> {
        let wanted: SocketAddr = text.parse().ok()?;
        let has = |fits: &dyn Fn(&str) -> bool| {
            let mut found = self.0.iter().filter(|known| known.addresses.iter().any(|address| fits(address)));
            found.next().filter(|_| found.next().is_none()).map(|known| known.name.as_str())
        };
        has(&|address| address.parse() == Ok(wanted)).or_else(|| has(&|address| address.parse() == Ok(wanted.ip())))
    }

    /// The backend that a text calls by its name or its address.
    pub(super) fn called(&self, text: &str) -> Result<&str, String> {
        self.named(text).or_else(|| self.at(text)).ok_or_else(|| self.missing(text))
    }

    fn missing(&self, text: &str) -> String {
        let hint = if is_address(text) {
            let all: Vec<String> =
                self.0.iter().map(|known| format!("{} ({})", known.name, known.addresses.join(", "))).collect();
            format!("they are: {}", all.join(", "))
        } else {
            let names: Vec<&str> = self.0.iter().map(|known| known.name.as_str()).collect();
            value::hint(text, &names, "they are")
        };
        format!("there is no backend {}; {hint}", value::quoted(text))
    }
}

fn is_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok() || text.parse::<IpAddr>().is_ok()
}

/// The last server in a list as nginx's `$upstream_addr` writes it: after a comma, nginx tried another server; after a
/// colon with blanks around it, nginx followed an internal redirect.
pub(super) fn last_of_list(text: &str) -> &str {
    let last = text.rsplit(" : ").next().unwrap_or(text);
    last.rsplit(',').next().unwrap_or(last).trim()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Backends with these names and addresses.
    pub(in super::super) fn backends(all: &[(&str, &str)]) -> Backends {
        let known = |&(name, address): &(&str, &str)| Known {
            name: name.to_owned(),
            addresses: address.split(' ').map(str::to_owned).collect(),
        };
        Backends(all.iter().map(known).collect())
    }

    #[test]
    fn when_a_backend_is_called_by_its_address_then_it_is_found() {
        let all = backends(&[
            ("web1", "10.0.0.11:8080"),
            ("web2", "10.0.0.12"),
            ("web3", "10.0.0.11:8081 [fd00::3]:80"),
            ("10.0.0.9-80", "10.0.0.9:80"),
        ]);
        for (text, name) in [
            ("web2", "web2"),
            ("10.0.0.11:8080", "web1"),
            ("10.0.0.11:8081", "web3"),
            ("10.0.0.12:443", "web2"),
            ("[fd00::3]:80", "web3"),
            ("10.0.0.9:80", "10.0.0.9-80"),
        ] {
            assert_eq!(all.called(text), Ok(name));
        }
        let error = all.called("10.0.0.11:9").unwrap_err();
        assert!(error.starts_with("there is no backend \"10.0.0.11:9\"; they are: web1 (10.0.0.11:8080), "), "{error}");
        assert_eq!(all.called("web0").unwrap_err(), "there is no backend \"web0\"; did you mean \"web1\"?");
    }

    #[test]
    fn when_nginx_tried_several_servers_then_the_last_one_counts() {
        for (text, last) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:80, 10.0.0.2:80", "10.0.0.2:80"),
            ("10.0.0.1:80, unix:/run/a.sock : [fd00::1]:80", "[fd00::1]:80"),
            ("-", "-"),
        ] {
            assert_eq!(last_of_list(text), last);
        }
    }
}
