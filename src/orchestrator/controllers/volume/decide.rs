//! What a claim or a volume needs next: pure.

use super::super::write::Write;
use super::{PROVISIONER, ROOT};
use crate::blueprint::quantity;
use crate::orchestrator::client::Object;
use crate::orchestrator::client::selector::label_selector_matches;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The next step for a claim or a volume; its effect is seen before the one after it is decided.
#[derive(Debug, PartialEq)]
pub enum Next {
    Nothing,
    Write(Vec<Write>),
    /// Why it cannot go on, as an event: (reason, message, is a warning).
    Wait(&'static str, String, bool),
    /// The folder goes, then the volume.
    Remove,
}

pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default()
}

pub fn decide_claim(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], class: Option<&StorageClass>) -> Next {
    if claim.deleting() {
        return Next::Nothing;
    }
    let chosen = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    if let Some(name) = chosen {
        return match volumes.iter().find(|volume| volume.name() == name) {
            None if claim.annotation(BIND_COMPLETED).is_some() => lost(claim),
            None => Next::Nothing,
            Some(volume) if belongs(volume, claim) || claim_ref(volume).is_none() => bind(claim, volume),
            Some(_) if claim.annotation(BIND_COMPLETED).is_some() => lost(claim),
            Some(volume) => Next::Wait("FailedBinding", format!("volume \"{}\" already bound to a different claim.", volume.name()), true),
        };
    }
    if let Some(volume) = volumes.iter().find(|volume| belongs(volume, claim)) {
        return bind(claim, volume);
    }
    let late = class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    if late && claim.annotation(SELECTED_NODE).is_none() {
        return Next::Wait("WaitForFirstConsumer", "waiting for first consumer to be created before binding".into(), false);
    }
    if let Some(volume) = best(claim, volumes) {
        return bind(claim, volume);
    }
    match class {
        Some(class) if class.provisioner == PROVISIONER => provision(claim, class),
        Some(class) if class.provisioner == "kubernetes.io/no-provisioner" => {
            Next::Wait("FailedBinding", "no persistent volumes available for this claim and no storage class is set".into(), false)
        }
        Some(class) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator.",
                class.provisioner
            );
            Next::Wait("ExternalProvisioning", message, false)
        }
        None if class_of(claim).is_empty() => {
            Next::Wait("FailedBinding", "no persistent volumes available for this claim and no storage class is set".into(), false)
        }
        None => Next::Wait("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{}\" not found", class_of(claim)), true),
    }
}

pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Bound to this claim, or reserved for one of its name.
fn belongs(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|held| {
        let named = held.namespace.as_deref() == Some(claim.namespace()) && held.name.as_deref() == Some(claim.name());
        named && held.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
    })
}

/// The smallest free volume that satisfies the claim.
fn best<'a>(claim: &PersistentVolumeClaim, volumes: &'a [Arc<PersistentVolume>]) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let asked = requested(claim)?;
    let fits = |volume: &PersistentVolume| {
        let held = volume.spec.as_ref()?;
        let capacity = quantity::bytes(&held.capacity.as_ref()?.get("storage")?.0).ok()?;
        let modes = spec.access_modes.iter().flatten().all(|mode| held.access_modes.iter().flatten().any(|other| other == mode));
        let kind = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
        let selected = spec.selector.as_ref().is_none_or(|selector| label_selector_matches(selector, volume.metadata.labels.as_ref()));
        let free = held.claim_ref.is_none() && !volume.deleting();
        let class = held.storage_class_name.as_deref().unwrap_or_default() == class_of(claim);
        (free && class && modes && selected && kind(&held.volume_mode) == kind(&spec.volume_mode) && capacity >= asked).then_some(capacity)
    };
    volumes
        .iter()
        .filter_map(|volume| Some((fits(volume)?, volume)))
        .min_by_key(|(size, volume)| (*size, volume.name().to_string()))
        .map(|(_, volume)| volume)
}

fn requested(claim: &PersistentVolumeClaim) -> Option<i64> {
    quantity::bytes(&claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0).ok()
}

fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid()})
}

