//! The main job: blueprint -> running cluster -> hand-off -> gone, judged by kubectl and by what is left on the host.

use crate::harness::{Operated, Story, assert_gone, http_get, json, text, until};
use kprov::bootstrap::spec::CONTAINERD_SOCKET;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn a_blueprint_becomes_a_serving_cluster_and_nothing_stays_after_down() {
    // A cluster has a network of its own: whatever ports of this host are taken is no matter.
    let _taken = [22, 53, 80, 443, 6443, 7443, 8472, 10250, 10256].map(|port| std::net::TcpListener::bind(("0.0.0.0", port)));
    let story = Story::of_the_shop();
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path");

    let refused = story.kprov(&["up", file]);
    assert!(!refused.status.success(), "without a terminal and without --yes nobody agreed to the plan");
    assert!(text(&refused).contains("--yes"), "{}", text(&refused));

    let changes = story.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(changes.status.code(), Some(2), "{}", text(&changes));

    let up = json(&story.ok(&["up", file, "--yes", "-o", "json"]));
    let address = up["loadBalancers"][0]["address"].as_str().expect("the load balancer's address").to_string();
    let answer = http_get(&format!("{address}:80"), "/").expect("the load balancer answers as soon as up has ended");
    assert!(answer.contains("Hello from web-"), "{answer}");
    let (_, sharing) = answer.split_once("Sharing /media with: ").expect("the shared filesystem is mounted");
    assert_eq!(sharing.matches("web-").count(), 3, "{answer}");
    for machine in ["control-1", "worker-1", "worker-2"] {
        // What a pod writes on one machine is read on all.
        let files = story.ok(&["ssh", &story.name, machine, "--", "ls /var/lib/kprov/filesystems/media/*"]);
        assert_eq!(files.matches(".replica").count(), 3, "{machine}: {files}");
    }

    let nodes = story.kubectl_ok(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    let pods = story.kubectl_ok(&["get", "pods", "-n", "shop", "--no-headers"]);
    assert_eq!(pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(), 3, "{pods}");

    let again = story.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));
    story.ok(&["up", file, "--yes"]);

    let cluster = story.cluster();
    story.ok(&["down", &story.name, "--yes"]);
    assert_gone(&cluster);
    assert!(!story.kubeconfig().exists(), "the kubeconfig of a cluster that is gone helps nobody");
}

