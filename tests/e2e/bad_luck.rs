//! What pods may count on, and what goes wrong around them: a runtime that dies, a control plane that is away, a host that was rebooted,
//! a disk that is full, a host that cannot carry machines at all.

use crate::harness::{Operated, Story, assert_gone, binary, http_get, text, until};
use kprov::engine::Cluster;
use kprov::providers::local::leftovers;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One pod per promise. `IMAGE` and `SHOP` (the address of the shop's service) are filled in; programs to look with are the machine's own.
const PROMISES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: red, taste: sweet}
---
apiVersion: v1
kind: Secret
metadata: {name: words}
stringData: {first: sesame, second: abracadabra}
---
apiVersion: v1
kind: Service
metadata: {name: peers}
spec: {clusterIP: None, selector: {app: peer}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: left, labels: {app: peer}}
spec:
  hostname: left
  subdomain: peers
  containers:
    - name: demo
      IMAGE
      args: [demo]
      env: [{name: POD_NAME, valueFrom: {secretKeyRef: {name: words, key: first}}}]
      ports: [{name: http, containerPort: 8080}]
      lifecycle: {postStart: {httpGet: {host: SHOP, port: 80, path: /healthz}}}
      livenessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
      readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: refused}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: demo
      IMAGE
      args: [demo]
      lifecycle: {postStart: {httpGet: {host: SHOP, port: 80, path: /nowhere}}}
