//! `[control]`.

use std::path::PathBuf;

use super::{
    document::DEFAULT_SOCKET,
    findings::Findings,
    section::{Located, Section},
};
use crate::{
    control::{Control, readers_socket},
    value,
};

/// Reads the section, or returns the defaults where there is none.
pub(super) fn control(section: Option<Section<'_>>, findings: &mut Findings<'_>) -> Control {
    let mut control = Control { socket: PathBuf::from(DEFAULT_SOCKET), group: None, readers: None };
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
    section.finish(findings);
    control
}
