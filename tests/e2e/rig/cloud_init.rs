//! The part of cloud-init that kprov relies on, done before a machine's first boot. What is not here fails, so that nobody relies on it.

use super::machines::{Spec, write};
use serde::Deserialize;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    hostname: Option<String>,
    preserve_hostname: bool,
    manage_etc_hosts: Option<serde_json::Value>,
    ssh_authorized_keys: Vec<String>,
    disable_root: Option<bool>,
    ssh_pwauth: Option<bool>,
    write_files: Vec<WriteFile>,
    bootcmd: Vec<Run>,
    runcmd: Vec<Run>,
    package_update: bool,
    package_upgrade: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteFile {
    path: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    encoding: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Run {
    Shell(String),
    Words(Vec<String>),
}

/// The user with its keys, then what the user data says.
pub fn apply(upper: &Path, spec: &Spec) -> io::Result<()> {
    let mut keys = spec.authorized_keys.clone();
    let data = spec.user_data.trim_start();
    let mut commands = String::new();
    if data.starts_with("#!") {
        commands = data.into();
    } else if data.starts_with("#cloud-config") {
        let config: Config = serde_saphyr::from_str(data).map_err(|error| io::Error::other(format!("user data: {error}")))?;
        assert!(config.package_update as u8 + config.package_upgrade as u8 == 0, "machines of an emulated cloud reach no packages");
        if let Some(hostname) = config.hostname {
            write(&upper.join("etc/hostname"), &format!("{hostname}\n"), 0o644)?;
            write(&upper.join("etc/hosts"), &format!("127.0.0.1 localhost\n{} {hostname}\n", spec.address), 0o644)?;
        }
        keys.extend(config.ssh_authorized_keys);
        config.write_files.iter().try_for_each(|file| file.put(upper))?;
        let lines: Vec<String> = config.bootcmd.iter().chain(&config.runcmd).map(Run::line).collect();
        if !lines.is_empty() {
            commands = format!("#!/bin/sh\n{}\n", lines.join("\n"));
        }
    } else if !data.is_empty() {
        return Err(io::Error::other("user data is neither #cloud-config nor a script"));
    }
    if !commands.is_empty() {
        write(&upper.join("var/lib/cloud/first-boot"), &commands, 0o755)?;
    }
    user(upper, &spec.user, &keys)
}

impl WriteFile {
    fn put(&self, upper: &Path) -> io::Result<()> {
        use base64::Engine;
        assert!(self.owner.as_deref().is_none_or(|owner| owner == "root:root"), "files of other owners are not played here");
        let path = upper.join(self.path.trim_start_matches('/'));
        let mode = self.permissions.as_deref().map_or(Ok(0o644), |text| u32::from_str_radix(text, 8)).map_err(io::Error::other)?;
        let bytes = match self.encoding.as_deref() {
            None | Some("text/plain") => self.content.clone().into_bytes(),
            Some("b64" | "base64") => base64::engine::general_purpose::STANDARD.decode(self.content.trim()).map_err(io::Error::other)?,
            Some(other) => return Err(io::Error::other(format!("encoding {other} is not played here"))),
        };
        write(&path, "", mode)?;
        fs::write(path, bytes)
    }
}

impl Run {
    fn line(&self) -> String {
        match self {
            Run::Shell(line) => line.clone(),
            Run::Words(words) => words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" "),
        }
    }
}

/// As the images of the clouds have it: an ordinary account that may become root without a password.
fn user(upper: &Path, name: &str, keys: &[String]) -> io::Result<()> {
    let keys = keys.iter().map(|key| format!("{}\n", key.trim())).collect::<String>();
    if name == "root" {
        let config = upper.join("etc/ssh/sshd_config");
        fs::write(&config, fs::read_to_string(&config)?.replace("PermitRootLogin no", "PermitRootLogin prohibit-password"))?;
        return write(&upper.join("root/.ssh/authorized_keys"), &keys, 0o600);
    }
    const ID: u32 = 1000;
    let without = |file: &str| -> io::Result<String> {
        let text = fs::read_to_string(file)?;
        let theirs = |line: &&str| !line.starts_with(&format!("{name}:")) && line.split(':').nth(2) != Some("1000");
        Ok(text.lines().filter(theirs).map(|line| format!("{line}\n")).collect())
    };
    write(&upper.join("etc/passwd"), &format!("{}{name}:x:{ID}:{ID}::/home/{name}:/bin/bash\n", without("/etc/passwd")?), 0o644)?;
    write(&upper.join("etc/group"), &format!("{}{name}:x:{ID}:\n", without("/etc/group")?), 0o644)?;
    let shadow = upper.join("etc/shadow");
    write(&shadow, &format!("{}{name}:*:19000:0:99999:7:::\n", fs::read_to_string(&shadow)?), 0o640)?;
    write(&upper.join("etc/sudoers.d/90-cloud-init-users"), &format!("{name} ALL=(ALL) NOPASSWD:ALL\n"), 0o440)?;
    let home = upper.join("home").join(name);
    write(&home.join(".ssh/authorized_keys"), &keys, 0o600)?;
    fs::set_permissions(home.join(".ssh"), fs::Permissions::from_mode(0o700))?;
    for place in [home.clone(), home.join(".ssh"), home.join(".ssh/authorized_keys")] {
        chown(place, Some(ID), Some(ID))?;
    }
    Ok(())
}
