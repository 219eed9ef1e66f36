//! Volumes, claims and storage classes.

use super::common::Problems;
use super::{Case, names, pod};
use crate::blueprint::quantity::Quantity;
use crate::orchestrator::api::kinds::json::{Object, list, text};
use crate::orchestrator::api::status::Cause;
use serde_json::Value;

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(spec: &Value, problems: &mut Problems) {
    let modes = list(spec, "/accessModes");
    if modes.is_empty() {
        problems.required("spec.accessModes", "at least 1 access mode is required");
    }
    for (at, mode) in modes.iter().enumerate() {
        if !mode.as_str().is_some_and(|mode| ACCESS_MODES.contains(&mode)) {
            problems.add(Cause::not_supported(format!("spec.accessModes[{at}]"), mode, ACCESS_MODES));
        }
    }
    problems.one_of(spec, "volumeMode", "spec", &["Block", "Filesystem"]);
    problems.syntax(spec, "storageClassName", "spec", names::dns_subdomain);
}

/// A positive amount of storage must be named.
fn storage(amounts: &Value, path: &str, problems: &mut Problems) {
    match amounts.get("storage") {
        None => problems.required(format!("{path}[storage]"), ""),
        Some(value) if Quantity::from_value(value).is_ok_and(|amount| amount > Quantity::ZERO) => {}
        Some(value) => problems.invalid(format!("{path}[storage]"), value, "must be greater than zero"),
    }
}