---
apiVersion: v1
kind: Pod
metadata: {name: deaf}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: demo
      IMAGE
      args: [demo]
      livenessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec: {containers: [{name: demo, image: "example.dev/absent:1", imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  containers:
    - name: demo
      IMAGE
      args: [demo]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
      lifecycle: {preStop: {sleep: {seconds: 25}}}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {app: reader}}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}
  containers:
    - name: shell
      IMAGE
      command: [/usr/bin/bash, -c]
      args:
        - |
          PATH=/usr/bin
          if test -e /disk/lived; then
            until test -e /projected/late; do sleep 0.1; done
            echo second life, $(cat /projected/late); exit 0
          fi
          address() { until getent ahostsv4 $1 >/dev/null; do sleep 0.1; done; echo $1 $(getent ahostsv4 $1 | grep -m1 STREAM | cut -d' ' -f1); }
          address kubernetes.default.svc.cluster.local
          address left.peers
          exec 3<>/dev/tcp/left.peers.default.svc/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep Hello <&3
          echo variables: $ONE $SECRET_second [$NONE] $HOSTNAME
          echo listed: $(ls /projected), none: [$(ls /nothing)]
          for file in /projected/{a/colour,word,labels,cpu} /config/taste; do echo $file $(cat $file) $(stat -L -c %a:%g $file); done
          echo memory: $(stat -f -c %T /memory) $(df --output=size /memory | tail -n 1)
          echo mine: $(cat /mine/name), disk: $(ls /disk)
          touch /mine/own && echo mine is writable
          touch /disk/lived; echo first life; exit 3
      env:
        - {name: ONE, valueFrom: {secretKeyRef: {name: words, key: first}}}
        - {name: NONE, valueFrom: {secretKeyRef: {name: nowhere, key: a, optional: true}}}
        - &name {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
      envFrom:
        - {prefix: SECRET_, secretRef: {name: words}}
        - {secretRef: {name: nowhere, optional: true}}
      resources: {limits: {cpu: 200m, memory: 64Mi}}
      volumeMounts: &mounts
        - {name: projected, mountPath: /projected}
        - {name: nothing, mountPath: /nothing}
        - {name: config, mountPath: /config/taste, subPath: taste}
        - {name: disk, mountPath: /disk}
        - {name: disk, mountPath: /mine, subPathExpr: of-$(POD)}
        - {name: memory, mountPath: /memory}
        - {name: host, mountPath: /host}
        - {name: usr, mountPath: /usr, readOnly: true}
        - {name: lib, mountPath: /lib, readOnly: true}
        - {name: lib64, mountPath: /lib64, readOnly: true}
  initContainers:
    - name: first
      IMAGE
      command: [/usr/bin/bash, -c, "echo of $POD > /mine/name; echo from $POD > /host/note; : > /usr/x || echo read only >> /mine/name"]
      securityContext: {runAsUser: 0}
      env: [*name]
      volumeMounts: *mounts
  volumes:
    - name: projected
      projected:
        defaultMode: 0440
        sources:
          - configMap: {name: settings, items: [{key: colour, path: a/colour}]}
          - secret: {name: words, items: [{key: second, path: word}]}
          - downwardAPI:
              items:
                - {path: labels, fieldRef: {fieldPath: metadata.labels}}
                - {path: cpu, resourceFieldRef: {containerName: shell, resource: limits.cpu, divisor: 1m}}
          - configMap: {name: later, optional: true}
    - {name: nothing, secret: {secretName: nowhere, optional: true}}
    - {name: config, configMap: {name: settings}}
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
    - {name: host, hostPath: {path: /run/promises, type: DirectoryOrCreate}}
    - {name: usr, hostPath: {path: /usr, type: Directory}}
    - {name: lib, hostPath: {path: /lib}}
    - {name: lib64, hostPath: {path: /lib64}}
"#;

#[test]
fn pods_use_what_kubernetes_promises() {
    let story = Story::new("promises");
    up(&story, &story.example());
    let shop = story.kubectl_ok(&["get", "service", "web", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}"]);
    apply(&story, &PROMISES.replace("SHOP", &shop));

    let reason = "{.status.containerStatuses[0].state.waiting.reason}=ErrImageNeverPull";
    wait(&story, "pod/absent", reason);
    // Before the back-off lets it die a second time.
    wait(&story, "pod/deaf", "{.status.containerStatuses[0].restartCount}=1");
    until_event(&story, "deaf", "Liveness probe failed: dial tcp");
    wait(&story, "pod/refused", "{.status.containerStatuses[0].state.terminated}");
    until_event(&story, "refused", "HTTP probe failed with statuscode: 404");

    story.kubectl_ok(&["wait", "pod/slow", "--for=condition=Ready", "--timeout=60s"]);
    let begun = Instant::now();
    story.kubectl_ok(&["delete", "pod", "slow", "--grace-period=2", "--timeout=60s"]);
    let taken = begun.elapsed();
    assert!(taken >= Duration::from_secs(2), "a preStop hook has the grace period: {taken:?}");
    assert!(taken < Duration::from_secs(15), "and no more, whatever it would like: {taken:?}");

    story.kubectl_ok(&["wait", "pod/left", "--for=condition=Ready", "--timeout=60s"]);
    wait(&story, "pod/reader", "{.status.containerStatuses[0].restartCount}=1");
    story.kubectl_ok(&["create", "configmap", "later", "--from-literal=late=found later"]);
    wait(&story, "pod/reader", "{.status.phase}=Succeeded");
    assert_eq!(story.kubectl_ok(&["logs", "reader", "-c", "shell"]), "second life, found later\n");
    let address = field(&story, "left", "{.status.podIP}");
    let expected = format!(
        r#"kubernetes.default.svc.cluster.local 10.96.0.1
left.peers {address}
Hello from sesame.
variables: sesame abracadabra [] reader
listed: a cpu labels word, none: []
/projected/a/colour red 440:3000
/projected/word abracadabra 440:3000
/projected/labels app="reader" 440:3000
/projected/cpu 200 440:3000
/config/taste sweet 644:3000
memory: tmpfs 1024
mine: of reader read only, disk: of-reader
mine is writable
first life
"#
    );
    assert_eq!(story.kubectl_ok(&["logs", "reader", "-c", "shell", "--previous"]), expected);
    let note = story.ok(&["ssh", &story.name, &field(&story, "reader", "{.spec.nodeName}"), "--", "cat", "/run/promises/note"]);
    assert_eq!(note, "from reader\n");
    assert_eq!(field(&story, "left", "{.status.containerStatuses[0].restartCount}"), "0", "its hook and its probes say yes");
}

/// A pod on worker-1 that serves.
const SERVING: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: worker-1}
  containers:
    - name: demo
      IMAGE
      args: [demo]
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
"#;

#[test]
fn containerd_that_dies_costs_no_pod() {
    let story = Story::new("runtime");
    let address = up(&story, &story.example());
    let serving = |name: &str| {
        apply(&story, &SERVING.replace("NAME", name));
        story.kubectl_ok(&["wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=60s"]);
    };
    serving("steady");
    serving("unlucky");
    let uid = field(&story, "steady", "{.metadata.uid}");
    let (container, process) = (field(&story, "steady", CONTAINER), demo(&uid).expect("it runs"));
    let unlucky = demo(&field(&story, "unlucky", "{.metadata.uid}")).expect("it runs");

    // At once: whoever would be told of a container's end is dead itself.
    let runtime = || inside(&story, "worker-1", |words| words[0].ends_with("/containerd"));
    let dead = runtime().expect("containerd runs");
    send(dead, Signal::SIGKILL);
    send(unlucky, Signal::SIGKILL);
    wait(&story, "pod/unlucky", "{.status.containerStatuses[0].restartCount}=1");
    assert!(runtime().is_some_and(|pid| pid != dead), "another containerd runs");
    story.kubectl_ok(&["wait", "node/worker-1", "--for=condition=Ready", "--timeout=60s"]);
    serving("fresh");

    assert_eq!((field(&story, "steady", CONTAINER), demo(&uid)), (container, Some(process)), "nothing happened to it");
    assert!(http_get(&address, "/").expect("the load balancer serves").contains("Hello from web-"));
    // The new containerd reaches what the old one started.
    story.kubectl_ok(&["delete", "pod", "steady", "--timeout=60s"]);
    assert_eq!(demo(&uid), None);
}

#[test]
fn a_control_plane_that_is_away_for_a_while_is_not_missed() {
    let story = Story::new("away");
    let address = up(&story, &story.example());
    let pods = || story.kubectl_ok(&["get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].metadata.uid}"]);
    let before = pods();
    let one = ["get", "pods", "-n", "shop", "-l", "app=web", "-o"];
    let uid = story.kubectl_ok(&[&one[..], &["jsonpath={.items[0].metadata.uid}"]].concat());
    let name = story.kubectl_ok(&[&one[..], &["name"]].concat()).lines().next().expect("a pod").to_owned();
    let serves = || (0..10).all(|_| http_get(&address, "/").is_ok_and(|answer| answer.contains("Hello from web-")));
    let server = || inside(&story, "control-1", |words| words.get(1).is_some_and(|word| word == "server"));

    let stopped = server().expect("the server runs");
    send(stopped, Signal::SIGSTOP);
    let asked = story.kubectl(&["get", "nodes", "--request-timeout=1s"]);
    assert!(!asked.status.success(), "the control plane is away: {}", text(&asked));
    assert!(serves(), "the load balancer needs no control plane");
    let first = demo(&uid).expect("it runs");
    send(first, Signal::SIGKILL);
    until("a container that ended is started again", || demo(&uid).is_some_and(|pid| pid != first));
    until("all replicas serve", serves);
    let asked = story.kubectl(&["get", "nodes", "--request-timeout=1s"]);
    assert!(!asked.status.success(), "it is still away: {}", text(&asked));
    send(stopped, Signal::SIGCONT);

    let restarts =
        || story.kubectl(&["get", &name, "-n", "shop", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]).stdout == b"1";
    until("the API hears of the restart", restarts);
    for _ in 0..3 {
        let running = server().expect("the server runs");
        send(running, Signal::SIGKILL);
        assert!(serves(), "the load balancer serves on");
        until("the server is started again", || server().is_some_and(|pid| pid != running));
    }
    until("the API is ready", || story.kubectl(&["get", "--raw", "/readyz", "--request-timeout=1s"]).status.success());
    story.kubectl_ok(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=60s"]);
    story.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "shop", "--timeout=60s"]);
    assert_eq!(pods(), before, "nobody was replaced");
    assert!(restarts(), "it was started again once");
}

#[test]
fn a_host_that_was_rebooted_gets_its_cluster_back_with_one_up() {
    let story = Story::new("reboot");
    let blueprint = story.example();
    let address = up(&story, &blueprint);
    story.kubectl_ok(&["create", "configmap", "kept", "--from-literal=word=sesame"]);
    let identity = || {
        let uid = |kind: &str, name: &str| story.kubectl_ok(&["get", kind, name, "-o", "jsonpath={.metadata.uid} {.data.word}"]);
        [uid("namespace", "kube-system"), uid("configmap", "kept"), uid("node", "worker-1")]
    };
    let before = identity();
    let cluster = story.cluster();

    reboot(&cluster);
    let answers = || http_get(&address, "/").is_ok_and(|answer| answer.contains("Sharing /media with: web-"));
    assert!(!answers(), "nothing is left that could answer");
    let plan = story.ok(&["plan", blueprint.to_str().expect("path")]);
    assert!(plan.contains("Plan: 0 to create") && plan.contains("~ host/worker-1"), "what is on disk is mended, not made: {plan}");
    assert_eq!(up(&story, &blueprint), address);
    assert!(answers(), "it serves again");
    assert_eq!(identity(), before, "the same cluster with the same objects");
    story.kubectl_ok(&["wait", "nodes", "--all", "--for=condition=Ready", "--timeout=60s"]);
    let plan = story.kprov(&["plan", blueprint.to_str().expect("path"), "--exit-code"]);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));

    // Once more, and for a while something is in the way of its network: the cloud says so, and goes on by itself once that is gone.
    let left = leftovers(&cluster);
    let namespace = left.iter().find_map(|line| line.strip_prefix("network namespace ")).expect("the cluster's network");
    reboot(&cluster);
    std::fs::create_dir_all(namespace).expect("something in the way");
    let status = || text(&story.kprov(&["status", &story.name]));
    let said = status();
    let told = |thing: &str, why: &str| said.lines().any(|line| line.trim().starts_with(thing) && line.contains(why));
    assert!(told("network/", "broken: could not make the network"), "{said}");
    assert!(told("machine/worker-1", "broken: stopped") && told("filesystem/media", "ready"), "{said}");
    std::fs::remove_dir(namespace).expect("it is empty");
    until("the control plane is back with nobody asking", || {
        status().lines().any(|line| line.contains("machine/control-1") && line.ends_with("ready"))
    });

    // And then nobody wants it any more.
    reboot(&cluster);
    story.ok(&["down", &story.name, "--yes"]);
    assert_gone(&cluster);
}

