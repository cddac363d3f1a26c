//! Reads the section `[control]` of the configuration.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    findings::Findings,
    section::{Given, Located, Section},
};
use crate::{
    control::{Control, Remote, Role, readers_socket},
    value,
};

/// The default path of the control socket.
pub const DEFAULT_SOCKET: &str = "/run/balancer/balancer.sock";

/// Reads the section `[control]`, or returns the defaults if the file has no such section.
pub(super) fn control(section: Option<Section<'_>>, findings: &mut Findings<'_>) -> Control {
    let mut control = Control::at(PathBuf::from(DEFAULT_SOCKET));
    let Some(mut section) = section else { return control };
    if let Some(Located { value, .. }) = section.text("socket", findings, value::socket_path) {
        control.socket = value;
    }
    control.group = section.text("group", findings, value::group).map(|group| group.value);
    if let Some(Located { at, value }) = section.text("readers", findings, value::group) {
        let path = readers_socket(&control.socket);
        if let Err(wrong) = value::socket_path_length(&path.to_string_lossy()) {
            findings.error(at, format!("readers needs a socket beside the other one, and {wrong}"));
        }
        control.readers = Some(value);
    }
    control.audit = section.text("audit", findings, value::absolute_path).map(|path| path.value);
    control.remote = remote(&mut section, findings);
    section.finish(findings);
    control
}

/// Reads the keys of the listener for other machines.
fn remote(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<Remote> {
    let listen = section.text("listen", findings, value::listen_address);
    let needed = ["cert", "key", "client_ca", "roles"];
    match &listen {
        None => {
            for key in needed.into_iter().filter(|key| section.has(key)) {
                findings
                    .error(section.at, format!("{key} without listen; add listen = \"ADDR:PORT\", or remove {key}"));
            }
        }
        Some(Located { at, value: Some(_) }) => {
            for key in needed.into_iter().filter(|key| !section.has(key)) {
                let right = if key == "roles" { ROLES } else { "the absolute path of a file in PEM" };
                findings.error(*at, format!("listen without {key}; add {key} = {right}"));
            }
        }
        Some(Located { value: None, .. }) => {}
    }
    let [cert, key, client_ca] =
        ["cert", "key", "client_ca"].map(|key| section.text(key, findings, value::absolute_path));
    let roles = roles(section, findings);
    Some(Remote {
        listen: listen?.value?,
        cert: cert?.value,
        key: key?.value,
        client_ca: client_ca?.value,
        roles: roles?,
    })
}

/// An example of roles in the configuration, by names in certificates.
const ROLES: &str = "{ \"deploy.example.com\" = \"drain\" }";
/// The maximum length of a name in a certificate, in bytes.
const LONGEST_NAME: usize = 255;

fn roles(section: &mut Section<'_>, findings: &mut Findings<'_>) -> Option<BTreeMap<String, Role>> {
    let at = section.at;
    let roles = section.texts_or_files("roles", ROLES, findings, |name, given| {
        let Given::Text(word) = given else { return Err(format!("roles takes no file; give {ROLES}")) };
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(char::is_control) {
            return Err(format!("{} is no name of a certificate; give {ROLES}", value::quoted(name)));
        }
        let words = Role::ALL.map(|role| (role.word(), role));
        Ok((name.to_owned(), value::word("the role", word, &words)?))
    })?;
    if roles.is_empty() && !findings.has_errors() {
        findings.error(at, format!("roles is empty, so no client has a role; give {ROLES}"));
    }
    Some(roles.into_iter().map(|role| role.value).collect())
}
