//! The API alone, on loopback, with the real kubectl as its client. Needs no root.

use kprov::bootstrap::trust::{Authority, ServerNames, Trust, kubeconfig};
use kprov::engine::Cluster;
use kprov::orchestrator::api::{Server, server_tls};
use kprov::orchestrator::config::ServerConfig;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

struct Api {
    folder: tempfile::TempDir,
    /// Ends with the test.
    runtime: tokio::runtime::Runtime,
}

impl Api {
    fn start() -> Api {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let pki = folder.path().join("pki");
        let now = SystemTime::now();
        let cluster = Cluster { name: "shop".into(), uid: "6f0b7c86-3f5a-4c4e-8a6f-1d1b7c0a5e11".into() };
        let trust = Trust::create(&cluster, now).expect("keys");
        let authority = Authority::load(&trust.ca).expect("an authority");
        let names = ServerNames {
            node: "control-plane",
            advertise: [127, 0, 0, 1].into(),
            service: [10, 96, 0, 1].into(),
            domain: "cluster.local",
            others: &[],
        };
        let (server, kubelet) =
            (authority.server(&names, now).expect("a certificate"), authority.kubelet_client(now).expect("a certificate"));
        std::fs::create_dir(&pki).expect("a folder");
        let files: [(&str, &[u8]); 9] = [
            ("ca.crt", trust.ca.certificate.as_bytes()),
            ("ca.key", trust.ca.key.as_bytes()),
            ("server.crt", server.certificate.as_bytes()),
            ("server.key", server.key.as_bytes()),
            ("kubelet-client.crt", kubelet.certificate.as_bytes()),
            ("kubelet-client.key", kubelet.key.as_bytes()),
            ("sa.key", trust.service_account_key.as_bytes()),
            ("sa.pub", trust.service_account_public.as_bytes()),
            ("encryption.key", &trust.encryption_key),
        ];
        for (name, bytes) in files {
            std::fs::write(pki.join(name), bytes).expect("a key file");
        }
        let text = kubeconfig::render("shop", &format!("https://127.0.0.1:{port}"), &trust.ca.certificate, &trust.admin);
        std::fs::write(folder.path().join("kubeconfig"), text).expect("a kubeconfig");
        let config: ServerConfig =
            serde_json::from_value(json!({"clusterName": "shop", "clusterUid": cluster.uid, "bind": "127.0.0.1", "port": port,
            "advertise": "127.0.0.1", "data": folder.path().join("data"), "pki": pki, "serviceCidr": "10.96.0.0/16",
            "podCidr": "10.244.0.0/16", "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local"}))
            .expect("a configuration");
        let tls = server_tls(&config.pki).expect("TLS");
        let server = runtime.block_on(Server::open(config)).expect("a server");
        runtime.spawn(async move { server.serve(listener, tls).await });
        Api { folder, runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).arg("--cache-dir").arg(self.path("cache")).args(arguments);
        command
    }

    /// (succeeded, stdout, stderr)
    fn run(&self, arguments: &[&str], input: &str) -> (bool, String, String) {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl starts");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    fn ok(&self, arguments: &[&str], input: &str) -> String {
        let (succeeded, out, err) = self.run(arguments, input);
        assert!(succeeded, "kubectl {arguments:?}\n{out}\n{err}");
        out
    }

    /// The words of the command line, what stdout must hold.
    fn check(&self, line: &str, expected: &[&str]) {
        let out = self.ok(&line.split(' ').collect::<Vec<_>>(), "");
        for expected in expected {
            assert!(out.contains(expected), "kubectl {line}: no {expected:?} in\n{out}");
        }
    }

    /// Of kubectl's own version: older ones lack some commands.
    fn minor(&self) -> u32 {
        let version: Value = serde_json::from_str(&self.ok(&["version", "--client", "-o", "json"], "")).expect("JSON");
        let minor = version["clientVersion"]["minor"].as_str().expect("a version").trim_end_matches('+');
        minor.parse().expect("a number")
    }