/// Takes everything of a cluster that a reboot of its host would take, and nothing else.
fn reboot(cluster: &Cluster) {
    let left = |kind: &str| leftovers(cluster).into_iter().filter_map(|line| Some(line.strip_prefix(kind)?.to_owned())).collect::<Vec<_>>();
    // Held first, or one would start another again.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for process in left("process ") {
            let pid = process.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a number");
            // Machines go with their first process meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
    until("no process is left", || left("process ").is_empty());
    for namespace in left("network namespace ") {
        nix::mount::umount2(Path::new(&namespace), nix::mount::MntFlags::MNT_DETACH).expect("it is mounted");
        std::fs::remove_file(namespace).expect("it is a file");
    }
    until("the link is gone with its namespace", || left("link ").is_empty());
    left("control group ").iter().for_each(|group| remove_group(Path::new(group)));
    assert_eq!(leftovers(cluster), left("folder ").iter().map(|folder| format!("folder {folder}")).collect::<Vec<_>>());
}

/// The folders only: what is in them are the kernel's own files.
fn remove_group(group: &Path) {
    let inside = std::fs::read_dir(group).expect("a control group").flatten();
    inside.filter(|entry| entry.path().is_dir()).for_each(|entry| remove_group(&entry.path()));
    until("a control group is empty", || std::fs::remove_dir(group).is_ok());
}

