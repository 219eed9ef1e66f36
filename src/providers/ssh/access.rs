//! How the operator reaches a host: what the blueprint says of it, completed by their own ssh configuration.

use crate::blueprint::hosts::jump;
use crate::blueprint::providers::SshHost;
use crate::error::{Context as _, Error, Kind, Result};
use crate::remote::{Jump, Login, Target};
use std::net::IpAddr;
use std::process::Stdio;

use super::wish::place;

/// A host to log in to.
#[derive(Debug, Clone)]
pub struct Access {
    pub target: Target,
    /// The address packets go to, when it can be told from here.
    pub address: Option<IpAddr>,
}

/// What `ssh -G` says that a plain `ssh host` would do.
#[derive(Debug, Default, PartialEq)]
struct Usual {
    name: String,
    user: String,
    port: u16,
    jump: Option<String>,
    /// A program that makes the connection.
    proxy: Option<String>,
    /// Lines of ssh's configuration that say who we are and whom we trust.
    identities: Vec<String>,
    trust: Vec<String>,
}

pub async fn access(host: &SshHost) -> Result<Access> {
    let failed = || format!("could not find out how to reach {}", place(host));
    let usual = usual(&host.address, host.user.as_deref().unwrap_or("root"), host.port).await?;
    if let (None, Some(proxy)) = (&host.jump, &usual.proxy) {
        return Err(Error::input(failed())
            .because(format!("your ssh configuration has a ProxyCommand for it ({proxy}), which machines cannot use among themselves"))
            .hint("give the host to go through as `jump`, or use ProxyJump there"));
    }
    let jump = match host.jump.as_ref().or(usual.jump.as_ref()) {
        Some(text) => Some(way(host, text).await?),
        None => None,
    };
    let address = match (usual.name.parse(), &jump) {
        (Ok(address), _) => Some(address),
        (Err(_), Some(_)) => None,
        (Err(_), None) => resolve(&usual.name).await,
    };
    let target = target(host, &usual, jump);
    if let Some(fault) = target.fault() {
        return Err(Error::input(failed()).because(fault));
    }
    Ok(Access { target, address })
}

/// Pure.
fn target(host: &SshHost, usual: &Usual, jump: Option<Jump>) -> Target {
    let host_keys: Vec<String> = host.host_key.iter().cloned().collect();
    let fingerprint = host.fingerprint.clone().filter(|_| host_keys.is_empty());
    let mut lines = identities(host, usual);
    if host_keys.is_empty() && fingerprint.is_none() {
        lines.extend(usual.trust.iter().cloned());
    }
    Target {
        machine: alias(&place(host)),
        address: usual.name.clone(),
        ssh_port: usual.port,
        ssh_user: usual.user.clone(),
        host_keys,
        jump,
        login: Some(Login { lines, fingerprint }),
    }
}

/// The key that the blueprint names, and no other, be it open in an agent only; else whatever ssh would try.
fn identities(host: &SshHost, usual: &Usual) -> Vec<String> {
    match &host.key {
        Some(key) => vec![format!("IdentityFile {key}"), "IdentityAgent SSH_AUTH_SOCK".into()],
        None => usual.identities.clone(),
    }
}

/// What ssh's files call the host while nobody knows which machine it is.
pub fn alias(place: &str) -> String {
    format!("host-{}", &crate::sys::executable::sha256(place.as_bytes())[..12])
}

/// The host to go through is the operator's: the same key, or what their ssh would use there.
async fn way(host: &SshHost, text: &str) -> Result<Jump> {
    let (user, name, port) = jump(text).ok_or_else(|| {
        Error::input(format!("could not reach {}: `{text}` is not a host to go through", place(host))).hint("write user@host:port")
    })?;
    let usual = usual(&name, user.as_deref().unwrap_or(""), Some(port)).await?;
    let lines = identities(host, &usual).into_iter().chain(usual.trust).collect();
    Ok(Jump { address: usual.name, port: usual.port, user: usual.user, host_key: host.jump_host_key.clone(), lines })
}

