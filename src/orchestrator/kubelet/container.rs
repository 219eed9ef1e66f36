//! What the runtime is told of one container: image, command, environment, mounts, security, resources; pure.

use super::cri::messages::*;
use super::environment::expand_all;
use super::observed::*;
use super::{resources, sandbox};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};

/// Where containers leave their last words unless they say otherwise.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// Everything that is not in the pod.
pub struct Inputs<'a> {
    pub attempt: u32,
    pub variables: Vec<KeyValue>,
    pub mounts: Vec<Mount>,
    /// The image's reference on this node.
    pub image: &'a Image,
    pub memory_capacity_bytes: i64,
}

/// The file that receives a container's output, below the pod's log folder.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The error is the message of `CreateContainerConfigError`.
pub fn config(pod: &Pod, spec: &ContainerSpec, inputs: Inputs) -> Result<ContainerConfig, String> {
    let security = security(pod, spec, inputs.image)?;
    let mut labels = sandbox::labels(pod);
    labels.insert(LABEL_CONTAINER_NAME.into(), spec.name.clone());
    let policy = spec.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: inputs.attempt }),
        image: Some(ImageSpec { image: inputs.image.id.clone() }),
        command: expand_all(spec.command.as_ref(), &inputs.variables),
        args: expand_all(spec.args.as_ref(), &inputs.variables),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: inputs.variables,
        mounts: inputs.mounts,
        labels,
        annotations: [(ANNOTATION_HASH.to_owned(), hash(spec)), (ANNOTATION_TERMINATION_POLICY.to_owned(), policy)].into(),
        log_path: log_path(&spec.name, inputs.attempt),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::linux(pod, spec, inputs.memory_capacity_bytes)),
            security_context: Some(security),
        }),
    })
}

fn security(pod: &Pod, spec: &ContainerSpec, image: &Image) -> Result<LinuxContainerSecurityContext, String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = spec.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false) {
        check_not_root(user, image)?;
    }
    // The runtime refuses a group without a user, so the image's user is named then.
    let user = user.or_else(|| group.map(|_| image.uid.as_ref().map_or(0, |uid| uid.value)));
    let capabilities = own.capabilities.unwrap_or_default();
    let value = |value| Int64Value { value };
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(sandbox::namespaces(pod)),
        run_as_user: user.map(value),
        run_as_group: group.map(value),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: sandbox::groups(&of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp: Some(match privileged {
            true => SecurityProfile { profile_type: 1, localhost_ref: String::new() },
            false => sandbox::seccomp(own.seccomp_profile.as_ref(), of_pod.seccomp_profile.as_ref()),
        }),
        ..Default::default()
    })
}

fn check_not_root(user: Option<i64>, image: &Image) -> Result<(), String> {
    match (user, &image.uid) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".into()),
        (Some(_), _) => Ok(()),
        (None, Some(uid)) if uid.value != 0 => Ok(()),
        (None, None) if !image.username.is_empty() => {
            Err(format!("container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root", image.username))
        }
        (None, _) => Err("container has runAsNonRoot and image will run as root".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn built(security: serde_json::Value, image: Image) -> Result<LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"securityContext": {"fsGroup": 7, "runAsGroup": 3}, "containers": [{"name": "a", "securityContext": security}]}
        }))
        .unwrap();
        super::security(&pod, &containers(&pod)[0], &image)
    }

    #[test]
    fn a_root_image_breaks_the_non_root_rule() {
        let check = |security, image, wanted: Option<&str>| assert_eq!(built(security, image).err().as_deref(), wanted);
        let root = Image { uid: Some(Int64Value { value: 0 }), ..Default::default() };
        let app = Image { uid: Some(Int64Value { value: 1000 }), ..Default::default() };
        check(json!({"runAsNonRoot": true}), root.clone(), Some("container has runAsNonRoot and image will run as root"));
        check(json!({"runAsNonRoot": true}), app, None);
        check(json!({"runAsNonRoot": true, "runAsUser": 5}), root.clone(), None);
        check(json!({}), root, None);
    }

    #[test]
    fn privilege_switches_confinement_off() {
        let plain = built(json!({"allowPrivilegeEscalation": false}), Image::default()).unwrap();
        assert!(plain.no_new_privs && plain.seccomp.unwrap().profile_type == 0);
        assert_eq!((plain.supplemental_groups, plain.run_as_group.map(|group| group.value)), (vec![7], Some(3)));
        let privileged = built(json!({"privileged": true}), Image::default()).unwrap();
        assert_eq!(privileged.seccomp.unwrap().profile_type, 1);
    }
}
