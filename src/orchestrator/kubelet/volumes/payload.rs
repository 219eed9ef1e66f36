//! What files a config map, secret or downward API volume holds; pure.

use super::writer::{File, Payload};
use crate::orchestrator::kubelet::fields::{self, Facts};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use std::collections::BTreeMap;

/// Upstream's default for every kind of file volume.
pub const DEFAULT_MODE: i32 = 0o644;

pub type Bytes = BTreeMap<String, Vec<u8>>;

pub fn of_config_map(map: &ConfigMap) -> Bytes {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

pub fn of_secret(secret: &Secret) -> Bytes {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// All keys, or the listed ones; the error is a clause for the event `FailedMount`.
pub fn choose(data: Bytes, items: Option<&Vec<KeyToPath>>, mode: i32, optional: bool) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.into_iter().map(|(key, bytes)| (key, file(bytes, mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => drop(payload.insert(item.path.clone(), file(bytes.clone(), item.mode.unwrap_or(mode)))),
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(payload)
}

pub fn downward(pod: &Pod, facts: &Facts, items: Option<&Vec<DownwardAPIVolumeFile>>, mode: i32) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => fields::field(pod, facts, &field.field_path)?,
            (None, Some(resource)) => fields::resource(pod, facts, resource, "")?,
            (None, None) => continue,
        };
        payload.insert(item.path.clone(), file(text.into_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(payload)
}

pub fn file(bytes: Vec<u8>, mode: i32) -> File {
    File { bytes, mode: mode as u32 & 0o777, user: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_choose_keys_and_modes() {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}})).unwrap();
        let check = |items: serde_json::Value, optional, wanted: Result<Vec<(&str, usize, u32)>, &str>| {
            let items: Vec<KeyToPath> = serde_json::from_value(items).unwrap();
            let got = choose(of_config_map(&map), Some(&items), 0o400, optional);
            let got = got.map(|payload| payload.into_iter().map(|(path, file)| (path, file.bytes.len(), file.mode)).collect::<Vec<_>>());
            let wanted = wanted.map(|list| list.into_iter().map(|(path, length, mode)| (path.to_owned(), length, mode)).collect());
            assert_eq!(got, wanted.map_err(str::to_owned));
        };
        check(json!([]), false, Ok(vec![("a", 1, 0o400), ("b", 1, 0o400), ("c", 2, 0o400)]));
        check(json!([{"key": "c", "path": "x/y", "mode": 0o644}]), false, Ok(vec![("x/y", 2, 0o644)]));
        check(json!([{"key": "z", "path": "z"}]), false, Err("references non-existent config key: z"));
        check(json!([{"key": "z", "path": "z"}]), true, Ok(vec![]));
    }
}
