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
    /// OpenSSH public keys, `ssh-ed25519 AAAA...`, from the provider's own channel. Never empty where the cluster's key logs in: nothing
    /// is trusted on first use.
    pub host_keys: Vec<String>,
    /// From outside, where the machine's network has one door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<Jump>,
    /// Who lets in before the cluster's key does. Never leaves this process.
    #[serde(skip)]
    pub login: Option<Login>,
}

/// A host on the way. It is the operator's: their identity logs in there, their known hosts judge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Jump {
    pub address: String,
    #[serde(default = "default_port")]
    pub port: u16,
    pub user: String,
    /// Else the operator's known hosts judge it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Further lines of its block: identities and known hosts of the operator's own ssh.
    #[serde(default)]
    pub lines: Vec<String>,
}

/// The operator's own way into a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// Further lines of the machine's block: identities and known hosts of the operator's own ssh.
    pub lines: Vec<String>,
    /// What its host key must have, when the key itself is not known.
    pub fingerprint: Option<String>,
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
        target.jump = target.jump.filter(|_| side == Side::Outside);
        match target.fault() {
            Some(fault) => Err(failed(fault)),
            None => Ok(target),
        }
    }

    pub fn fault(&self) -> Option<String> {
        let made_of = |text: &str, extra: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.chars().all(|letter| letter.is_ascii_alphanumeric() || extra.contains(letter))
        };
        if !made_of(&self.machine, "-.") {
            return Some(format!("{:?} is not a machine's name", self.machine));
        }
        if !made_of(&self.address, "-._:") {
            return Some(format!("{:?} is not an address", self.address));
        }
        if !made_of(&self.ssh_user, "-_.") {
            return Some(format!("{:?} is not a user's name", self.ssh_user));
        }
        if self.host_keys.is_empty() && self.login.is_none() {
            return Some("its host key is not known".into());
        }
        let of_jump = self.jump.iter().flat_map(|jump| jump.lines.iter().chain(&jump.host_key).chain([&jump.address, &jump.user]));
        if let Some(line) = of_jump.chain(self.login.iter().flat_map(|login| &login.lines)).find(|line| line.chars().any(char::is_control))
        {
            return Some(format!("{line:?} is not a line for ssh"));
        }
        if let Some(jump) = self.jump.as_ref().filter(|jump| !made_of(&jump.address, "-._:") || !made_of(&jump.user, "-_.")) {
            return Some(format!("{}@{} is not a host to go through", jump.user, jump.address));
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
    let mut jumps = BTreeMap::new();
    for target in targets {
        let Target { machine, address, ssh_port, ssh_user, .. } = target;
        text += &format!("Host {machine}\n  HostName {address}\n  Port {ssh_port}\n  User {ssh_user}\n");
        // The alias makes known_hosts speak of machines: another machine at a re-used address is not mistaken for this one.
        if !target.host_keys.is_empty() {
            text += &format!("  HostKeyAlias {machine}\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n");
        }
        if let Some(Login { lines, fingerprint }) = &target.login {
            text += &lines.iter().map(|line| format!("  {line}\n")).collect::<String>();
            if let Some(fingerprint) = fingerprint {
                text +=
                    &format!("  UserKnownHostsFile /dev/null\n  KnownHostsCommand {folder}/{BY_FINGERPRINT} {fingerprint} %f %H %t %K\n");
            }
        }
        if let Some(jump) = &target.jump {
            text += &format!("  ProxyJump {}\n", jump.alias());
            jumps.insert(jump.alias(), jump);
        }
    }
    for (alias, Jump { address, port, user, lines, host_key }) in jumps {
        // One connection for all behind it: a default sshd drops a crowd of handshakes.
        text += &format!("Host {alias}\n  HostName {address}\n  Port {port}\n  User {user}\n");
        text += &format!("  ControlMaster auto\n  ControlPath {folder}/{alias}\n  ControlPersist 60\n");
        if host_key.is_some() {
            text += &format!("  HostKeyAlias {alias}\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n");
        }
        text += &lines.iter().map(|line| format!("  {line}\n")).collect::<String>();
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

/// A program for ssh's KnownHostsCommand: offers the key that was shown, if its fingerprint is the one that was told.
pub const BY_FINGERPRINT: &str = "by-fingerprint";
pub const BY_FINGERPRINT_PROGRAM: &str = "#!/bin/sh\n[ \"$1\" = \"$2\" ] && printf '%s %s %s\\n' \"$3\" \"$4\" \"$5\"\nexit 0\n";

impl Jump {
    pub fn alias(&self) -> String {
        let whole = format!("{}@{}:{} {:?}", self.user, self.address, self.port, self.lines);
        format!("kprov-jump-{}", &crate::sys::executable::sha256(whole.as_bytes())[..8])
    }
}

/// For one handshake, not for waiting until a machine has booted: that is a loop around it.
pub const CONNECT_SECONDS: u32 = 10;

pub fn known_hosts<'a>(targets: impl IntoIterator<Item = &'a Target>) -> String {
    let lines = targets.into_iter().flat_map(|target| {
        // A comment after the key is the provider's; kind and key are what counts.
        let line = |name: &str, key: &str| format!("{name} {}\n", key.split(' ').take(2).collect::<Vec<_>>().join(" "));
        let of_jump = target.jump.iter().filter_map(|jump| Some((jump.alias(), jump.host_key.as_ref()?)));
        let of_jump: Vec<String> = of_jump.map(|(alias, key)| line(&alias, key)).collect();
        target.host_keys.iter().map(|key| line(&target.machine, key)).chain(of_jump).collect::<Vec<_>>()
    });
    let lines: std::collections::BTreeSet<String> = lines.collect();
    lines.into_iter().collect()
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
        assert!(config.starts_with("Host worker-1\n  HostName 10.0.0.5\n  Port 22\n  User root\n  HostKeyAlias worker-1\n"));
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