    fn refused(&self, line: &str, input: &str, expected: &str) {
        let (succeeded, out, err) = self.run(&line.split(' ').collect::<Vec<_>>(), input);
        assert!(!succeeded && err.contains(expected), "kubectl {line}: no {expected:?} in\n{out}\n{err}");
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let runtime = std::mem::replace(&mut self.runtime, tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
        runtime.shutdown_background();
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: "example/web:1", ports: [{containerPort: 8080}]}
      - {name: side, image: "example/side:1"}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

#[test]
fn kubectl_works_unchanged() {
    let api = Api::start();
    api.check("version", &["Server Version", "v1.33.0+kprov"]);
    api.check("get --raw /readyz", &["ok"]);
    api.check("api-resources", &["deployments", "deploy", "apps/v1", "blueprints", "kprov.dev/v1"]);
    api.check("api-versions", &["apps/v1", "v1"]);
    api.check("get namespaces", &["NAME", "STATUS", "kube-system", "Active"]);
    api.check("get all -A", &["service/kubernetes", "10.96.0.1", "service/kube-dns", "10.96.0.10"]);
    api.check("auth can-i delete nodes", &["yes"]);
    api.check("create serviceaccount default", &["created"]);
    if api.minor() >= 28 {
        api.check("auth whoami", &["kprov:admin", "system:masters"]);
        api.check("create token default", &["ey"]);
    }

    let applied = api.ok(&["apply", "-f", "-"], WEB);
    assert!(applied.contains("deployment.apps/web created") && applied.contains("service/web created"), "{applied}");
    let again = api.ok(&["apply", "-f", "-"], WEB);
    assert!(again.contains("deployment.apps/web unchanged") && again.contains("service/web unchanged"), "{again}");
    let changed = api.ok(&["apply", "-f", "-"], &WEB.replace("web:1", "web:2"));
    assert!(changed.contains("deployment.apps/web configured"), "{changed}");
    api.check("get deployment web -o jsonpath={.spec.template.spec.containers[*].image}", &["example/web:2 example/side:1"]);
    api.check("get deploy", &["READY", "UP-TO-DATE", "0/2"]);
    api.check("get deploy -o wide", &["CONTAINERS", "IMAGES", "app=web"]);
    api.check("get deploy web -o yaml", &["kind: Deployment", "revisionHistoryLimit: 10"]);
    api.check("describe deployment web", &["RollingUpdate", "example/web:2", "2 desired"]);
    api.check("describe service web", &["NodePort", "10.96."]);
    api.check("scale deployment web --replicas=4", &["scaled"]);
    api.check("get deploy web -o jsonpath={.spec.replicas}/{.metadata.generation}", &["4/3"]);
    api.check("set image deployment/web side=example/side:2", &["image updated"]);
    api.check("label deploy web tier=front", &["labeled"]);
    api.check("annotate deploy web note=x", &["annotated"]);
    api.check("get deploy -l tier=front -o name", &["deployment.apps/web"]);
    api.check("get deploy --field-selector metadata.name=other -o name", &[""]);
    api.check("explain deployment.spec.replicas", &["FIELD:", "replicas", "integer"]);
    api.check("explain pod --recursive", &["containers"]);
    let (_, diff, _) = api.run(&["diff", "-f", "-"], &WEB.replace("web:1", "web:3"));
    assert!(diff.contains("+") && diff.contains("example/web:3"), "{diff}");

    let typo = WEB.replace("replicas: 2", "replcias: 2");
    // The server says it of `spec.replcias`; kubectl before 1.25 already when it validates.
    api.refused("apply -f -", &typo, "replcias");
    api.refused("create -f -", WEB, "deployments.apps \"web\" already exists");
    api.refused("get pod nothing", "", "Error from server (NotFound): pods \"nothing\" not found");
    api.refused("get nonsense", "", "the server doesn't have a resource type \"nonsense\"");
    api.refused("delete namespace default", "", "this namespace may not be deleted");

    api.check("run one --image=example/web:1", &["pod/one created"]);
    api.check("get pods", &["one", "0/1", "Pending"]);
    api.check("describe pod one", &["kube-api-access-", "node.kubernetes.io/not-ready:NoExecute op=Exists for 300s"]);
    api.check("delete pod one", &["deleted"]);
    api.check("create configmap settings --from-literal=a=b", &["created"]);
    api.check("patch configmap settings --type=merge -p {\"data\":{\"c\":\"d\"}}", &["patched"]);
    api.check("patch configmap settings --type=json -p [{\"op\":\"remove\",\"path\":\"/data/a\"}]", &["patched"]);
    api.check("get configmap settings -o jsonpath={.data}", &["{\"c\":\"d\"}"]);
    api.check("create secret generic secret --from-literal=password=hunter2", &["created"]);
    api.check("get secret secret", &["Opaque"]);
    api.check("replace -f - --dry-run=server", &[""]);
    api.check("delete deployment,service,configmap --all", &["\"web\" deleted"]);
    api.check("create namespace gone", &["created"]);
    api.check("get events -A", &[""]);
    api.check("cluster-info", &["Kubernetes control plane"]);
    let store = std::fs::read(api.path("data/store.redb")).expect("the store");
    assert!(
        !store.windows(7).any(|part| part == b"hunter2") && !store.windows(12).any(|part| part == b"aHVudGVyMg=="),
        "a Secret is on disk"
    );
}

#[test]
fn watching_kubectl_sees_changes_as_they_happen() {
    use std::io::BufRead;
    let api = Api::start();
    let mut watch = api.command(&["get", "configmaps", "-w", "-o", "name"]).stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let mut lines = std::io::BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    for name in ["one", "two"] {
        api.check(&format!("create configmap {name}"), &["created"]);
        assert_eq!(lines.next().expect("a line").expect("text"), format!("configmap/{name}"));
    }
    watch.kill().expect("kubectl is there");
    watch.wait().expect("kubectl ends");
}

/// A kubelet that knows one answer, and asks for the API server's certificate.
async fn kubelet(listener: tokio::net::TcpListener, tls: std::sync::Arc<rustls::ServerConfig>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = tokio_rustls::TlsAcceptor::from(tls.clone()).accept(stream).await.expect("a certificate of the cluster");
        let user = kprov::orchestrator::api::authn::from_certificate(&stream.get_ref().1.peer_certificates().expect("a certificate")[0]);
        assert_eq!(user.expect("a name").name, "kprov:api-server");
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.expect("a request");
        let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned();
        let body = format!("{line}\n");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.expect("an answer");
    }
}

#[test]
fn logs_come_from_the_nodes_kubelet() {
    let api = Api::start();
    let listener = api.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // The API's own serving certificate is good for 127.0.0.1 as well.
    api.runtime.spawn(kubelet(listener, server_tls(&api.path("pki")).expect("TLS")));
    let status =
        json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker"}, "status": status});
    api.ok(&["create", "-f", "-"], &node.to_string());
    api.check("create serviceaccount default", &["created"]);
    api.check("run web --image=example/web:1", &["created"]);
    assert_eq!(api.ok(&["logs", "web"], ""), "", "it is on no node yet");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "worker"}});
    api.ok(&["create", "--raw", "/api/v1/namespaces/default/pods/web/binding", "-f", "-"], &binding.to_string());
    api.check("logs web --tail=5", &["GET /containerLogs/default/web/web?tailLines=5 HTTP/1.1"]);
    api.refused("logs web -c other", "", "container other is not valid for pod web");
}

#[test]
fn nobody_gets_in_without_a_certificate() {
    let api = Api::start();
    let text = std::fs::read_to_string(api.path("kubeconfig")).expect("a kubeconfig");
    let mut config: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
    config["users"][0]["user"] = json!({"token": "nonsense"});
    std::fs::write(api.path("kubeconfig"), config.to_string()).expect("a kubeconfig");
    api.refused("get pods", "", "must be logged in");
}
