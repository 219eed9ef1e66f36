//! Where things live on the operator's host and on machines; no path is spelled twice.

use std::path::PathBuf;

/// The operator's state: a cache and the journal. `$KPROV_HOME`, else `$XDG_STATE_HOME/kprov`, else `~/.local/state/kprov`.
pub fn home() -> PathBuf {
    // An empty variable is an unset one, as the XDG specification has it.
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || set("HOME").unwrap_or_else(|| "/root".into());
    set("KPROV_HOME")
        .or_else(|| set("XDG_STATE_HOME").map(|state| state.join("kprov")))
        .unwrap_or_else(|| user().join(".local/state/kprov"))
}

/// The operator's folders of all clusters, one folder per provider: a blueprint that changes its provider is another cluster.
pub fn clusters() -> PathBuf {
    home().join("clusters")
}

/// The operator's folder for one cluster.
pub fn cluster(provider: &str, name: &str) -> PathBuf {
    clusters().join(provider).join(name)
}

/// On a machine: the binary, its configuration, its data.
pub const BINARY: &str = "/usr/local/bin/kprov";
pub const ETC: &str = "/etc/kprov";
pub const PKI: &str = "/etc/kprov/pki";
pub const DATA: &str = "/var/lib/kprov";
/// containerd's configuration of pod networks: ours alone, since it takes the first file that it finds.
pub const CNI: &str = "/etc/kprov/cni";
/// Where systemd keeps what `set-property --runtime` told it of units, until the next boot.
pub const UNIT_PROPERTIES: &str = "/run/systemd/system.control";
/// On a host with the local provider: the local cloud's own data (its "data centre"), never the operator's state.
pub const LOCAL_CLOUD: &str = "/var/lib/kprov/local";