/// kprov on a host that looks otherwise: `script` changes mounts and links of its own first.
fn elsewhere(story: &Story, script: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]);
    command.arg(binary()).args(arguments).env("KPROV_HOME", story.home()).stdin(Stdio::null()).output().expect("unshare starts")
}

#[test]
fn what_a_host_lacks_is_said_at_once_and_before_anything_is_made() {
    let story = Story::new("lacks");
    let blueprint = story.example();
    let up = ["up", blueprint.to_str().expect("path"), "--yes"];
    let check = |output: Output, parts: &[&str]| {
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} in: {said}");
        }
        let exists = kprov::providers::local::clusters().expect("this host is readable").iter().any(|cluster| cluster.name == story.name);
        assert!(!exists, "nothing was made: {said}");
    };
    let filesystems = story.write("filesystems", "nodev\ttmpfs\n\text4\n");
    let poor = format!(
        "mount --bind {} /proc/filesystems
         if test -d /lib/modules; then mount -t tmpfs none /lib/modules; fi
         umount -R -l /sys/fs/cgroup
         mount --bind /dev/null \"$(command -v nft)\"",
        filesystems.display()
    );
    check(
        elsewhere(&story, &poor, &up),
        &[
            "could not use this host for machines: 3 problems",
            "overlay: the kernel has no overlay filesystem",
            "control groups: no cpu, memory, pids controller",
            "nft: not installed",
            "hint: use a kernel with CONFIG_OVERLAY_FS",
            "hint: apt-get install nftables",
        ],
    );
    let crowded = "ip link set lo up; for network in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16; do ip route add blackhole $network; done";
    check(elsewhere(&story, crowded, &up), &["network: this host has routes to all private networks", "hint: see `ip route`"]);
    let container = "mount -t tmpfs none /run; mkdir /run/lower /run/upper /run/work
         mount -t overlay none -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work /var/lib";
    check(elsewhere(&story, container, &up), &["is itself on an overlay", "hint: mount a disk or tmpfs at /var/lib/kprov/local"]);

    // Somebody who is not root, with a program and a home that anybody may use.
    std::fs::set_permissions(story.path(""), std::fs::Permissions::from_mode(0o755)).expect("the story's folder");
    let (program, home) = (story.path("kprov"), story.path("nobody"));
    std::fs::copy(binary(), &program).expect("a copy of kprov");
    std::fs::create_dir(&home).expect("a home");
    std::os::unix::fs::chown(&home, Some(65534), Some(65534)).expect("nobody's home");
    let mut nobody = Command::new(program);
    nobody.args(up).env("KPROV_HOME", home).stdin(Stdio::null()).uid(65534).gid(65534);
    check(nobody.output().expect("kprov starts"), &["hint: run kprov as root (sudo)"]);
}

