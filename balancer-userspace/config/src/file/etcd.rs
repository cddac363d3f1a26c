//! Reads the keys of a section that specify how to reach etcd.

use http::Uri;

use super::{
    findings::Findings,
    section::{Located, Section},
};
use crate::{etcd::EtcdServers, value};

const ENDPOINTS: &str = "a list of URLs such as [\"https://192.0.2.1:2379\"]";

/// Reads `endpoints`, `ca`, `cert` and `key`; `None` if there are no valid endpoints.
pub(super) fn etcd_servers(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<EtcdServers> {
    let endpoints = endpoints(section, findings);
    let ca = section.text("ca", findings, value::absolute_path);
    let cert = section.text("cert", findings, value::absolute_path);
    let key = section.text("key", findings, value::absolute_path);
    for (one, has, other, other_has) in [("cert", &cert, "key", key.is_some()), ("key", &key, "cert", cert.is_some())] {
        if let (Some(one_given), false) = (has, other_has) {
            let text = format!("{one} without {other}; add {other} = \"/…\", or remove {one}");
            findings.error(one_given.at, text);
        }
    }
    let secret = [&ca, &cert, &key].into_iter().flatten().next();
    if let (Some(endpoints), Some(secret)) = (&endpoints, secret)
        && !endpoints.is_empty()
        && endpoints.iter().all(|url| url.starts_with("http://"))
    {
        findings.warn(secret.at, "no endpoint is https://: ca, cert and key have no effect".to_owned());
    }
    Some(EtcdServers {
        endpoints: endpoints.filter(|endpoints| !endpoints.is_empty())?,
        ca: ca.map(|path| path.value),
        cert: cert.map(|path| path.value),
        key: key.map(|path| path.value),
    })
}

/// Reads the URLs of the endpoints, without trailing slashes.
fn endpoints(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Vec<String>> {
    let at = section.at;
    let located = section.texts("endpoints", ENDPOINTS, findings, endpoint)?;
    if located.is_empty() && !findings.has_errors() {
        findings.error(at, format!("endpoints is empty; give {ENDPOINTS}"));
    }
    let mut endpoints = Vec::with_capacity(located.len());
    for Located { at, value: url } in located {
        if endpoints.contains(&url) {
            findings.error(at, format!("the endpoint {} is listed twice; remove one", value::quoted(&url)));
            continue;
        }
        if url.starts_with("http://") {
            let text = format!(
                "{} is not encrypted: anyone on the network path can read and change where clients go; use https://",
                value::quoted(&url)
            );
            findings.warn(at, text);
        }
        endpoints.push(url);
    }
    Some(endpoints)
}

fn endpoint(text: &str) -> Result<String, String> {
    let right = "write http(s)://HOST:PORT, such as \"https://192.0.2.1:2379\"";
    let wrong = |why: &str| Err(format!("the endpoint {} {why}; {right}", value::quoted(text)));
    let Ok(url) = text.parse::<Uri>() else { return wrong("is not a URL") };
    let (Some("http" | "https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return wrong("is not an http:// or https:// URL");
    };
    if authority.as_str().contains('@') {
        return wrong("has a user's name in it");
    }
    if url.path() != "/" || url.query().is_some() {
        return wrong("has a path");
    }
    match authority.port_u16() {
        None | Some(0) => wrong("has no port"),
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
    }
}