#[test]
fn kubectl_does_what_people_do_with_it() {
    let story = Story::new("kubectl");
    let blueprint = story.example();
    story.ok(&["up", blueprint.to_str().expect("path"), "--yes"]);
    let kubectl = |arguments: &[&str]| story.kubectl_ok(arguments);

    assert!(kubectl(&["get", "all", "-n", "shop"]).contains("deployment.apps/web"));
    assert!(kubectl(&["describe", "deployment", "web", "-n", "shop"]).contains("Replicas:"));
    assert!(kubectl(&["describe", "node", "worker-1"]).contains("Allocatable:"));
    assert!(kubectl(&["explain", "deployment.spec.replicas"]).contains("integer"));

    kubectl(&["scale", "deployment/web", "-n", "shop", "--replicas=5"]);
    kubectl(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"]);
    kubectl(&["set", "env", "deployment/web", "-n", "shop", "COLOUR=blue"]);
    kubectl(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"]);
    kubectl(&["rollout", "undo", "deployment/web", "-n", "shop"]);
    kubectl(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"]);
    assert!(!kubectl(&["get", "deployment", "web", "-n", "shop", "-o", "yaml"]).contains("COLOUR"));

    let manifest = story.write(
        "job.yaml",
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {GREETING: hello from a config map}
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: demo
      image: kprov.dev/kprov:latest
      imagePullPolicy: IfNotPresent
      args: [demo, --port, "9090"]
      envFrom: [{configMapRef: {name: greeting}}]
      readinessProbe: {httpGet: {path: /healthz, port: 9090}, periodSeconds: 1}
"#,
    );
    let manifest = manifest.to_str().expect("path");
    kubectl(&["apply", "-f", manifest]);
    kubectl(&["wait", "pod/other", "--for=condition=Ready", "--timeout=60s"]);
    assert!(kubectl(&["apply", "-f", manifest]).contains("unchanged"));
    kubectl(&["label", "pod", "other", "colour=green"]);
    assert!(kubectl(&["get", "pods", "-l", "colour=green", "-o", "name"]).contains("pod/other"));
    kubectl(&["logs", "other"]);
    streams(&story);
    kubectl(&["delete", "-f", manifest, "--timeout=60s"]);
    assert!(!story.kubectl(&["get", "pod", "other"]).status.success());
}

/// Commands in containers, with their output, their input and their end; ports of pods on this host.
fn streams(story: &Story) {
    assert!(story.kubectl_ok(&["exec", "other", "--", "/kprov", "schema"]).contains("\"Blueprint\""));
    let failed = story.kubectl(&["exec", "other", "-c", "demo", "--", "/kprov", "validate", "/none.yaml"]);
    assert!(failed.status.code() == Some(1) && text(&failed).contains("there is no such file"), "{}", text(&failed));
    assert!(text(&failed).contains("exit code 1"), "{}", text(&failed));
    let unknown = text(&story.kubectl(&["exec", "other", "-c", "none", "--", "/kprov"]));
    assert!(unknown.contains("container none is not valid for pod other"), "{unknown}");
    // An order that is none, on stdin: the answer says that it arrived.
    let mut command = story.kubectl_command();
    let host = command.args(["exec", "-i", "other", "--", "/kprov", "host"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = host.stderr(Stdio::piped()).spawn().expect("kubectl starts");
    child.stdin.take().expect("stdin").write_all(b"kprov-frame 4\nnull\n").expect("written");
    let answer = text(&child.wait_with_output().expect("kubectl ends"));
    assert!(answer.contains("could not understand"), "{answer}");

    let mut command = story.kubectl_command();
    let mut forward = command.args(["port-forward", "pod/other", ":9090"]).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    // Held to the end: kubectl dies of a reader that went away.
    let mut lines = BufReader::new(forward.stdout.take().expect("stdout")).lines();
    let said = lines.next().expect("a line").expect("text");
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("{said}")).to_string();
    for _ in 0..3 {
        let answer = http_get(&format!("127.0.0.1:{port}"), "/").expect("the pod answers");
        assert!(answer.contains("Hello from other"), "{answer}");
    }
    forward.kill().expect("kill");
    forward.wait().expect("kubectl ends");
}

#[test]
fn the_loop_inside_adds_removes_and_repairs_machines_with_nobody_at_the_command_line() {
    let story = Story::new("loop");
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path").to_string();
    story.ok(&["up", &file, "--yes"]);

    let patch = |count: u32| {
        format!(
            r#"{{"spec":{{"machines":[{{"name":"control","role":"control-plane","count":1,"size":{{"cpu":1,"memory":"1Gi","disk":"8Gi"}}}},{{"name":"worker","role":"worker","count":{count},"size":{{"cpu":1,"memory":"1Gi","disk":"8Gi"}}}}]}}}}"#
        )
    };
    story.kubectl_ok(&["patch", "blueprint", &story.name, "--type", "merge", "-p", &patch(3)]);
    until("worker-3 is a node", || story.kubectl(&["get", "node/worker-3"]).status.success());
    story.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-3", "--timeout=60s"]);
    story.kubectl_ok(&["patch", "blueprint", &story.name, "--type", "merge", "-p", &patch(2)]);
    until("worker-3 is no node", || !story.kubectl(&["get", "node/worker-3"]).status.success());

    kill_machine(&story, "worker-2");
    // The machine's end is told by the provider at once; its new boot shows in the node's own report.
    story.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-2", "--timeout=120s"]);
    story.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=120s"]);

    let cluster = story.cluster();
    story.ok(&["down", &story.name, "--yes"]);
    assert_gone(&cluster);
}

#[test]
fn with_the_state_folder_lost_plan_up_and_down_still_do_the_right_thing() {
    let story = Story::new("lost");
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path");
    story.ok(&["up", file, "--yes"]);
    let uid = story.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);
    let forget = || std::fs::remove_dir_all(story.home()).expect("the state is lost");
    forget();

    // By its name alone, as far as this host tells.
    assert!(story.ok(&["status", &story.name]).contains("as wanted"));
    let kubeconfig = story.write("found", &story.ok(&["kubeconfig", &story.name]));
    let nodes = Command::new("kubectl").arg("--kubeconfig").arg(kubeconfig).args(["get", "nodes"]).output().expect("kubectl starts");
    assert!(nodes.status.success() && text(&nodes).contains("control-1"), "{}", text(&nodes));
    assert!(!story.home().exists(), "whoever only looks keeps nothing");

    let plan = story.kprov(&["plan", file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "what exists is found by its tag: {}", text(&plan));
    story.ok(&["up", file, "--yes"]);
    assert_eq!(story.kubectl_ok(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]), uid, "the same cluster");

    forget();
    let cluster = story.cluster();
    story.ok(&["down", file, "--yes"]);
    assert_gone(&cluster);
}

#[test]
fn two_laptops_that_begin_at_one_moment_make_one_cluster() {
    let name = format!("twins-{}", std::process::id());
    let stories = [0, 1].map(|_| Story::called(name.clone()));
    let up = |story: &Story| story.kprov(&["up", story.example().to_str().expect("path"), "--yes"]);
    let ended =
        std::thread::scope(|scope| stories.each_ref().map(|story| scope.spawn(move || up(story))).map(|one| one.join().expect("kprov")));
    for output in &ended {
        assert!(matches!(output.status.code(), Some(0 | 6)), "{}\n{}", text(&ended[0]), text(&ended[1]));
    }
    // Whoever gave way goes on with the cluster that is there; when both did, the first of these begins it.
    for story in &stories {
        let again = up(story);
        assert!(again.status.success(), "{}", text(&again));
    }
    let there = kprov::providers::local::clusters().expect("this host is readable");
    assert_eq!(there.iter().filter(|cluster| cluster.name == name).count(), 1, "{there:?}");
    let cluster = stories[0].cluster();
    stories[0].ok(&["down", &name, "--yes"]);
    assert_gone(&cluster);
}

#[test]
fn two_clusters_side_by_side_do_not_disturb_each_other() {
    let (one, other) = (Story::new("one"), Story::new("other"));
    let up = |story: &Story| json(&story.ok(&["up", story.example().to_str().expect("path"), "--yes", "-o", "json"]));
    let (first, second) = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| up(&one)), scope.spawn(|| up(&other)));
        (first.join().expect("one is up"), second.join().expect("the other is up"))
    });
    let address = |up: &Value| format!("{}:80", up["loadBalancers"][0]["address"].as_str().expect("address"));
    assert_ne!(address(&first), address(&second));
    let cluster = one.cluster();
    one.ok(&["down", &one.name, "--yes"]);
    assert_gone(&cluster);
    assert!(http_get(&address(&second), "/").expect("the other serves on").contains("Hello from web-"));
    let plan = other.kprov(&["plan", other.example().to_str().expect("path"), "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
}

#[test]
fn a_service_of_type_load_balancer_gets_one_from_the_provider_and_gives_it_back() {
    let story = Story::new("balancer");
    story.ok(&["up", story.example().to_str().expect("path"), "--yes"]);
    let address = story.expose("public");
    assert!(http_get(&format!("{address}:8081"), "/").expect("it answers").contains("Hello from web-"));
    let plan = story.kprov(&["plan", story.example().to_str().expect("path"), "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "what a Service asked for is not drift: {}", text(&plan));
    story.kubectl_ok(&["delete", "service", "public", "-n", "shop", "--timeout=60s"]);
    let status = json(&story.ok(&["status", &story.name, "-o", "json"]));
    let resources = status["resources"].as_array().expect("resources");
    assert!(!resources.iter().any(|thing| thing["id"]["name"].as_str().is_some_and(|name| name.starts_with("svc-"))), "{resources:?}");
}

#[test]
fn archives_of_the_blueprint_reach_machines_that_the_loop_adds_and_follow_a_later_up() {
    let story = Story::new("images");
    let blueprint = story.example();
    let file = blueprint.to_str().expect("path").to_string();
    let plain = std::fs::read_to_string(&blueprint).expect("blueprint");
    let with_archive = |number: u32| {
        let archive = story.path(&format!("demo{number}.tar"));
        story.ok(&["image", "--output", archive.to_str().expect("path"), "--name", &format!("example.dev/demo:{number}")]);
        story.write("blueprint.yaml", &plain.replace("  images: []", &format!("  images: [demo{number}.tar]")));
        story.ok(&["up", &file, "--yes"]);
    };
    let images = |machine: &str| {
        story.ok(&[
            "ssh",
            &story.name,
            machine,
            "--",
            "ctr",
            "--address",
            CONTAINERD_SOCKET,
            "--namespace",
            "k8s.io",
            "images",
            "list",
            "--quiet",
        ])
    };
    with_archive(1);
    for machine in ["control-1", "worker-1", "worker-2"] {
        assert!(images(machine).contains("example.dev/demo:1"), "{machine} lacks the archive's image");
    }

    let group = |name: &str, role: &str, count: u32| {
        format!(r#"{{"name":"{name}","role":"{role}","count":{count},"size":{{"cpu":1,"memory":"1Gi","disk":"8Gi"}}}}"#)
    };
    let patch = format!(r#"{{"spec":{{"machines":[{},{}]}}}}"#, group("control", "control-plane", 1), group("worker", "worker", 3));
    story.kubectl_ok(&["patch", "blueprint", &story.name, "--type", "merge", "-p", &patch]);
    until("worker-3 is a node", || story.kubectl(&["get", "node/worker-3"]).status.success());
    story.kubectl_ok(&["wait", "--for=condition=Ready", "node/worker-3", "--timeout=60s"]);
    assert!(images("worker-3").contains("example.dev/demo:1"), "a machine that the loop made lacks the archive's image");

    with_archive(2);
    for machine in ["control-1", "worker-1", "worker-2"] {
        assert!(images(machine).contains("example.dev/demo:2"), "{machine} lacks the later archive's image");
    }
    let kept = story.ok(&["ssh", &story.name, "control-1", "--", "ls", "/var/lib/kprov/images"]);
    assert_eq!(kept.lines().filter(|line| line.ends_with(".tar")).count(), 1, "only the archive that is named is kept: {kept}");
    let plan = story.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
}

/// kill -9 of a machine's first process, as if its power had been cut.
fn kill_machine(story: &Story, machine: &str) {
    let pid = nix::unistd::Pid::from_raw(story.machine_pid(machine));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the machine's first process ends");
}
