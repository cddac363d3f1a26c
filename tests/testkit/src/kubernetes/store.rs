//! Stores the objects of the stand-in and their history.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::http::Request;

/// The kind, namespace and name of an object, as in the paths of the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) kind: String,
    namespace: String,
    name: String,
}

impl Place {
    pub(super) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn of(kind: &str, object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        Self::new(kind, &text("namespace"), &text("name"))
    }

    /// Parses a path such as `/api/v1/namespaces/shop/services/web/status`. If the path names a list of objects, the
    /// name in the result is empty.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let versions = if parts.next()? == "apis" { 2 } else { 1 };
        let rest: Vec<&str> = parts.skip(versions).collect();
        let (namespace, rest) = match *rest.as_slice() {
            ["namespaces", namespace, ref rest @ ..] => (namespace, rest.to_vec()),
            _ => ("", rest),
        };
        let name = rest.get(1).copied().unwrap_or_default();
        Some(Self::new(rest.first()?, namespace, name))
    }
}

/// The faults that the stand-in simulates.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) cuts: u64,
    pub(super) away: bool,
    pub(super) conflicts: usize,
    pub(super) twice: bool,
    pub(super) silent: bool,
    pub(super) old: bool,
    pub(super) denies: usize,
}

#[derive(Debug)]
struct Event {
    version: u64,
    kind: String,
    text: String,
}

/// The objects of the stand-in and their history.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: BTreeMap<Place, Value>,
    history: Vec<Event>,
    version: u64,
    /// The version up to which the store has forgotten the history.
    compacted: u64,
    pub(super) faults: Faults,
    pub(super) requests: Vec<(String, String)>,
    pub(super) watched: Vec<String>,
}

/// The JSON answer to a failed request.
pub(super) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": ""})
}

/// The answer of a server that has not yet loaded the roles of its users.
pub(super) fn forbidden(path: &str) -> Value {
    status(403, &format!("User \"it\" cannot get path \"{path}\""))
}

impl Store {
    /// Whether the server supports the API version in the path.
    pub(super) fn knows(&self, path: &str) -> bool {
        !path.contains("/endpointslices") || path.contains("/v1beta1/") == self.faults.old
    }

    pub(super) fn get(&self, place: &Place) -> Option<&Value> {
        self.objects.get(place)
    }

