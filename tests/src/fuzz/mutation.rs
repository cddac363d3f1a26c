//! Makes JSON documents that are almost valid.

use arbitrary::{Result, Unstructured};
use serde_json::Value;

/// Replaces up to three values in `json`.
pub(super) fn vandalize(bytes: &mut Unstructured<'_>, json: &mut Value) -> Result<()> {
    for _ in 0..bytes.int_in_range(1..=3)? {
        let mut all = Vec::new();
        places(json, "", &mut all);
        let place = bytes.choose(&all)?;
        let other = json.pointer(bytes.choose(&all)?).cloned().unwrap_or_default();
        let Some(here) = json.pointer_mut(place) else { continue };
        match bytes.int_in_range(0..=5)? {
            0 => *here = other,
            1 => *here = Value::from(bytes.arbitrary::<u64>()?),
            2 => *here = Value::from(1_u64.checked_shl(bytes.arbitrary::<u8>()?.into()).unwrap_or(u64::MAX)),
            3 => *here = Value::from(bytes.arbitrary::<&str>()?),
            4 => {
                if let Value::Array(items) = here {
                    items.push(other);
                } else if let Value::Object(fields) = here {
                    fields.insert("later".to_owned(), other);
                }
            }
            _ => *here = Value::Null,
        }
    }
    Ok(())
}

/// Collects the paths of all values inside a JSON value, in an order in which outer values precede the values inside
/// them.
fn places(value: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    if let Value::Object(fields) = value {
        for (name, inner) in fields {
            places(inner, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), into);
        }
    } else if let Value::Array(items) = value {
        for (index, inner) in items.iter().enumerate().take(8) {
            places(inner, &format!("{path}/{index}"), into);
        }
    }
}
