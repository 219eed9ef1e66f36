//! Somebody with kprov, a blueprint and an emulated cloud's credentials: the real binary, run inside the rig's namespace.

use super::namespace::Namespace;
use crate::harness::{Operated, binary, show_logs_of_a_failure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the example calls its cluster.
pub const SHOP: &str = "shop";

pub struct Operator {
    pub namespace: Namespace,
    /// The cluster's.
    pub name: &'static str,
    pub provider: &'static str,
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Operator {
    pub fn new(namespace: &Namespace, provider: &'static str, environment: &[(&str, &str)]) -> Operator {
        let folder = tempfile::Builder::new().prefix("kprov-e2e-").tempdir().expect("a folder for the operator");
        let environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Operator { namespace: namespace.clone(), name: SHOP, provider, folder, environment }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The repository's one example for all providers, with nothing but its provider line changed; its cluster is called [`SHOP`].
    pub fn example(&self) -> PathBuf {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
        std::fs::copy(examples.join("web.yaml"), self.path("web.yaml")).expect("web.yaml");
        let text = std::fs::read_to_string(examples.join("shop.yaml")).expect("shop.yaml");
        let changed = text.replace("  provider: local ", &format!("  provider: {} ", self.provider));
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        let others = lines(&text).into_iter().zip(lines(&changed)).filter(|(before, after)| before != after).count();
        assert_eq!(others, 1, "the example has one provider line");
        let path = self.path("shop.yaml");
        std::fs::write(&path, changed).expect("the blueprint");
        path
    }

    /// Any program with nothing but this operator's environment.
    pub fn program(&self, program: &Path) -> Command {
        let mut command = self.namespace.command_outside(program);
        command.env_clear().envs(["PATH", "LANG"].map(|name| (name, std::env::var(name).unwrap_or_default())));
        // Nothing of this host's own user: its configuration may name other clouds.
        command.env("HOME", self.folder.path()).env("KPROV_HOME", self.path("home"));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path("home").join("clusters").join(self.provider).join(self.name).join("kubeconfig")
    }
}

impl Operated for Operator {
    fn command(&self) -> Command {
        self.program(&binary())
    }

    fn kubectl_command(&self) -> Command {
        let mut command = self.namespace.command("kubectl");
        command.env("HOME", self.folder.path()).arg("--kubeconfig").arg(self.kubeconfig());
        command
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        show_logs_of_a_failure(&self.path("home"));
    }
}