    pub(super) fn all(&self, kind: &str) -> Vec<Value> {
        self.objects.iter().filter(|(place, _)| place.kind == kind).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn put(&mut self, place: &Place, mut object: Value) {
        self.version += 1;
        let before = self.objects.get(place);
        let kept = |key: &str, value: Value| before.map_or(value, |before| before["metadata"][key].clone());
        for (key, value) in [
            ("uid", json!(format!("uid-{}", self.version))),
            (
                "creationTimestamp",
                json!(format!("2026-01-01T{:02}:{:02}:00Z", self.version / 60 % 24, self.version % 60)),
            ),
        ] {
            if object["metadata"][key].is_null() {
                object["metadata"][key] = kept(key, value);
            }
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.note(place, what, &object);
        self.objects.insert(place.clone(), object);
    }

    pub(super) fn delete(&mut self, place: &Place) {
        let Some(mut object) = self.objects.get(place).cloned() else { return };
        if object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            self.put(place, object);
            return;
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.note(place, "DELETED", &object);
        self.objects.remove(place);
    }

    fn note(&mut self, place: &Place, what: &str, object: &Value) {
        if self.faults.silent {
            return;
        }
        let text = json!({"type": what, "object": object}).to_string();
        let text = if self.faults.twice { format!("{text}\n{text}") } else { text };
        self.history.push(Event { version: self.version, kind: place.kind.clone(), text });
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
        self.faults.cuts += 1;
    }

    /// Returns all events since the version `version`.
    ///
    /// # Errors
    /// Fails if the store has forgotten events since that version.
    pub(super) fn since(&self, kind: &str, version: u64) -> Result<Vec<(u64, String)>, Value> {
        if version < self.compacted {
            return Err(status(410, "too old resource version"));
        }
        let news = self.history.iter().filter(|event| event.kind == kind && event.version > version);
        Ok(news.map(|event| (event.version, event.text.clone())).collect())
    }

    pub(super) fn answer(&mut self, request: &Request) -> (u16, Value) {
        self.requests.push((request.method.clone(), request.path.clone()));
        let unknown = || (404, status(404, "there is no such object"));
        let Some(place) = Place::of_path(&request.path).filter(|_| self.knows(&request.path)) else { return unknown() };
        if self.faults.denies > 0 {
            self.faults.denies -= 1;
            return (403, forbidden(&request.path));
        }
        if request.method != "GET" && self.faults.conflicts > 0 {
            self.faults.conflicts -= 1;
            return (409, status(409, "the object has been modified"));
        }
        match request.method.as_str() {
            "GET" if place.name.is_empty() => (200, self.list(&place, request)),
            "GET" => self.get(&place).cloned().map_or_else(unknown, |object| (200, object)),
            "POST" => self.create(&place.kind, request.body.clone()),
            "PUT" => self.write(&place, |_| request.body.clone(), &request.body),
            "PATCH" => {
                let of_status = request.path.ends_with("/status");
                let mut patch = request.body.clone();
                if let Some(parts) = patch.as_object_mut() {
                    parts.retain(|key, _| key == "metadata" || (key == "status") == of_status);
                }
                self.write(&place, |object| merged(object, &patch), &request.body)
            }
            _ => (405, status(405, "there is no such method")),
        }
    }

    fn list(&self, place: &Place, request: &Request) -> Value {
        let is_in =
            |of: &Place| of.kind == place.kind && (place.namespace.is_empty() || of.namespace == place.namespace);
        let all: Vec<&Value> = self.objects.iter().filter(|(of, _)| is_in(of)).map(|(_, object)| object).collect();
        let number = |key: &str| request.query.get(key).and_then(|text| text.parse::<usize>().ok());
        let (from, most) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
        let items: Vec<&Value> = all.iter().skip(from).take(most).copied().collect();
        let end = from + items.len();
        let rest = if end < all.len() { json!(end.to_string()) } else { Value::Null };
        json!({"kind": "List", "metadata": {"resourceVersion": self.version.to_string(), "continue": rest}, "items": items})
    }

    fn create(&mut self, kind: &str, object: Value) -> (u16, Value) {
        let place = Place::of(kind, &object);
        if self.objects.contains_key(&place) {
            return (409, status(409, "it exists"));
        }
        self.put(&place, object);
        (201, self.objects[&place].clone())
    }

    fn write(&mut self, place: &Place, change: impl Fn(Value) -> Value, body: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get(place).cloned() else {
            return (404, status(404, "there is no such object"));
        };
        let is_other = |key: &str| {
            let wanted = &body["metadata"][key];
            !wanted.is_null() && *wanted != object["metadata"][key]
        };
        if is_other("uid") {
            let message = format!("metadata.uid: Invalid value: {}: field is immutable", body["metadata"]["uid"]);
            return (422, status(422, &message));
        }
        if is_other("resourceVersion") {
            return (409, status(409, "the object has been modified"));
        }
        let changed = change(object);
        self.put(place, changed.clone());
        let is_deleted = !changed["metadata"]["deletionTimestamp"].is_null();
        if is_deleted && changed["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty) {
            self.delete(place);
        }
        (200, self.objects.get(place).cloned().unwrap_or(changed))
    }
}

/// Applies a merge patch (RFC 7386).
fn merged(object: Value, patch: &Value) -> Value {
    let Some(patch) = patch.as_object() else { return patch.clone() };
    let mut object = if let Value::Object(object) = object { object } else { serde_json::Map::new() };
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            let before = object.remove(key).unwrap_or_default();
            object.insert(key.clone(), merged(before, value));
        }
    }
    Value::Object(object)
}
