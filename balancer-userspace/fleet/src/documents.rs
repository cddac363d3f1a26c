//! The format of states and tallies in the store, which is deflated JSON.

use std::io::{Read as _, Write as _};

use balancer_config::config::ServiceConfig;
use balancer_control::{
    as_far::{Read, ReadState, Unread},
    io::{BackendId, ServiceId},
    state::{SavedService, SavedState, VERSION},
};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde::{Deserialize as _, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::engine::LONGEST_VALUE;

/// The maximum size in bytes of the inflated JSON, which is several times the largest possible state.
const LARGEST: u64 = 64 << 20;

/// Serializes a state for the store.
///
/// # Errors
/// Fails with one line of text; serializing an exported state never fails.
pub fn write(state: &SavedState) -> Result<Vec<Vec<u8>>, String> {
    let bytes = pack(state, "the state")?;
    Ok(bytes.chunks(LONGEST_VALUE / 2).map(<[u8]>::to_vec).collect())
}

/// Parses a state from the store.
///
/// # Errors
/// Fails if the state cannot be unpacked, or if its format is of a later version; the error is one line.
pub fn read<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<SavedState, String> {
    let bytes: Vec<u8> = parts.flatten().copied().collect();
    let state: SavedState = unpack(&bytes, "the state")?;
    readable(state.version)?;
    Ok(state)
}

/// Parses a state from the store service by service, so that services which another version wrote do not make the whole
/// state unreadable.
///
/// # Errors
/// Fails if the state cannot be unpacked, if its format is of a later version, or if something other than the contents
/// of a service cannot be read; the error is one line.
pub fn read_as_far<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> Result<ReadState, String> {
    if let Ok(state) = read(parts.clone()) {
        let (state, services) = state.with_services(());
        let services = services.into_iter().map(|service| Read::Whole(Box::new(service)));
        return Ok(state.with_services(services.collect()).0);
    }
    let bytes: Vec<u8> = parts.flatten().copied().collect();
    let state: SavedState<Vec<Value>, Vec<Value>> = unpack(&bytes, "the state")?;
    readable(state.version)?;
    let file: Vec<ServiceConfig> =
        state.file.iter().filter_map(|service| ServiceConfig::deserialize(service).ok()).collect();
    let (state, services) = state.with_file(file).with_services(());
    let services = services.iter().map(read_service).collect::<Result<_, _>>()?;
    Ok(state.with_services(services).0)
}

fn readable(version: u32) -> Result<(), String> {
    if version > VERSION {
        return Err(format!("the state has version {version}; this balancer reads up to {VERSION}: upgrade it"));
    }
    Ok(())
}

fn read_service(service: &Value) -> Result<Read, String> {
    let why = match SavedService::deserialize(service) {
        Ok(service) => return Ok(Read::Whole(Box::new(service))),
        Err(why) => why.to_string(),
    };
    let backends = service.get("backends").and_then(Value::as_array).into_iter().flatten();
    let id = |of: &Value| of.get("id").and_then(|id| BackendId::deserialize(id).ok());
    let name = service.get("settings").and_then(|settings| settings.get("name")).and_then(Value::as_str);
    let place = service.get("id").and_then(|id| ServiceId::deserialize(id).ok());
    let (Some(id_of_service), Some(name)) = (place, name) else {
        return Err(format!("the state cannot be read: a service without id or name: {why}"));
    };
    Ok(Read::Unread(Unread {
        id: id_of_service,
        name: name.to_owned(),
        ids: backends.clone().filter_map(id).collect(),
        backends: backends.filter_map(|backend| serde::Deserialize::deserialize(backend).ok()).collect(),
        why,
    }))
}

/// Converts a value into deflated JSON. Error messages call the value `what`.
///
/// # Errors
/// Fails if the value cannot be serialized.
pub fn pack(value: &impl Serialize, what: &str) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(value).map_err(|err| format!("cannot write {what}: {err}"))?;
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&json).map_err(|err| format!("cannot compress {what}: {err}"))?;
    encoder.finish().map_err(|err| format!("cannot compress {what}: {err}"))
}

/// Unpacks a value that [`pack`] has made, possibly in another process.
///
/// # Errors
/// Fails if the bytes cannot be inflated, if they are too large, or if they are not JSON of this type; the error is one
/// line.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, String> {
    let mut json = Vec::new();
    let read = DeflateDecoder::new(bytes).take(LARGEST).read_to_end(&mut json);
    read.map_err(|err| format!("{what} is not compressed correctly: {err}"))?;
    if json.len() as u64 >= LARGEST {
        return Err(format!("{what} is larger than {} MiB", LARGEST >> 20));
    }
    serde_json::from_slice(&json).map_err(|err| format!("{what} cannot be read: {err}"))
}

#[cfg(test)]
mod tests {
    use balancer_config::fixture::{KEY, config, now, web};
    use balancer_control::{controller::Controller, state::Clocks};
    use serde_json::json;

    use super::*;

    /// Reads a state after this change to its JSON.
    fn read_changed(change: impl FnOnce(&mut Value)) -> Result<ReadState, String> {
        let mut controller = Controller::new(config(vec![web()]), KEY);
        controller.start(now());
        let state = controller.agreed_state(Clocks { now: now(), wall: std::time::UNIX_EPOCH });
        let mut json = serde_json::to_value(&state).unwrap();
        change(&mut json);
        let bytes = pack(&json, "the state").unwrap();
        read_as_far([bytes.as_slice()].into_iter())
    }

    #[test]
    fn when_a_later_version_wrote_a_service_then_the_rest_of_the_state_is_understood() {
        let whole = read_changed(|_| ()).unwrap();
        let [Read::Whole(service)] = whole.services.as_slice() else { panic!("{whole:?}") };
        let ids: Vec<BackendId> = service.backends.iter().map(|backend| backend.id).collect();
        let read = read_changed(|json| {
            json["file"][0]["forwarding"] = json!("teleport");
            json["services"][0]["settings"]["forwarding"] = json!("teleport");
            json["services"][0]["backends"][1]["admin"] = json!("asleep");
        });
        let read = read.unwrap();
        let [Read::Unread(unread)] = read.services.as_slice() else { panic!("{read:?}") };
        assert_eq!((unread.id, unread.name.as_str(), &unread.ids), (service.id, "web", &ids));
        assert_eq!(unread.backends.iter().map(|of| of.id).collect::<Vec<_>>(), [ids[0], ids[2], ids[3]]);
        assert!(unread.why.contains("asleep"), "{}", unread.why);
        assert_eq!((read.generation, read.file.len()), (whole.generation, 0));
    }

    #[test]
    fn when_more_than_a_service_is_not_understood_then_the_state_is_refused() {
        assert!(read_changed(|json| json["version"] = json!(VERSION + 1)).unwrap_err().contains("upgrade it"));
        assert!(read_changed(|json| json["gone"] = json!("nobody")).unwrap_err().contains("cannot be read"));
        assert!(read_changed(|json| json["services"][0]["id"] = json!("first")).unwrap_err().contains("without id"));
    }
}
