//! Reads the key `quic` of a service.

use super::{findings::Findings, section::Section};
use crate::{
    quic::{CONFIGS, Format, Keyed, LEARNS_FROM, QuicConfig, QuicKey},
    value,
};

/// The maximum length of server ID and nonce together in QUIC version 1, in bytes.
const MOST: u8 = 19;
const NLB: (u8, u8) = (8, 7);
const DEFAULT_LENGTH: u8 = 8;

/// Reads the section `quic`. The function treats invalid values as missing. The function adds errors to `findings`.
pub(super) fn section(mut section: Section<'_>, findings: &mut Findings<'_>) -> QuicConfig {
    let at = section.at;
    section.require("format", "format = \"nlb\" or \"draft\"", findings);
    let format = section.text("format", findings, |text| value::word("format", text, &Format::WORDS));
    let format = format.map_or(Format::Draft, |format| format.value);
    let learn = section.boolean("learn", findings);
    let (server_id_length, nonce_length, keyed) = match format {
        Format::Nlb => {
            for key in ["config", "server_id_length", "nonce_length", "key"] {
                section.refuse(key, "is for format = \"draft\"; remove it", findings);
            }
            (NLB.0, NLB.1, Keyed { config: 0, key: None })
        }
        Format::Draft => lengths(&mut section, findings),
    };
    section.finish(findings);
    if server_id_length + nonce_length > MOST {
        let text = format!(
            "server_id_length = {server_id_length} and nonce_length = {nonce_length} are more than the {MOST} bytes that a \
             connection ID has room for; give smaller ones"
        );
        findings.error(at, text);
    }
    let value = QuicConfig {
        format,
        server_id_length,
        nonce_length,
        current: keyed,
        before: None,
        learn: learn.unwrap_or(true),
    };
    if learn == Some(true) && !value.learns() {
        let text = format!(
            "learn = true has no effect: it needs a key, because anyone can make a connection ID without one, and \
             server_id_length = {LEARNS_FROM} or more"
        );
        findings.warn(at, text);
    }
    value
}

fn lengths(section: &mut Section<'_>, findings: &mut Findings<'_>) -> (u8, u8, Keyed) {
    let config = section.integer("config", findings, (0, i64::from(CONFIGS) - 1)).map_or(0, |config| config.value);
    let server = section.integer("server_id_length", findings, (1, 15)).map_or(DEFAULT_LENGTH, |length| length.value);
    let nonce = section.integer("nonce_length", findings, (4, 18));
    let nonce = nonce.map_or_else(|| DEFAULT_LENGTH.min(MOST - server), |length| length.value);
    let key = section.text("key", findings, str::parse::<QuicKey>).map(|key| key.value);
    (server, nonce, Keyed { config, key })
}
