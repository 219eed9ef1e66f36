//! Configuration texts from templates/, in strict mode: a missing variable is an error, not an empty word. Pure.

use super::spec::{CONTAINERD_ROOT, CONTAINERD_SOCKET, CONTAINERD_STATE, KPROV_IMAGE, Service};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::paths;
use handlebars::Handlebars;
use serde::Serialize;
use serde_json::json;

/// What of a machine decides how containerd is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerdHost {
    pub systemd: bool,
    pub apparmor: bool,
    /// CAP_SYS_RESOURCE in the bounding set: may lower oom_score_adj.
    pub may_protect_from_oom: bool,
    pub cni_bin_dir: String,
}

pub fn containerd(host: &ContainerdHost) -> Result<String> {
    let values = json!({
        "root": CONTAINERD_ROOT,
        "state": CONTAINERD_STATE,
        "socket": CONTAINERD_SOCKET,
        "cni_conf_dir": paths::CNI,
        "sandbox_image": KPROV_IMAGE,
        "oom_score": if host.may_protect_from_oom { -999 } else { 0 },
        "disable_apparmor": !host.apparmor,
        "restrict_oom_score_adj": !host.may_protect_from_oom,
        "systemd_cgroup": host.systemd,
        "cni_bin_dir": host.cni_bin_dir,
    });
    render(include_str!("../../templates/containerd.toml.hbs"), &values)
}

/// A systemd unit. Words are quoted as systemd.service(5) reads them; a line break in one is refused.
pub fn unit(service: &Service) -> Result<String> {
    let words = service.argv.iter().map(|word| quoted(word)).collect::<Result<Vec<_>>>()?;
    let env = service.env.iter().map(|(name, value)| quoted(&format!("{name}={value}"))).collect::<Result<Vec<_>>>()?;
    let values = json!({
        "description": single_line(&service.description)?.replace('%', "%%"),
        "after": service.after.iter().map(|name| single_line(name)).collect::<Result<Vec<_>>>()?,
        "exec": words.join(" "),
        "env": env,
    });
    render(include_str!("../../templates/service.unit.hbs"), &values)
}

fn render(template: &str, values: &impl Serialize) -> Result<String> {
    let mut handlebars = Handlebars::new();
    handlebars.set_strict_mode(true);
    // The texts are TOML and units, not HTML.
    handlebars.register_escape_fn(handlebars::no_escape);
    handlebars.render_template(template, values).or_fail(Kind::Internal, || "could not fill in a template")
}

fn single_line(text: &str) -> Result<&str> {
    if text.chars().any(char::is_control) {
        return Err(Error::internal(format!("could not write {text:?} into a unit file")));
    }
    Ok(text)
}

/// `%` and `$` start expansions in units: doubled, they mean themselves.
fn quoted(word: &str) -> Result<String> {
    let escaped = single_line(word)?.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn host() -> ContainerdHost {
        ContainerdHost { systemd: false, apparmor: false, may_protect_from_oom: false, cni_bin_dir: "/usr/lib/cni".into() }
    }

    #[test]
    fn containerd_is_told_what_the_machine_can_do() {
        let plain = containerd(&host()).unwrap();
        for line in [
            "oom_score = 0",
            "sandbox_image = \"kprov.dev/kprov:latest\"",
            "disable_apparmor = true",
            "restrict_oom_score_adj = true",
            "SystemdCgroup = false",
            "bin_dir = \"/usr/lib/cni\"",
        ] {
            assert!(plain.lines().any(|found| found.trim() == line), "{line} is missing in\n{plain}");
        }
        let full = containerd(&ContainerdHost { systemd: true, apparmor: true, may_protect_from_oom: true, ..host() }).unwrap();
        for line in ["oom_score = -999", "disable_apparmor = false", "restrict_oom_score_adj = false", "SystemdCgroup = true"] {
            assert!(full.lines().any(|found| found.trim() == line), "{line} is missing in\n{full}");
        }
    }

    fn service(argv: &[&str]) -> Service {
        Service {
            name: "kprov-agent".into(),
            description: "kprov agent".into(),
            argv: argv.iter().map(|word| word.to_string()).collect(),
            env: BTreeMap::from([("KPROV_REVISION".to_string(), "abc".to_string())]),
            after: vec!["containerd".into()],
            restart_on: Vec::new(),
            ready: None,
        }
    }

    #[test]
    fn a_unit_starts_after_what_it_needs_with_words_that_stay_words() {
        let text = unit(&service(&["/usr/local/bin/kprov", "agent", "a \"b\" $c %d \\"])).unwrap();
        assert!(text.contains("After=containerd.service\n"), "{text}");
        assert!(text.contains("Environment=\"KPROV_REVISION=abc\"\n"), "{text}");
        assert!(text.contains(r#"ExecStart="/usr/local/bin/kprov" "agent" "a \"b\" $$c %%d \\""#), "{text}");
    }

    #[test]
    fn a_line_break_cannot_add_a_setting() {
        assert!(unit(&service(&["/bin/true\nExecStartPre=/bin/evil"])).is_err());
    }
}
