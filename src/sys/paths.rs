//! Where things live on the operator's host and on machines; no path is spelled twice.

use std::path::PathBuf;

/// The operator's state: a cache and the journal. `$KPROV_HOME`, else `$XDG_STATE_HOME/kprov`, else `~/.local/state/kprov`.
pub fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("KPROV_HOME") {
        return home.into();
    }
    if let Some(state) = std::env::var_os("XDG_STATE_HOME") {
        return PathBuf::from(state).join("kprov");
    }
    PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".local/state/kprov")
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
/// On a host with the local provider: the local cloud's own data (its "data centre"), never the operator's state.
pub const LOCAL_CLOUD: &str = "/var/lib/kprov/local";
