//! The kubelet on a real containerd, in namespaces of its own.

mod api;
mod node;

use node::{Node, alone, pod_path, shell};
use serde_json::{Value, json};

fn phase(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| pod["status"]["phase"] == wanted
}

fn condition(kind: &'static str, wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |object| {
        let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        list.iter().any(|condition| condition["type"] == kind && condition["status"] == wanted)
    }
}

#[test]
fn a_node_runs_its_pods() {
    alone(|| async {
        let node = Node::start().await;
        let path = "/api/v1/nodes/n1";
        node.wait(path, "registered and not ready", condition("Ready", "False")).await;
        node.write_network();
        let object = node.wait(path, "ready", condition("Ready", "True")).await;
        println!("{object:#}");
        let web = node.pod("web", json!({"containers": [shell("web", "echo hello; exec sleep 1000")]}));
        let pod = node.wait(&web, "ready", condition("Ready", "True")).await;
        println!("{:#}", pod["status"]);
        node.api.delete_gracefully(&web, 1);
        node.wait(&web, "gone", Value::is_null).await;
        println!("{:#?}", node.events(""));
        let _ = (phase("Running"), pod_path("web"));
        node.stop().await;
    });
}
