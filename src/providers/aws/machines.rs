//! What an instance and its console say. Pure.

use super::look::Tags;
use crate::engine::Phase;
use aws_sdk_ec2::types::Instance;
use base64::Engine;
use serde_json::{Value, json};

/// What cannot be read back from the instance itself.
pub const ROLE_TAG: &str = "kprov-role";
pub const GROUP_TAG: &str = "kprov-group";
pub const USER_TAG: &str = "kprov-user";
pub const DISK: &str = "kprov-disk-bytes";
/// As the console once said it: consoles forget. Public, and only those who may change the instance's tags could change it.
pub const HOST_KEY: &str = "kprov-host-key";

const BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const END: &str = "-----END SSH HOST KEY KEYS-----";

pub fn read(instance: &Instance, tags: &Tags) -> (Phase, Value, Value) {
    let state = instance.state().and_then(|state| state.name()).map(|name| name.as_str()).unwrap_or_default();
    let address = instance.public_ip_address().or(instance.private_ip_address());
    let phase = match state {
        "running" if address.is_some() => Phase::Ready,
        "shutting-down" | "terminated" => Phase::Deleting,
        "stopped" | "stopping" => Phase::Broken("it is stopped".into()),
        _ => Phase::Pending,
    };
    let mut spec = json!({"instanceType": instance.instance_type().map(|kind| kind.as_str())});
    for (tag, field) in [(ROLE_TAG, "role"), (GROUP_TAG, "group")] {
        if let Some(value) = tags.get(tag) {
            spec[field] = json!(value);
        }
    }
    if let Some(disk) = tags.get(DISK).and_then(|disk| disk.parse::<u64>().ok()) {
        spec["diskBytes"] = json!(disk);
    }
    let outputs = json!({
        "address": address, "privateAddress": instance.private_ip_address(), "sshPort": 22, "sshUser": tags.get(USER_TAG),
        "zone": instance.placement().and_then(|placement| placement.availability_zone()),
    });
    (phase, spec, outputs)
}

/// What cloud-init prints of the machine's own keys; the console's text comes in base64, with whatever bytes firmware and kernels wrote
/// between. The last boot counts.
pub fn host_keys(console: &str) -> Vec<String> {
    let packed: String = console.split_whitespace().collect();
    let decoded = base64::engine::general_purpose::STANDARD.decode(packed).ok();
    let text = decoded.as_deref().map_or(console.into(), String::from_utf8_lossy);
    let Some((_, rest)) = text.rsplit_once(BEGIN) else { return Vec::new() };
    let Some((block, _)) = rest.split_once(END) else { return Vec::new() };
    block.lines().filter_map(key).collect()
}

/// Kind and key without the comment; consoles put times and names in front.
fn key(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("ssh-") && !word.starts_with("ecdsa-"));
    Some(format!("{} {}", words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::{InstanceState, InstanceStateName, InstanceType};

    #[test]
    fn host_keys_are_taken_from_the_last_boots_block() {
        let text = format!(
            "{BEGIN}\nssh-ed25519 OLD root@a\n{END}\nci-info: x\n{BEGIN}\n[  9.1] cloud-init[600]: ssh-ed25519 AAAA root@ip\necdsa-sha2-nistp256 BBBB root@ip\n{END}\n"
        );
        assert_eq!(host_keys(&text), ["ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 BBBB"]);
        let packed = base64::engine::general_purpose::STANDARD.encode(&text);
        assert_eq!(host_keys(&packed), host_keys(&text));
        let dirty = [b"\x1b[2J\xff\xfe\xc3", text.as_bytes(), b"\x80\n"].concat();
        assert_eq!(host_keys(&base64::engine::general_purpose::STANDARD.encode(dirty)), host_keys(&text));
        assert!(host_keys("").is_empty() && host_keys(&format!("{BEGIN}\nssh-ed25519 HALF")).is_empty());
    }

    #[test]
    fn an_instance_says_its_phase_and_the_tags_the_rest() {
        let state = |name| InstanceState::builder().name(name).build();
        let instance = |name| {
            Instance::builder()
                .state(state(name))
                .instance_type(InstanceType::T3Small)
                .public_ip_address("192.0.2.7")
                .private_ip_address("10.42.0.4")
                .build()
        };
        let tags = Tags::from([(ROLE_TAG.into(), "worker".into()), (USER_TAG.into(), "ubuntu".into()), (DISK.into(), "9".into())]);
        let (phase, spec, outputs) = read(&instance(InstanceStateName::Running), &tags);
        assert_eq!(phase, Phase::Ready);
        assert_eq!(spec, json!({"instanceType": "t3.small", "role": "worker", "diskBytes": 9}));
        assert_eq!((&outputs["address"], &outputs["privateAddress"]), (&json!("192.0.2.7"), &json!("10.42.0.4")));
        assert_eq!(outputs["sshUser"], "ubuntu");
        assert_eq!(read(&instance(InstanceStateName::ShuttingDown), &tags).0, Phase::Deleting);
        assert_eq!(read(&instance(InstanceStateName::Pending), &tags).0, Phase::Pending);
    }
}