/// Both ends point at each other, then both say Bound.
fn bind(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Next {
    if claim_ref(volume).and_then(|held| held.uid.as_deref()) != Some(claim.uid()) {
        let mut body = json!({"spec": {"claimRef": reference(claim)}});
        if claim_ref(volume).is_none() {
            body["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
        }
        return Next::Write(vec![Write::merge_at::<PersistentVolume>(volume, "", body)]);
    }
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_name.as_deref()) != Some(volume.name()) || claim.annotation(BIND_COMPLETED).is_none() {
        let body = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes"}}, "spec": {"volumeName": volume.name()}});
        return Next::Write(vec![Write::merge_at::<PersistentVolumeClaim>(claim, "", body)]);
    }
    let held = volume.spec.clone().unwrap_or_default();
    let status = json!({"phase": "Bound", "accessModes": held.access_modes, "capacity": held.capacity});
    let mut now = json!(claim.status);
    if let Some(fields) = now.as_object_mut() {
        fields.retain(|name, _| ["phase", "accessModes", "capacity"].contains(&name.as_str()));
    }
    if now == status {
        return Next::Nothing;
    }
    Next::Write(vec![Write::merge_at::<PersistentVolumeClaim>(claim, "status", json!({"status": status}))])
}

fn lost(claim: &PersistentVolumeClaim) -> Next {
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        return Next::Nothing;
    }
    Next::Write(vec![Write::merge_at::<PersistentVolumeClaim>(claim, "status", json!({"status": {"phase": "Lost"}}))])
}

fn provision(claim: &PersistentVolumeClaim, class: &StorageClass) -> Next {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Next::Wait("ProvisioningFailed", "a shared filesystem has no block volumes".into(), true);
    }
    let name = format!("pvc-{}", claim.uid());
    let body = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec.resources.and_then(|resources| resources.requests?.get("storage").cloned())},
            "accessModes": spec.access_modes, "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name(), "mountOptions": class.mount_options,
            "claimRef": reference(claim),
            "hostPath": {"path": format!("{ROOT}/{}/{name}", class.name()), "type": "DirectoryOrCreate"},
        },
    });
    let body = without_nulls(body);
    Next::Write(vec![Write::create::<PersistentVolume>("", body)])
}

fn without_nulls(mut body: Value) -> Value {
    if let Some(spec) = body["spec"].as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
    body
}

