//! The kubelet on a real containerd, in namespaces of its own, with the real API.

mod api;
mod node;

use node::{Node, alone, condition, shell};
use serde_json::{Value, json};
use std::time::Duration;

fn ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

fn state(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]
}

fn waits_for(reason: &'static str) -> impl Fn(&Value) -> bool {
    move |pod| state(pod)["waiting"]["reason"] == reason
}

#[test]
fn a_node_registers_becomes_ready_with_its_network_and_runs_a_pod() {
    alone(|| async {
        let node = Node::start().await;
        let object = node.wait("/api/v1/nodes/n1", "not ready", |node| condition(node, "Ready") == "False").await;
        assert_eq!(object["spec"]["providerID"], "kprov-local://t/n1");
        assert_eq!(object["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
        node.write_network();
        let begun = std::time::Instant::now();
        node.wait("/api/v1/nodes/n1", "ready", |node| condition(node, "Ready") == "True").await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        node.wait("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "held", |lease| {
            lease["spec"]["holderIdentity"] == "n1"
        })
        .await;
        let web = node.pod("web", json!({"containers": [{"name": "web", "args": ["demo"], "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}}]})).await;
        let pod = node.wait(&web, "ready", ready).await;
        assert_eq!(pod["status"]["qosClass"], "BestEffort");
        assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.244.1."));
        node.api.delete(&web, 5).await;
        node.wait(&web, "gone", Value::is_null).await;
        let events = node.events("web").await;
        for wanted in ["Pulled", "Created", "Started", "Killing"] {
            assert!(events.iter().any(|event| event.starts_with(wanted)), "{wanted}: {events:#?}");
        }
        assert_eq!(node.ctr(&["containers", "ls", "-q"]), "");
    });
}

#[test]
fn volumes_and_variables_reach_the_containers_and_follow_their_sources() {
    alone(|| async {
        let node = Node::ready().await;
        node.api.put("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "c"}, "data": {"color": "red"}})).await;
        node.api.put("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}, "stringData": {"word": "sesame"}})).await;
        let script = "
            echo color=$COLOR name=$NAME cpu=$CPU host=$(hostname) user=$(id -u):$(id -g):$(id -G);
            echo file=$(cat /c/color) secret=$(cat /s/word) mode=$(stat -L -c %a:%g /s/word) label=$(cat /d/app) shared=$(cat /e/init);
            test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token;
            grep -q $(hostname) /etc/hosts && grep -q ndots:5 /etc/resolv.conf && echo names;
            echo inside=$(cat /sub/deep/file);
            until [ $(cat /c/color) = blue ]; do sleep 0.1; done; echo changed; exec sleep 1000";
        let mut main = shell("main", script);
        main["env"] = json!([
            {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "color"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        ]);
        main["resources"] = json!({"limits": {"cpu": "200m", "memory": "64Mi"}});
        main["volumeMounts"] = json!([
            {"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}, {"name": "d", "mountPath": "/d"},
            {"name": "e", "mountPath": "/e"}, {"name": "e", "mountPath": "/sub", "subPath": "a/b"},
        ]);
        let mut first = shell("first", "echo -n ready > /e/init; mkdir -p /e/a/b/deep; echo -n x > /e/a/b/deep/file");
        first["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
        let path = node
            .pod(
                "files",
                json!({
                    "terminationGracePeriodSeconds": 1, "securityContext": {"fsGroup": 3000, "runAsUser": 1000, "runAsGroup": 2000},
                    "initContainers": [first], "containers": [main],
                    "volumes": [
                        {"name": "c", "configMap": {"name": "c"}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
                        {"name": "d", "downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}},
                        {"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    ]
                }),
            )
            .await;
        node.wait(&path, "ready", ready).await;
        let log = node.log_until("files", "main", "inside=").await;
        let wanted = [
            "color=red name=files cpu=200 host=files user=1000:2000:2000 3000",
            "file=red secret=sesame mode=440:3000 label=files shared=ready",
            "token",
            "names",
            "inside=x",
        ];
        assert_eq!(log.lines().take(5).collect::<Vec<_>>(), wanted, "{log}");
        node.api.merge("/api/v1/namespaces/default/configmaps/c", json!({"data": {"color": "blue"}})).await;
        node.log_until("files", "main", "changed").await;
        node.api.delete(&path, 0).await;
        node.wait(&path, "gone", Value::is_null).await;
        node.wait_until("no mounts are left", || !std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap().contains("/agent/pods/"))
            .await;
    });
}

#[test]
fn ends_are_told_as_kubectl_users_know_them() {
    alone(|| async {
        let node = Node::ready().await;
        let once = |script: &str| json!({"restartPolicy": "Never", "containers": [shell("main", script)]});
        let done = node.pod("done", once("echo bye; exit 0")).await;
        let failed = node.pod("failed", once("echo -n no coffee > /dev/termination-log; exit 3")).await;
        let mut greedy = once("exec tail /dev/zero");
        greedy["containers"][0]["resources"] = json!({"limits": {"memory": "16Mi"}});
        let greedy = node.pod("greedy", greedy).await;
        let crash = node.pod("crash", json!({"containers": [shell("main", "exit 1")]})).await;
        let absent = node.pod("absent", json!({"containers": [{"name": "main", "image": "127.0.0.1:1/none:1"}]})).await;
        let unset = node
            .pod("unset", json!({"containers": [{"name": "main", "args": ["pause"], "envFrom": [{"configMapRef": {"name": "later"}}]}]}))
            .await;
        let pod = node.wait(&done, "succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
        assert_eq!(state(&pod)["terminated"]["reason"], "Completed");
        let pod = node.wait(&failed, "failed", |pod| pod["status"]["phase"] == "Failed").await;
        let end = &state(&pod)["terminated"];
        assert_eq!((&end["exitCode"], &end["reason"], &end["message"]), (&json!(3), &json!("Error"), &json!("no coffee")));
        // The runtime tells of the end, and why, in two events.
        node.wait(&greedy, "killed", |pod| pod["status"]["phase"] == "Failed" && state(pod)["terminated"]["reason"] == "OOMKilled").await;
        let pod = node.wait(&crash, "crashing", waits_for("CrashLoopBackOff")).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
        node.wait(&absent, "failing to pull", waits_for("ErrImagePull")).await;
        node.wait(&absent, "backing off", waits_for("ImagePullBackOff")).await;
        node.wait(&unset, "misconfigured", waits_for("CreateContainerConfigError")).await;
        node.api.put("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "later"}, "data": {"a": "b"}})).await;
        node.wait(&unset, "ready", ready).await;
        for path in [done, failed, greedy, crash, absent, unset] {
            node.api.delete(&path, 0).await;
            node.wait(&path, "gone", Value::is_null).await;
        }
    });
}

#[test]
fn probes_and_hooks_steer_a_container() {
    alone(|| async {
        let node = Node::ready().await;
        let script = "trap 'echo term; exit 0' TERM; echo start; touch /tmp/alive; while :; do sleep 0.1; done";
        let mut main = shell("main", script);
        main["startupProbe"] = json!({"exec": {"command": ["/usr/bin/test", "-e", "/tmp/alive"]}, "periodSeconds": 1});
        main["livenessProbe"] =
            json!({"exec": {"command": ["/usr/bin/test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1});
        main["readinessProbe"] = json!({"exec": {"command": ["/usr/bin/test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
        main["lifecycle"] = json!({
            "postStart": {"exec": {"command": ["/usr/bin/touch", "/tmp/hooked"]}},
            "preStop": {"exec": {"command": ["/usr/bin/sh", "-c", "echo prestop > /proc/1/fd/1"]}}
        });
        let path = node.pod("probed", json!({"terminationGracePeriodSeconds": 5, "containers": [main]})).await;
        let pod = node.wait(&path, "started", |pod| pod["status"]["containerStatuses"][0]["started"] == true).await;
        assert!(!ready(&pod));
        let id = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned()
        };
        let run = |id: &str, command: &str| node.ctr(&["tasks", "exec", "--exec-id", "x", id, "/usr/bin/sh", "-c", command]);
        run(&id(&pod), "/usr/bin/test -e /tmp/hooked && /usr/bin/touch /tmp/ready");
        let pod = node.wait(&path, "ready", ready).await;
        run(&id(&pod), "/usr/bin/rm /tmp/alive");
        let again = node.wait(&path, "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
        assert_ne!(id(&pod), id(&again));
        let previous = node.log("probed", "main", "previous=true").await;
        assert_eq!(previous, "start\nprestop\nterm\n");
        let events = node.events("probed").await;
        for wanted in ["Unhealthy Liveness probe failed", "Killing Container main failed liveness probe"] {
            assert!(events.iter().any(|event| event.starts_with(wanted)), "{wanted}: {events:#?}");
        }
    });
}

#[test]
fn pods_outlive_the_agent_and_the_api_and_lost_sandboxes_are_replaced() {
    alone(|| async {
        let mut node = Node::ready().await;
        let path = node.pod("web", json!({"terminationGracePeriodSeconds": 1, "containers": [shell("main", "exec sleep 1000")]})).await;
        let before = node.wait(&path, "ready", ready).await;
        let gone = node.pod("gone", json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "args": ["pause"]}]})).await;
        node.wait(&gone, "ready", ready).await;
        // The agent restarts while the API is away: the container stays, and comes back when it dies.
        node.stop_agent().await;
        node.api.cut(true);
        node.api.delete(&gone, 0).await;
        node.start_agent();
        let id = before["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned();
        node.wait_until("the agent looks after its pods", || node.ctr(&["tasks", "ls", "-q"]).contains(&id)).await;
        node.ctr(&["tasks", "kill", "-s", "KILL", &id]);
        let others_run = || node.ctr(&["tasks", "ls"]).lines().filter(|task| task.contains("RUNNING") && !task.contains(&id)).count();
        node.wait_until("a new container runs", || others_run() == 4).await;
        node.api.cut(false);
        let after = node.wait(&path, "told", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
        assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
        let of_gone = || node.ctr(&["containers", "ls", "-q", "labels.\"io.kubernetes.pod.name\"==gone"]);
        node.wait_until("what was deleted meanwhile is gone", || of_gone().is_empty()).await;
        // The sandbox dies: everything is made anew.
        let sandbox = "labels.\"io.kubernetes.pod.name\"==web,labels.\"io.cri-containerd.kind\"==sandbox";
        let sandbox = node.ctr(&["containers", "ls", "-q", sandbox]).trim().to_owned();
        node.ctr(&["tasks", "kill", "-s", "KILL", &sandbox]);
        node.wait(&path, "made anew", |pod| ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 2).await;
    });
}

#[test]
fn a_disk_that_fills_is_told_and_what_came_from_an_archive_is_known() {
    alone(|| async {
        let node = Node::ready().await;
        let runtime = kprov::orchestrator::kubelet::cri::Runtime::connect(&node.config.containerd_socket).unwrap();
        let folder = runtime.image_folder().await.unwrap().expect("a folder of images");
        assert!(folder.starts_with(&node.folder) && folder.is_dir(), "{}", folder.display());
        let images = runtime.list_images().await.unwrap();
        assert!(!images.is_empty() && images.iter().all(|image| image.repo_digests.is_empty()), "{images:#?}");
        node.wait("/api/v1/nodes/n1", "not full", |node| condition(node, "DiskPressure") == "False").await;
        let data = &node.config.data;
        nix::mount::mount(Some("tmpfs"), data, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=8m")).unwrap();
        std::fs::write(data.join("much"), vec![0; 15 << 19]).unwrap();
        let full = node.wait("/api/v1/nodes/n1", "full", |node| condition(node, "DiskPressure") == "True").await;
        assert_eq!(condition(&full, "Ready"), "True");
        nix::mount::umount2(data, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn logs_are_followed_to_the_end_and_only_the_api_server_may_read_them() {
    alone(|| async {
        let node = Node::ready().await;
        let script = "for i in 1 2 3; do echo line $i; done; sleep 1; echo late; sleep 0.3; echo last >&2";
        let path = node.pod("talk", json!({"restartPolicy": "Never", "containers": [shell("main", script)]})).await;
        node.wait(&path, "started", |pod| !state(pod)["running"].is_null()).await;
        assert_eq!(node.log("talk", "main", "follow=true").await, "line 1\nline 2\nline 3\nlate\nlast\n");
        assert_eq!(node.log("talk", "main", "tailLines=2").await, "late\nlast\n");
        assert_eq!(node.ask("stranger", "/containerLogs/default/talk/main").await.0, 403);
        assert_eq!(node.ask("caller", "/containerLogs/default/talk/none").await.0, 400);
        assert_eq!(node.ask("caller", "/healthz").await, (200, "ok".to_owned()));
    });
}