async fn usual(address: &str, user: &str, port: Option<u16>) -> Result<Usual> {
    let failed = || format!("could not ask ssh how it reaches {address}");
    let mut command = tokio::process::Command::new("ssh");
    command.arg("-G");
    if !user.is_empty() {
        command.args(["-l", user]);
    }
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    let output = command.args(["--", address]).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| Error::host(failed()).because(error).hint("install openssh-client"))?;
    if !output.status.success() {
        return Err(Error::input(failed()).because(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    let text = String::from_utf8(output.stdout).or_fail(Kind::Input, failed)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Usual {
    let mut usual = Usual { port: 22, ..Usual::default() };
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        match key {
            "hostname" => usual.name = value.into(),
            "user" => usual.user = value.into(),
            "port" => usual.port = value.parse().unwrap_or(22),
            "proxyjump" if value != "none" => usual.jump = Some(value.into()),
            "proxycommand" if value != "none" => usual.proxy = Some(value.into()),
            "identityfile" | "certificatefile" => usual.identities.push(format!("{key} {value}")),
            "identityagent" | "identitiesonly" => usual.identities.push(format!("{key} {value}")),
            "userknownhostsfile" | "globalknownhostsfile" | "hostkeyalias" => usual.trust.push(format!("{key} {value}")),
            _ => {}
        }
    }
    let says = |word: &str| usual.identities.iter().any(|line| line.starts_with(word));
    // Ours says "none" and "yes" for everything that is not said.
    let agent = (!says("identityagent")).then(|| "identityagent SSH_AUTH_SOCK".to_string());
    let all = (!says("identitiesonly")).then(|| "identitiesonly no".to_string());
    usual.identities.extend(agent.into_iter().chain(all));
    usual
}

async fn resolve(name: &str) -> Option<IpAddr> {
    let mut found: Vec<IpAddr> = tokio::net::lookup_host((name, 22)).await.ok()?.map(|address| address.ip()).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = "user root\nhostname web1.example.com\nport 2200\nidentitiesonly no\nproxyjump admin@bastion\n\
                         identityfile ~/.ssh/id_ed25519\nuserknownhostsfile /root/.ssh/known_hosts\nlogverbose none\n";

    fn host() -> SshHost {
        SshHost { address: "web1".into(), ..SshHost::default() }
    }

    #[test]
    fn the_operators_own_configuration_is_followed_where_the_blueprint_is_silent() {
        let usual = parse(USUAL);
        let target = target(&host(), &usual, None);
        assert_eq!((target.address.as_str(), target.ssh_port, usual.jump.as_deref()), ("web1.example.com", 2200, Some("admin@bastion")));
        assert_eq!((usual.proxy, parse("proxycommand nc -X %h %p\n").proxy.as_deref()), (None, Some("nc -X %h %p")));
        let lines = target.login.unwrap().lines;
        for line in ["identityfile ~/.ssh/id_ed25519", "identityagent SSH_AUTH_SOCK", "userknownhostsfile /root/.ssh/known_hosts"] {
            assert!(lines.iter().any(|found| found == line), "{line} in {lines:?}");
        }
    }

    #[test]
    fn what_the_blueprint_says_goes_before() {
        let named = SshHost { key: Some("/root/key".into()), fingerprint: Some("SHA256:x".into()), ..host() };
        let login = target(&named, &parse(USUAL), None).login.unwrap();
        assert_eq!(
            login.lines,
            ["IdentityFile /root/key", "IdentityAgent SSH_AUTH_SOCK"],
            "no other key, and no known hosts beside the fingerprint"
        );
        assert_eq!(login.fingerprint.as_deref(), Some("SHA256:x"));
        let pinned = SshHost { host_key: Some("ssh-ed25519 AAAA".into()), fingerprint: Some("SHA256:x".into()), ..host() };
        let target = target(&pinned, &parse(USUAL), None);
        assert_eq!((target.host_keys.len(), target.login.unwrap().fingerprint), (1, None), "the key itself says more than its sum");
    }
}