/// Takes the place of the server's folder: so small that it can be filled up.
const SMALL_DISK: &str = r#"set -e
kprov service stop kprov-server
until kprov service status | grep -A1 '"kprov-server"' | grep -q stopped; do sleep 0.02; done
cp -a /var/lib/kprov/server /run/server
mount -t tmpfs -o size=8m,mode=0700 small /var/lib/kprov/server
cp -a /run/server/. /var/lib/kprov/server
kprov service start kprov-server
"#;

#[test]
fn a_full_disk_loses_nothing_and_the_api_is_back_once_there_is_space() {
    let story = Story::new("full");
    let text_of = format!(
        "apiVersion: kprov.dev/v1\nkind: Blueprint\nmetadata: {{name: {}}}\nspec:\n  provider: local\n  machines:\n    - {{name: control, role: control-plane, count: 1, size: {{cpu: 1, memory: 1Gi, disk: 10Gi}}}}\n",
        story.name
    );
    let blueprint = story.write("blueprint.yaml", &text_of);
    story.ok(&["up", blueprint.to_str().expect("path"), "--yes"]);
    let on_machine = |script: &str| story.ok(&["ssh", &story.name, "control-1", "--", script]);
    let ready = || story.kubectl(&["get", "--raw", "/readyz", "--request-timeout=1s"]).status.success();
    on_machine(SMALL_DISK);
    until("the API is back on its small disk", ready);

    // What fills it are objects; the ballast only makes that quick.
    on_machine("head -c 4M /dev/zero > /var/lib/kprov/server/ballast");
    let large = story.write("large", &"0123456789abcdef".repeat(50_000));
    let from = format!("--from-file={}", large.display());
    let create = |name: &str| story.kubectl(&["create", "configmap", name, &from]);
    let names: Vec<String> = (1..=10).map(|number| format!("large-{number}")).collect();
    let (mut kept, mut refused) = (Vec::new(), None);
    for name in &names {
        let output = create(name);
        match output.status.success() {
            true => kept.push(name),
            false => {
                refused = Some((name, text(&output)));
                break;
            }
        }
    }
    let (refused, why) = refused.expect("ten of them do not fit");
    assert!(why.contains("could not write to the store") && why.contains("No space left on device"), "{why}");
    assert!(!kept.is_empty(), "the first one fits");

    on_machine("rm /var/lib/kprov/server/ballast");
    until("the API is back", ready);
    let services: Value = serde_json::from_str(&on_machine("kprov service status")).expect("JSON");
    let server = services.as_array().and_then(|all| all.iter().find(|one| one["name"] == "kprov-server")).expect("the server");
    assert!(server["restarts"].as_u64() >= Some(1), "a server that cannot write ends: {server}");
    for name in kept {
        let size = story.kubectl_ok(&["get", "configmap", name, "-o", "jsonpath={.data.large}"]).len();
        assert_eq!(size, 800_000, "{name} was acknowledged");
    }
    // Of a write that failed nobody knows how far it came: what was refused is there as a whole, or not at all.
    let found = story.kubectl(&["get", "configmap", refused, "-o", "jsonpath={.data.large}"]);
    assert!(!found.status.success() || found.stdout.len() == 800_000, "{refused} is whole");
    assert!(create("later").status.success(), "there is space again");
    story.kubectl_ok(&["wait", "node/control-1", "--for=condition=Ready", "--timeout=60s"]);
}

