//! The names that Kubernetes Services have in the balancer.

/// The prefix of the names of this program's services in the balancer. Services of other authors must not have names
/// with this prefix.
pub const PREFIX: &str = "k8s.";

/// The maximum length of the name of a service.
const LONGEST: usize = 63;

/// The name of a Service in the balancer: `k8s.NAMESPACE.NAME`, or, if this is too long, its beginning and a hash of
/// the whole name. Namespaces and names of Services contain no dots, so different Services have different names.
#[must_use]
pub fn service(namespace: &str, name: &str) -> String {
    fitting(&format!("{PREFIX}{namespace}.{name}"))
}

/// The name of a backend: `name`, or, if this is too long, its beginning and a hash of the whole name.
#[must_use]
pub fn fitting(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let begin: String = name.chars().take(LONGEST - 17).collect();
    format!("{begin}-{:016x}", hash(name))
}

/// The FNV-1a hash of a text, which must stay the same in every version of this program.
#[must_use]
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use balancer_config::value;

    use super::*;

    #[test]
    fn when_names_are_long_then_they_fit_and_differ() {
        assert_eq!(service("shop", "web"), "k8s.shop.web");
        let (one, other) = (service(&"n".repeat(63), "web"), service(&"n".repeat(63), "api"));
        assert_ne!(one, other);
        for name in [one, other] {
            assert_eq!(value::name(&name), Ok(name.clone()));
        }
    }
}
