//! The commented blueprint that `kprov init` writes.

use super::load::{self, Disk};
use super::tree;
use crate::error::{Error, Result};
use serde_json::json;
use std::path::Path;

/// A blueprint that validates and serves the demo application as it is; or why there is none for a cluster of this name.
pub fn checked(name: &str) -> Result<String> {
    let text = text(name);
    // The name is all that can be wrong with it, and what comes first in it.
    match load::from_text(&text, Path::new("the starter"), &Disk).map_err(|problems| problems.0.into_iter().next()) {
        Err(Some(problem)) => {
            let error = Error::input("could not write a blueprint for a cluster of this name").because(problem.message);
            Err(problem.hint.into_iter().fold(error, Error::hint))
        }
        _ => Ok(text),
    }
}

/// The same unchecked; `name` is the cluster's.
pub fn text(name: &str) -> String {
    STARTER.replace("CLUSTER/web", &scalar(&format!("{name}/web"))).replace("CLUSTER", &scalar(name))
}

/// As YAML, also inside braces: a cluster may be called `null` or `true`, which only quotes make a text.
fn scalar(text: &str) -> String {
    let (documents, mistakes) = tree::read(&format!("[{text}]"));
    let is_plain = match documents.as_slice() {
        [list] => mistakes.is_empty() && matches!(list.items(), [only] if only.text() == Some(text)),
        _ => false,
    };
    if is_plain { text.into() } else { json!(text).to_string() }
}

const STARTER: &str = r#"# One desired architecture. `kprov up FILE` makes it exist and keeps it true; `kprov down FILE` leaves nothing.
# All fields: `kprov schema`. Mistakes: `kprov validate FILE`.
apiVersion: kprov.dev/v1
kind: Blueprint
metadata:
  name: CLUSTER
spec:
  # Where the machines come from: local, aws, gcp or ssh. The one line to change.
  provider: local
  # A place that each provider maps to one of its own; it has a default.
  # location: eu-west

  # Who may reach SSH and the API from outside. Nothing is open by default.
  # access:
  #   from: [192.0.2.0/24]

  # Groups of equal machines, named control-1, worker-1, worker-2, ...
  # Sizes are Kubernetes quantities; these are the defaults.
  machines:
    - name: control
      role: control-plane
      count: 1
      size: {cpu: 1, memory: 1Gi, disk: 10Gi}
    - name: worker
      role: worker
      count: 2
      size: {cpu: 1, memory: 1Gi, disk: 10Gi}

  # Addresses that lead to services: namespace/service, its port 80 unless targetPort says otherwise.
  loadBalancers:
    - name: web
      listeners:
        - {port: 80, service: CLUSTER/web}

  # Shared storage: a StorageClass of this name; claims with ReadWriteMany bind to it.
  # filesystems:
  #   - {name: media, size: 5Gi}

  # OCI archives pushed to the machines, relative to this file.
  # images: [application.tar]

  # Kubernetes manifests: files or folders relative to this file, or objects as here.
  workloads:
    - apiVersion: v1
      kind: Namespace
      metadata: {name: CLUSTER}
    - apiVersion: apps/v1
      kind: Deployment
      metadata: {name: web, namespace: CLUSTER}
      spec:
        replicas: 3
        selector: {matchLabels: {app: web}}
        template:
          metadata: {labels: {app: web}}
          spec:
            containers:
              - name: web
                image: kprov.dev/kprov:latest  # the demo application, present on every machine
                imagePullPolicy: IfNotPresent
                args: [demo]
                ports: [{containerPort: 8080}]
                readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    - apiVersion: v1
      kind: Service
      metadata: {name: web, namespace: CLUSTER}
      spec:
        selector: {app: web}
        ports: [{port: 80, targetPort: 8080}]
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_that_a_cluster_may_have_gives_a_blueprint_that_validates() {
        for name in ["shop", "a", "a-1", "true", "no", "null", "y"] {
            let loaded = load::from_text(&checked(name).expect(name), Path::new("starter.yaml"), &Disk).expect(name);
            assert_eq!(loaded.blueprint.metadata.name, name);
            assert_eq!(loaded.blueprint.spec.workloads[1]["metadata"]["namespace"], name);
        }
    }

    #[test]
    fn any_other_name_is_refused_for_what_is_wrong_with_it() {
        let check = |name: &str, cause: &str, hints: &[&str]| {
            let error = checked(name).expect_err(name);
            assert_eq!(error.chain(), format!("could not write a blueprint for a cluster of this name: {cause}"));
            assert_eq!(error.hints(), hints, "{name}");
        };
        let rule = "is not a cluster's name: small letters, digits and dashes, a letter first, no dash last";
        check("Bad_Name", &format!("`Bad_Name` {rule}"), &["for instance `bad-name`"]);
        check("a: b", &format!("`a: b` {rule}"), &["for instance `a--b`"]);
        check("a,b", &format!("`a,b` {rule}"), &["for instance `a-b`"]);
        check("", &format!("`` {rule}"), &["for instance `shop`"]);
        check("1", &format!("`1` {rule}"), &["for instance `shop`"]);
        check(&"a".repeat(41), "a cluster's name has at most 40 letters, this one has 41", &[]);
    }
}
