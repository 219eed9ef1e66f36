//! pods/exec, attach and portforward: streams that the kubelet of the pod's node takes over.

use super::kubelets;
use super::object::{decode, key_of, text};
use super::read::missing;
use super::respond::Response;
use super::server::Call;
use super::status::{Answer, Status};
use crate::orchestrator::upgrade;

/// What the kubelet is told of `PodExecOptions` and `PodAttachOptions`.
const PASSED_ON: &[&str] = &["command", "stdin", "stdout", "stderr", "tty"];

pub fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward")
}

pub async fn open(call: &Call<'_>) -> Answer<Response> {
    let Some(client) = call.upgrade.clone() else { return Err(Status::bad_request("Upgrade request required")) };
    if !upgrade::is_spdy(call.headers) {
        return Err(Status::bad_request("unable to upgrade: only SPDY/3.1 is spoken here"));
    }
    let entry = call.server.store.get(&key_of(&call.row, &call.target)).ok_or_else(|| missing(call))?;
    let pod = decode(&entry)?;
    let node = text(&pod, "spec", "nodeName");
    let (namespace, name, what) = (&call.target.namespace, &call.target.name, &call.target.subresource);
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let path = if what == "portforward" {
        format!("/{what}/{namespace}/{name}")
    } else {
        let container = kubelets::container(&call.row, name, &pod, call.query.text("container"))?;
        format!("/{what}/{namespace}/{name}/{container}?{}", call.query.only(PASSED_ON))
    };
    let failed = |error: crate::error::Error| Status::internal(format!("could not reach pod {name} on node {node}: {}", error.chain()));
    let stream = kubelets::connect(call.server, kubelets::address(call.server, node)?).await.map_err(failed)?;
    upgrade::pass_on(call.headers, client, stream, &path).await.map_err(failed)
}
