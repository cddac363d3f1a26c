//! Services in the balancer's configuration file that do not belong to this program.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use balancer_config::file;

use crate::{
    block::{Block, File},
    names,
};

/// Services that do not belong to this program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// The names of these services.
    pub names: BTreeSet<String>,
    /// The addresses of these services, each with the name of a service that has it.
    pub addresses: BTreeMap<IpAddr, String>,
}

impl Others {
    /// Finds the services of other authors in a configuration file.
    ///
    /// # Errors
    /// Fails if the balancer would refuse the file without this program's services.
    pub fn of(path: &Path, file: &File) -> Result<Self, String> {
        // With the placeholder, the file is valid even if it contains no other service.
        let text = file.with(&Block::default(), true);
        let (config, _) = file::parse(path, text.as_bytes()).map_err(|errors| errors.to_string())?;
        let mut others = Self::default();
        for service in config.services.iter().filter(|service| !service.name.starts_with(names::PREFIX)) {
            others.names.insert(service.name.clone());
            for listener in &service.listen {
                others.addresses.insert(listener.address, service.name.clone());
            }
        }
        Ok(others)
    }

    /// Whether the file contains no services of other authors.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.names.is_empty()
    }

    /// The reason why applying the file would remove a configured service: the balancer has a service that is neither
    /// in the file nor one of this program's services.
    #[must_use]
    pub fn missing<'a>(&self, actual: impl IntoIterator<Item = &'a str>) -> Option<String> {
        let mut strangers =
            actual.into_iter().filter(|name| !name.starts_with(names::PREFIX) && !self.names.contains(*name));
        let name = strangers.next()?;
        Some(format!(
            "the balancer has service {name}, which the file does not have: applying the file would remove it. \
             Put it into the file, or apply the file yourself"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_others_have_services_in_the_file_then_their_addresses_and_names_are_known() {
        let text = "interfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nlisten = [\"198.51.100.1:80\", \"[2001:db8::1]:80\"]\n\
                    forwarding = \"ipip\"\n";
        let others = Others::of("x".as_ref(), &File::read(text).unwrap()).unwrap();
        assert_eq!(others.addresses.len(), 2);
        assert_eq!(others.missing(["web", "k8s.shop.web"]), None);
        let missing = others.missing(["web", "api"]).unwrap();
        assert!(missing.starts_with("the balancer has service api"), "{missing}");
        let none = Others::of("x".as_ref(), &File::read("interfaces = [\"eth0\"]\n").unwrap()).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn when_others_have_an_error_in_the_file_then_its_line_is_told() {
        let file = File::read("interfaces = [\"eth0\"]\n\nmetrix = 1\n").unwrap();
        let error = Others::of("b.toml".as_ref(), &file).unwrap_err();
        assert!(error.contains("b.toml:3"), "{error}");
    }
}
