//! Upgrades state files of earlier versions.

use balancer_control::state::VERSION;
use serde_json::{Value, json};

/// Upgrades the body of a state file from `version` to the current format.
pub(super) fn upgrade(version: u32, body: &mut Value) {
    if version < 2 {
        one_listener_each(body);
    }
    if let Some(body) = body.as_object_mut() {
        body.insert("version".to_owned(), json!(VERSION));
    }
}

/// Upgrades version 1, in which a service had an `address` and a `protocol`, and a backend without its own port used
/// the service's port.
fn one_listener_each(body: &mut Value) {
    for service in array(body.get_mut("file")) {
        let port = listen(service);
        for backend in array(service.get_mut("backends")) {
            leave_out(backend, port.as_deref());
        }
    }
    for service in array(body.get_mut("services")) {
        let port = service.get_mut("settings").and_then(listen);
        for backend in array(service.get_mut("backends")) {
            if let Some(config) = backend.get_mut("config") {
                leave_out(config, port.as_deref());
            }
        }
    }
}

fn array(value: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    value.and_then(Value::as_array_mut).into_iter().flatten()
}

/// Gives a service the key `listen`, and returns the port of the service.
fn listen(service: &mut Value) -> Option<String> {
    let service = service.as_object_mut()?;
    let address = service.remove("address")?.as_str()?.to_owned();
    let protocol = service.remove("protocol")?.as_str()?.to_owned();
    service.insert("listen".to_owned(), json!([format!("{address}/{protocol}")]));
    address.rsplit_once(':').map(|(_, port)| port.to_owned())
}

/// Sets a backend's port to 0 if it equals the listener's port; 0 means the port of the listener.
fn leave_out(backend: &mut Value, port: Option<&str>) {
    let address = backend.get("address").and_then(Value::as_str).map(str::to_owned);
    if let Some((host, own)) = address.as_deref().and_then(|address| address.rsplit_once(':'))
        && Some(own) == port
    {
        backend["address"] = json!(format!("{host}:0"));
    }
}
