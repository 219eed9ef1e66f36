//! Which ReplicaSet carries which template: equality and the `pod-template-hash`.

use serde_json::Value;

pub const HASH_LABEL: &str = "pod-template-hash";

/// Whether two templates are the same but for the hash label.
pub fn same(left: &Value, right: &Value) -> bool {
    without_hash(left.clone()) == without_hash(right.clone())
}

fn without_hash(mut template: Value) -> Value {
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
        if labels.is_empty()
            && let Some(metadata) = template["metadata"].as_object_mut()
        {
            metadata.remove("labels");
        }
    }
    let template_object = template.as_object_mut();
    if let Some(metadata) = template_object.as_ref().and_then(|object| object.get("metadata")).cloned()
        && let Some(object) = template_object
    {
        let mut metadata = metadata;
        // Upstream stores an explicit null here; it says nothing.
        if let Some(fields) = metadata.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        object.insert("metadata".into(), metadata);
    }
    template
}

/// FNV-1a over the template's JSON with sorted keys and the collision count, in an alphabet that spells no words.
pub fn hash(template: &Value, collisions: i32) -> String {
    let mut state: u32 = 0x811c_9dc5;
    let mut mix = |bytes: &[u8]| bytes.iter().for_each(|byte| state = (state ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    canonical(&without_hash(template.clone()), &mut mix);
    if collisions > 0 {
        mix(&collisions.to_le_bytes());
    }
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    state.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect()
}

fn canonical(value: &Value, mix: &mut impl FnMut(&[u8])) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            mix(b"{");
            for (key, value) in fields {
                mix(Value::from(key.as_str()).to_string().as_bytes());
                mix(b":");
                canonical(value, mix);
                mix(b",");
            }
            mix(b"}");
        }
        Value::Array(items) => {
            mix(b"[");
            for item in items {
                canonical(item, mix);
                mix(b",");
            }
            mix(b"]");
        }
        leaf => mix(leaf.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_hash_depends_on_what_is_said_and_not_on_its_order_or_its_own_label() {
        let template: Value = serde_json::from_str(r#"{"metadata":{"labels":{"a":"1","b":"2"}},"spec":{"x":1,"y":[1,2]}}"#).unwrap();
        let turned: Value =
            serde_json::from_str(r#"{"spec":{"y":[1,2],"x":1},"metadata":{"labels":{"b":"2","pod-template-hash":"zz","a":"1"}}}"#).unwrap();
        assert!(same(&template, &turned));
        assert_eq!(hash(&template, 0), hash(&turned, 0));
        assert_ne!(hash(&template, 0), hash(&template, 1));
        let other = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"x": 1, "y": [2, 1]}});
        assert!(!same(&template, &other));
        assert_ne!(hash(&template, 0), hash(&other, 0));
    }

    #[test]
    fn an_absent_creation_time_is_no_difference() {
        assert!(same(&json!({"metadata": {"creationTimestamp": null}, "spec": {}}), &json!({"metadata": {}, "spec": {}})));
    }
}
