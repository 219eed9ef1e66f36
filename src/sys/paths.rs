//! Where things live on the operator's host and on machines; no path is spelled twice.

use std::path::{Path, PathBuf};

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

/// Where CNI plugins live: Debian's place, upstream's, Fedora's. The scripts that look at machines know the same ones.
pub const CNI_PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
/// Those that every pod needs; a folder that lacks one is no use, since containerd takes all from one folder.
pub const CNI_PLUGINS: [&str; 3] = ["ptp", "host-local", "loopback"];

/// The first folder of this machine that has all plugins that pods need: the one that containerd is told.
pub fn cni_plugin_folder() -> Option<&'static str> {
    CNI_PLUGIN_FOLDERS.into_iter().find(|folder| has_cni_plugins(Path::new(folder)))
}

fn has_cni_plugins(folder: &Path) -> bool {
    CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_plugins_is_one_that_has_them_all() {
        let folder = tempfile::tempdir().expect("a folder");
        for plugin in CNI_PLUGINS {
            assert!(!has_cni_plugins(folder.path()), "without {plugin}");
            std::fs::write(folder.path().join(plugin), "").expect("written");
        }
        assert!(has_cni_plugins(folder.path()));
    }

    #[test]
    fn the_scripts_look_for_the_same_plugins_in_the_same_folders() {
        let folders = format!("for folder in {}; do", CNI_PLUGIN_FOLDERS.join(" "));
        let plugins = CNI_PLUGINS.map(|plugin| format!("[ -x \"$folder/{plugin}\" ]")).join(" && ");
        for script in [include_str!("../../templates/probe.sh"), include_str!("../../templates/survey.sh")] {
            assert!(script.contains(&folders) && script.contains(&plugins), "{script}");
        }
    }
}
