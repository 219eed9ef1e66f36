//! What `ssh` is told: configuration and known hosts of one cluster, from what the provider says about its machines. Pure.

use crate::engine::Observed;
use crate::error::{Context as _, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// From where a machine is reached: the operator's host, or the cluster's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Outside,
    Inside,
}

impl Side {
    fn address(self, machine: &Observed) -> &str {
        let output = |name: &str| machine.outputs[name].as_str();
        let address = match self {
            Side::Outside => output("address"),
            Side::Inside => output("privateAddress").or_else(|| output("address")),
        };
        address.unwrap_or_default()
    }
}

/// The machine's address as that side reaches it.
pub fn address(machine: &Observed, side: Side) -> Result<IpAddr> {
    let text = side.address(machine);
    text.parse().or_fail(Kind::Provider, || format!("could not read the address of {}: {text:?}", machine.id))
}

/// How to reach one machine, and how to know that it is the one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    #[serde(default)]
    pub machine: String,
    pub address: String,
    #[serde(default = "default_port")]
    pub ssh_port: u16,
    #[serde(default = "default_user")]
    pub ssh_user: String,
    /// OpenSSH public keys, `ssh-ed25519 AAAA...`, from the provider's own channel. Never empty: nothing is trusted on first use.
    pub host_keys: Vec<String>,
}

fn default_port() -> u16 {
    22
}
fn default_user() -> String {
    "root".into()
}

impl Target {
    /// From the outputs that every provider gives for a machine. Each value ends up in a file that ssh reads, so each is checked.
    pub fn of(machine: &Observed, side: Side) -> Result<Target> {
        let name = &machine.id.name;
        let failed = |why: String| Error::provider(format!("could not find out how to reach machine {name}: {why}"));
        let mut target: Target = serde_json::from_value(machine.outputs.clone()).map_err(|error| failed(error.to_string()))?;
        target.machine = name.clone();
        target.address = side.address(machine).into();
        match target.fault() {
            Some(fault) => Err(failed(fault)),
            None => Ok(target),
        }
    }

    fn fault(&self) -> Option<String> {
        let made_of = |text: &str, extra: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || extra.contains(letter))
        };
        if !made_of(&self.machine, "-.") {
            return Some(format!("{:?} is not a machine's name", self.machine));
        }
        if !made_of(&self.address, "-.:") {
            return Some(format!("{:?} is not an address", self.address));
        }
        if !made_of(&self.ssh_user, "-_.") {
            return Some(format!("{:?} is not a user's name", self.ssh_user));
        }
        if self.host_keys.is_empty() {
            return Some("its host key is not known".into());
        }
        let whole = |key: &String| {
            let mut words = key.split(' ');
            let kind = words.next().is_some_and(|word| made_of(word, "-@."));
            kind && words.next().is_some_and(|word| made_of(word, "+/=")) && !key.chars().any(char::is_control)
        };
        self.host_keys.iter().find(|key| !whole(key)).map(|key| format!("{key:?} is not a host key"))
    }
}

/// Strict from the first packet: only these keys, only our identity, nothing of the user's or the system's configuration. AES comes
/// first because processors do it in hardware: the upload costs half the CPU of OpenSSH's own first choice.
pub fn ssh_config<'a>(folder: &Path, targets: impl IntoIterator<Item = &'a Target>) -> String {
    let folder = folder.display();
    let mut text = String::new();
    for Target { machine, address, ssh_port, ssh_user, .. } in targets {
        // The alias makes known_hosts speak of machines: another machine at a re-used address is not mistaken for this one.
        text += &format!("Host {machine}\n  HostName {address}\n  Port {ssh_port}\n  User {ssh_user}\n  HostKeyAlias {machine}\n");
    }
    text + &format!(
        "Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  CheckHostIP no
  VerifyHostKeyDNS no
  BatchMode yes
  Ciphers ^aes128-gcm@openssh.com
  PreferredAuthentications publickey
  ClearAllForwardings yes
  ForwardAgent no
  PermitLocalCommand no
  ConnectTimeout {CONNECT_SECONDS}
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel ERROR
"
    )
}

/// For one handshake, not for waiting until a machine has booted: that is a loop around it.
pub const CONNECT_SECONDS: u32 = 10;

pub fn known_hosts<'a>(targets: impl IntoIterator<Item = &'a Target>) -> String {
    let lines = targets.into_iter().flat_map(|target| {
        // A comment after the key is the provider's; kind and key are what counts.
        let line = |key: &String| format!("{} {}\n", target.machine, key.split(' ').take(2).collect::<Vec<_>>().join(" "));
        target.host_keys.iter().map(line)
    });
    lines.collect()
}

/// By machine name.
pub type Targets = BTreeMap<String, Target>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Id, Phase};
    use serde_json::{Value, json};

    fn observed(name: &str, outputs: Value) -> Observed {
        Observed {
            id: Id::new("machine", name),
            handle: "h".into(),
            generation: 1,
            phase: Phase::Ready,
            spec: Value::Null,
            outputs,
            needs: Vec::new(),
        }
    }

    #[test]
    fn machines_are_known_by_name_so_a_reused_address_confuses_nobody() {
        let target = |name: &str, key: &str| {
            Target::of(&observed(name, json!({"address": "10.0.0.5", "hostKeys": [format!("ssh-ed25519 {key} root@x")]})), Side::Outside)
                .unwrap()
        };
        let (old, new) = (target("worker-1", "AAAAold"), target("worker-2", "AAAAnew"));
        assert_eq!(known_hosts([&old, &new]), "worker-1 ssh-ed25519 AAAAold\nworker-2 ssh-ed25519 AAAAnew\n");
        let config = ssh_config(Path::new("/run/k"), [&old]);
        assert!(config.starts_with("Host worker-1\n  HostName 10.0.0.5\n  Port 22\n  User root\n  HostKeyAlias worker-1\nHost *\n"));
        assert!(config.contains("StrictHostKeyChecking yes"));
    }

    #[test]
    fn a_machine_without_a_host_key_is_not_connected_to() {
        let error = Target::of(&observed("worker-1", json!({"address": "10.0.0.5", "hostKeys": []})), Side::Outside).unwrap_err();
        assert!(error.to_string().ends_with("its host key is not known"), "{error}");
        assert!(Target::of(&observed("worker-1", json!({"address": "10.0.0.5"})), Side::Outside).is_err());
    }

    #[test]
    fn no_output_of_a_provider_can_add_a_line_to_sshs_configuration() {
        let good = json!({"address": "10.0.0.5", "sshUser": "root", "hostKeys": ["ssh-ed25519 AAAA"]});
        assert!(Target::of(&observed("worker-1", good.clone()), Side::Outside).is_ok());
        for (field, value) in [
            ("address", json!("10.0.0.5\n  ProxyCommand evil")),
            ("address", json!("-oProxyCommand=evil")),
            ("address", json!("$(evil)")),
            ("address", json!("")),
            ("sshUser", json!("root\nProxyCommand evil")),
            ("hostKeys", json!(["ssh-ed25519 AAAA\nworker-2 ssh-ed25519 BBBB"])),
            ("hostKeys", json!(["ssh-ed25519"])),
        ] {
            let mut outputs = good.clone();
            outputs[field] = value.clone();
            assert!(Target::of(&observed("worker-1", outputs), Side::Outside).is_err(), "{field} {value}");
        }
        assert!(Target::of(&observed("worker 1\n", good), Side::Outside).is_err());
    }
}