/// The fields of a volume's spec that do not name its source.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn sources(spec: &Value) -> Object {
    let all = spec.as_object().into_iter().flatten();
    all.filter(|(name, value)| !NO_SOURCE.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

pub fn volume(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    access_modes(spec, problems);
    storage(&spec["capacity"], "spec.capacity", problems);
    problems.one_of(spec, "persistentVolumeReclaimPolicy", "spec", &["Delete", "Recycle", "Retain"]);
    let given = sources(spec);
    if given.is_empty() {
        problems.required("spec", "must specify a volume type");
    }
    for (at, (kind, source)) in given.iter().enumerate() {
        if at == 0 {
            pod::source_of(kind, source, &format!("spec.{kind}"), problems);
        } else {
            problems.forbidden(format!("spec.{kind}"), "may not specify more than 1 volume type");
        }
    }
    if let Some(old) = case.old {
        if given != sources(&old["spec"]) {
            problems.forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation");
        }
        problems.immutable(spec.get("volumeMode"), old.pointer("/spec/volumeMode"), "spec.volumeMode");
    }
}

pub fn claim(case: &Case, problems: &mut Problems) {
    let spec = &case.new["spec"];
    access_modes(spec, problems);
    storage(&spec["resources"]["requests"], "spec.resources.requests", problems);
    if let Some(selector) = spec.get("selector") {
        problems.label_selector(selector, "spec.selector");
    }
    if let Some(old) = case.old {
        claim_update(spec, old, problems);
    }
}

/// A claim is bound once; then it can only grow.
fn claim_update(spec: &Value, old: &Value, problems: &mut Problems) {
    let bound_now = text(old, "/spec/volumeName").is_empty();
    let fixed = |spec: &Value| {
        let mut fixed = spec.as_object().cloned().unwrap_or_default();
        if bound_now {
            fixed.remove("volumeName");
        }
        // A default class may be filled in later.
        if text(&old["spec"], "/storageClassName").is_empty() && old.pointer("/spec/storageClassName").is_none() {
            fixed.remove("storageClassName");
        }
        for name in ["resources", "volumeAttributesClassName"] {
            fixed.remove(name);
        }
        fixed
    };
    if fixed(spec) != fixed(&old["spec"]) {
        problems
            .forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        return;
    }
    let amount = |spec: &Value| spec.pointer("/resources/requests/storage").and_then(|value| Quantity::from_value(value).ok());
    match (amount(&old["spec"]), amount(spec)) {
        (Some(before), Some(after)) if after < before => {
            problems.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
        }
        (Some(before), Some(after)) if after > before && text(old, "/status/phase") != "Bound" => {
            problems.forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        _ => {}
    }
}

pub fn class(case: &Case, problems: &mut Problems) {
    let class = case.new;
    if text(class, "/provisioner").is_empty() {
        problems.required("provisioner", "");
    } else if let Err(detail) = names::qualified_name(&text(class, "/provisioner").to_lowercase()) {
        problems.invalid("provisioner", &class["provisioner"], &detail);
    }
    for (name, allowed) in [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])] {
        let value = &class[name];
        if !value.is_null() && !value.as_str().is_some_and(|value| allowed.contains(&value)) {
            problems.add(Cause::not_supported(name, value, &allowed));
        }
    }
    let Some(old) = case.old else { return };
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if class.get(name) != old.get(name) {
            problems.forbidden(name, &format!("updates to {name} are forbidden."));
        }
    }
    problems.immutable(class.get("volumeBindingMode"), old.get("volumeBindingMode"), "volumeBindingMode");
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;
    use serde_json::{Value, json};

    fn check(group: &str, kind: &str, new: Value, old: Option<Value>, expected: &[&str]) {
        assert_eq!(problems(group, kind, new, old), expected, "{kind}");
    }

    fn claim() -> Value {
        json!({"spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "media", "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Bound"}})
    }

    #[test]
    fn claims_say_how_much_and_how() {
        check("", "PersistentVolumeClaim", claim(), None, &[]);
        check(
            "",
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            None,
            &["spec.accessModes: Required value: at least 1 access mode is required", "spec.resources.requests[storage]: Required value"],
        );
        let mut bad = claim();
        bad["spec"]["accessModes"] = json!(["RWX"]);
        bad["spec"]["resources"]["requests"]["storage"] = "0".into();
        check(
            "",
            "PersistentVolumeClaim",
            bad,
            None,
            &[
                "spec.accessModes[0]: Unsupported value: \"RWX\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources.requests[storage]: Invalid value: \"0\": must be greater than zero",
            ],
        );
    }

    #[test]
    fn a_claim_is_bound_once_and_then_only_grows() {
        let mut bound = claim();
        bound["spec"]["volumeName"] = "pv".into();
        check("", "PersistentVolumeClaim", bound.clone(), Some(claim()), &[]);
        let immutable =
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let mut moved = bound.clone();
        moved["spec"]["volumeName"] = "other".into();
        check("", "PersistentVolumeClaim", moved, Some(bound.clone()), &[immutable]);
        let mut grown = bound.clone();
        grown["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        check("", "PersistentVolumeClaim", grown.clone(), Some(bound.clone()), &[]);
        check(
            "",
            "PersistentVolumeClaim",
            bound,
            Some(grown),
            &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"],
        );
    }

    #[test]
    fn volumes_have_one_source_that_stays() {
        let volume = json!({"spec": {"accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
        check("", "PersistentVolume", volume.clone(), None, &[]);
        let mut moved = volume.clone();
        moved["spec"]["hostPath"]["path"] = "/y".into();
        check(
            "",
            "PersistentVolume",
            moved,
            Some(volume.clone()),
            &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"],
        );
        let mut none = volume;
        none["spec"].as_object_mut().expect("a map").remove("hostPath");
        check("", "PersistentVolume", none, None, &["spec: Required value: must specify a volume type"]);
    }

    #[test]
    fn classes_do_not_change_what_they_mean() {
        let class = json!({"provisioner": "kprov.dev/filesystem"});
        check("storage.k8s.io", "StorageClass", class.clone(), None, &[]);
        check("storage.k8s.io", "StorageClass", json!({}), None, &["provisioner: Required value"]);
        let changed = json!({"provisioner": "x.y/z", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer", "parameters": {"a": "b"}});
        check(
            "storage.k8s.io",
            "StorageClass",
            changed,
            Some(class),
            &[
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ],
        );
    }
}