const CONTAINER: &str = "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";

/// Brings it up; where its load balancer answers.
fn up(story: &Story, blueprint: &Path) -> String {
    let up: Value = serde_json::from_str(&story.ok(&["up", blueprint.to_str().expect("path"), "--yes", "-o", "json"])).expect("JSON");
    format!("{}:80", up["loadBalancers"][0]["address"].as_str().expect("the load balancer's address"))
}

fn apply(story: &Story, manifest: &str) {
    let manifest: PathBuf =
        story.write("manifest.yaml", &manifest.replace("IMAGE", "image: kprov.dev/kprov:latest\n      imagePullPolicy: Never"));
    story.kubectl_ok(&["apply", "-f", manifest.to_str().expect("path")]);
}

/// Until a field (`{path}`), or one of this value (`{path}=value`), is there.
fn wait(story: &Story, object: &str, field: &str) {
    let (path, value) = field.split_once("}=").map_or((field.to_string(), None), |(path, value)| (format!("{path}}}"), Some(value)));
    let path = format!("jsonpath={path}");
    until(field, || {
        let found = story.kubectl(&["get", object, "-o", &path]).stdout;
        value.map_or(!found.is_empty(), |value| found == value.as_bytes())
    });
}

/// Fields of a pod.
fn field(story: &Story, pod: &str, fields: &str) -> String {
    story.kubectl_ok(&["get", "pod", pod, "-o", &format!("jsonpath={fields}")])
}

fn until_event(story: &Story, pod: &str, message: &str) {
    let about = format!("--field-selector=involvedObject.name={pod}");
    until(message, || story.kubectl_ok(&["get", "events", &about]).contains(message));
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

/// The demo application's process in a pod, as the host sees it.
fn demo(pod_uid: &str) -> Option<i32> {
    let of_pod = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(pod_uid));
    process(|pid, words| words.get(1).is_some_and(|word| word == "demo") && of_pod(pid))
}

/// A process of a machine itself, not of its containers.
fn inside(story: &Story, machine: &str, wanted: impl Fn(&[String]) -> bool) -> Option<i32> {
    let space = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = space(story.machine_pid(machine)).expect("the machine runs");
    process(|pid, words| wanted(words) && space(pid).as_ref() == Some(&own))
}

fn process(wanted: impl Fn(i32, &[String]) -> bool) -> Option<i32> {
    let pids = std::fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> = command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        wanted(*pid, &words)
    })
}