/// `claim` is the live claim of the volume's reference (by uid), `in_use` whether a pod still has it.
pub fn decide_volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, in_use: bool) -> Next {
    if volume.deleting() {
        return Next::Nothing;
    }
    let reserved = claim_ref(volume).is_none_or(|held| held.uid.as_deref().unwrap_or_default().is_empty());
    let (phase, policy) = match (reserved, claim) {
        (true, _) => ("Available", ""),
        (_, Some(_)) => ("Bound", ""),
        _ => ("Released", volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")),
    };
    if volume.status.as_ref().and_then(|status| status.phase.as_deref()) != Some(phase) {
        return Next::Write(vec![Write::merge_at::<PersistentVolume>(volume, "status", json!({"status": {"phase": phase}}))]);
    }
    // A pod that is still ending writes to it.
    if policy == "Delete" && !in_use && volume.annotation(PROVISIONED_BY) == Some(PROVISIONER) { Next::Remove } else { Next::Nothing }
}

/// The folder of a volume that we made; nothing for any other, whatever path it states.
pub fn folder(volume: &PersistentVolume) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let (class, name) = (spec.storage_class_name.as_deref()?, volume.name());
    let plain = |part: &str| !part.is_empty() && !part.contains('/') && !part.starts_with('.');
    let ours = plain(class) && plain(name) && name.starts_with("pvc-") && volume.annotation(PROVISIONED_BY) == Some(PROVISIONER);
    let path = format!("{ROOT}/{class}/{name}");
    (ours && spec.host_path.as_ref()?.path == path).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut object = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "c1", "resourceVersion": "7"},
            "spec": {"storageClassName": "media", "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        json_patch::merge(&mut object, &more);
        serde_json::from_value(object).unwrap()
    }

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut object = json!({
            "metadata": {"name": name, "resourceVersion": "3"},
            "spec": {"storageClassName": "media", "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "capacity": {"storage": size}, "hostPath": {"path": "/x"}},
        });
        json_patch::merge(&mut object, &more);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn class(mode: &str) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "media"}, "provisioner": PROVISIONER, "volumeBindingMode": mode})).unwrap()
    }

    fn body(next: Next) -> Value {
        match next {
            Next::Write(writes) => match &writes[..] {
                [Write::Create { body, .. } | Write::Patch { body, .. }] => body.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_claim_without_a_volume_gets_a_folder_on_its_filesystem() {
        let made = body(decide_claim(&claim(json!({})), &[], Some(&class("Immediate"))));
        assert_eq!(made["metadata"]["name"], "pvc-c1");
        assert_eq!(made["spec"]["hostPath"]["path"], "/var/lib/kprov/filesystems/media/pvc-c1");
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
        assert_eq!(made["spec"]["claimRef"]["uid"], "c1");
        let made: PersistentVolume = serde_json::from_value(made).unwrap();
        assert_eq!(folder(&made), Some(PathBuf::from("/var/lib/kprov/filesystems/media/pvc-c1")));
    }

    #[test]
    fn no_folder_but_our_own_is_ever_removed() {
        let check = |name: &str, class: &str, path: &str| {
            let more = json!({"metadata": {"annotations": {PROVISIONED_BY: PROVISIONER}}, "spec": {"storageClassName": class, "hostPath": {"path": path}}});
            assert_eq!(folder(&volume(name, "1Gi", more)), None, "{name} {class} {path}");
        };
        check("pvc-1", "media", "/etc");
        check("pvc-1", "..", "/var/lib/kprov/filesystems/../pvc-1");
        check("pvc-1", "a/../..", "/var/lib/kprov/filesystems/a/../../pvc-1");
        check("mine", "media", "/var/lib/kprov/filesystems/media/mine");
    }

    #[test]
    fn a_late_binding_claim_waits_for_its_first_pod() {
        let late = class("WaitForFirstConsumer");
        assert!(matches!(decide_claim(&claim(json!({})), &[], Some(&late)), Next::Wait("WaitForFirstConsumer", ..)));
        let chosen = claim(json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}}));
        assert_eq!(body(decide_claim(&chosen, &[], Some(&late)))["kind"], "PersistentVolume");
    }

    #[test]
    fn the_smallest_fitting_volume_is_taken() {
        let check = |volumes: &[Arc<PersistentVolume>], expected: Option<&str>| {
            assert_eq!(best(&claim(json!({})), volumes).map(|volume| volume.name().to_string()).as_deref(), expected);
        };
        check(&[volume("big", "5Gi", json!({})), volume("fit", "1Gi", json!({})), volume("small", "500Mi", json!({}))], Some("fit"));
        check(&[volume("other", "1Gi", json!({"spec": {"storageClassName": "x"}}))], None);
        check(&[volume("once", "1Gi", json!({"spec": {"accessModes": ["ReadWriteOnce"]}}))], None);
        check(&[volume("taken", "1Gi", json!({"spec": {"claimRef": {"namespace": "shop", "name": "z", "uid": "z"}}}))], None);
    }

    #[test]
    fn both_ends_are_tied_before_either_says_bound() {
        let free = volume("v", "1Gi", json!({}));
        let step = body(decide_claim(&claim(json!({})), &[free], None));
        assert_eq!((&step["spec"]["claimRef"]["uid"], &step["metadata"]["resourceVersion"]), (&json!("c1"), &json!("3")));
        let tied = volume("v", "1Gi", json!({"spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": "c1"}}}));
        let step = body(decide_claim(&claim(json!({})), std::slice::from_ref(&tied), None));
        assert_eq!(step["spec"]["volumeName"], "v");
        let named = claim(json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "v"}}));
        let step = body(decide_claim(&named, std::slice::from_ref(&tied), None));
        assert_eq!(step["status"]["phase"], "Bound");
        let mut done = json!(named);
        json_patch::merge(&mut done, &json!({"status": step["status"]}));
        assert_eq!(decide_claim(&serde_json::from_value(done).unwrap(), &[tied], None), Next::Nothing);
    }

    #[test]
    fn a_released_volume_goes_only_by_its_policy_and_when_no_pod_has_it() {
        let released = |policy: &str| {
            let reference = json!({"namespace": "shop", "name": "data", "uid": "c1"});
            let more = json!({"metadata": {"annotations": {PROVISIONED_BY: PROVISIONER}}, "spec": {"persistentVolumeReclaimPolicy": policy, "claimRef": reference}, "status": {"phase": "Released"}});
            volume("v", "1Gi", more)
        };
        assert_eq!(decide_volume(&released("Delete"), None, false), Next::Remove);
        assert_eq!(decide_volume(&released("Delete"), None, true), Next::Nothing);
        assert_eq!(decide_volume(&released("Retain"), None, false), Next::Nothing);
        assert_eq!(body(decide_volume(&released("Delete"), Some(&claim(json!({}))), false))["status"]["phase"], "Bound");
        assert_eq!(body(decide_volume(&volume("v", "1Gi", json!({})), None, false))["status"]["phase"], "Available");
    }
}
