//! AWS, emulated: moto with a strict layer, a proxy that lies in front, and real machines, load balancers and mounts behind it.

use super::balancers::{Balancers, Target, Wish};
use super::http::{Request, answer, ask};
use super::machines::{Machines, Spec};
use super::metadata::{Identity, Metadata};
use super::namespace::{HOME, Namespace};
use super::operator::Operator;
use super::proxy::{Call, Dialect, Proxy};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const MOTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/rig/moto_strict.py");
/// What the example's location is on AWS.
pub const REGION: &str = "eu-west-1";

const API_PORT: u16 = 4566;
const MOTO_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
const CONTROL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);
/// A new target is on probation: AWS says nothing good of one before its checks have passed.
const PROBATION: Duration = Duration::from_millis(1200);
/// How long a machine that does not exist takes to boot, and what it says of itself.
const BOOT: Duration = Duration::from_millis(300);
const GHOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhvc3R";
const LOOK_SECONDS: &str = "0.25";

/// The python that has moto; made at its first use.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/moto");
        let output = Command::new(script).output().expect("scripts/moto");
        assert!(output.status.success(), "{}", crate::harness::text(&output));
        String::from_utf8_lossy(&output.stdout).trim().into()
    })
}

pub struct Aws {
    pub namespace: Namespace,
    pub proxy: Proxy,
    pub machines: Arc<Machines>,
    moto: Child,
    end: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

/// Something that exists in the account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Row {
    pub kind: String,
    pub id: String,
    #[serde(default)]
    pub tags: BTreeMap<String, Option<String>>,
    /// Rules, routes, listeners, targets.
    #[serde(default)]
    pub detail: Vec<String>,
}

impl Aws {
    pub fn start() -> Aws {
        Self::begin(false)
    }

    /// The cloud alone: what it says to run does not. Networks of two clusters may use the same addresses then.
    pub fn without_machines() -> Aws {
        Self::begin(true)
    }

    fn begin(ghosts: bool) -> Aws {
        crate::harness::require_root();
        let namespace = Namespace::new();
        let moto = start_moto(&namespace);
        let machines = Arc::new(Machines::new(&namespace));
        let listen = SocketAddr::from((HOME, API_PORT));
        let proxy = Proxy::start(&namespace, listen, MOTO_ADDRESS, DIALECT);
        let end = Arc::new(AtomicBool::new(false));
        let keeper = Keeper::new(&namespace, machines.clone(), end.clone(), ghosts);
        let keeper = Some(namespace.thread(move || keeper.run()));
        Aws { namespace, proxy, machines, moto, end, keeper }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{HOME}:{API_PORT}")
    }

    /// Somebody with credentials: where the cloud is and who asks, all by the usual environment.
    pub fn operator(&self) -> Operator {
        self.operator_as("AKIAOPERATOR")
    }

    pub fn operator_as(&self, access_key: &str) -> Operator {
        self.operator_told(access_key, &[("AWS_ENDPOINT_URL", &self.endpoint())])
    }

    /// Somebody whose environment says this of endpoints.
    pub fn operator_told(&self, access_key: &str, endpoints: &[(&str, &str)]) -> Operator {
        let who = [("AWS_ACCESS_KEY_ID", access_key), ("AWS_SECRET_ACCESS_KEY", "rig"), ("AWS_EC2_METADATA_DISABLED", "true")];
        Operator::new(&self.namespace, "aws", &[&who[..], endpoints].concat())
    }

    /// All that exists, but for terminated instances.
    pub fn dump(&self) -> Vec<Row> {
        serde_json::from_str(&self.control("GET", "/dump", "")).expect("rows")
    }

    /// A stranger's things, named and tagged almost like a cluster's.
    pub fn decoys(&self, uid: &str, name: &str) {
        self.control("POST", &format!("/decoys?region={REGION}"), &json!({"uid": uid, "name": name}).to_string());
    }

    /// As a person in the console would, past kprov and past the proxy.
    pub fn terminate(&self, instance: &str) {
        self.query("ec2", &format!("Action=TerminateInstances&Version=2016-11-15&InstanceId.1={instance}"));
    }

    /// Who was refused what by a policy, as `ACCESS-KEY service:Action on RESOURCE`.
    pub fn refused(&self) -> Vec<String> {
        serde_json::from_str(&self.control("GET", "/refused", "")).expect("names")
    }

    /// From now on nobody may do this (`ec2:RunInstances`, patterns, separated by spaces).
    pub fn deny(&self, actions: &str) {
        self.control("POST", "/deny", actions);
    }

    /// Whoever has this access key may do what the policy says and nothing else.
    pub fn policy(&self, access_key: &str, document: &str) {
        self.control("POST", &format!("/policy?key={access_key}"), document);
    }

    /// From now on EC2 shows a new thing so much later: until then it is unknown to whoever names it, and in no list.
    pub fn lag(&self, lag: Duration) {
        self.control("POST", &format!("/lag?seconds={}", lag.as_secs_f64()), "");
    }

    /// From now on this action is answered so (a quota that is full, no capacity); an empty code ends it.
    pub fn stop(&self, action: &str, status: u16, code: &str, message: &str) {
        self.control("POST", "/stop", &json!({"action": action, "status": status, "code": code, "message": message}).to_string());
    }

    /// One call of a query API; the answer's text.
    pub fn query(&self, service: &str, form: &str) -> String {
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential=AKIAPERSON/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0");
        let mut curl = self.namespace.command(python());
        let script = "import sys, urllib.request as u\n\
                      r = u.Request(sys.argv[1], data=sys.argv[3].encode(), headers={'Authorization': sys.argv[2]})\n\
                      print(u.urlopen(r).read().decode())";
        let output = curl.args(["-c", script, &format!("http://{MOTO_ADDRESS}/"), &authorization, form]).output().expect("python");
        assert!(output.status.success(), "{}", crate::harness::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn control(&self, method: &str, path: &str, body: &str) -> String {
        self.namespace.run(|| ask(CONTROL, method, path, body)).expect("moto's control port answers")
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.keeper.take().map(JoinHandle::join);
        let _ = self.moto.kill();
        let _ = self.moto.wait();
    }
}

fn start_moto(namespace: &Namespace) -> Child {
    let mut command = namespace.command(python());
    command.arg(MOTO).args([MOTO_ADDRESS.port().to_string(), CONTROL.port().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut moto = namespace.spawn(command).expect("moto starts");
    let mut line = String::new();
    BufReader::new(moto.stdout.take().expect("stdout")).read_line(&mut line).expect("moto speaks");
    assert_eq!(line.trim(), "ready");
    moto
}

const DIALECT: Dialect = Dialect { read: read_call, throttled };

/// Query APIs name the action in the form, JSON APIs in a header, EFS by method and path.
fn read_call(request: &Request) -> Call {
    let target = request.header("x-amz-target").and_then(|target| target.split('.').nth(1)).map(String::from);
    let action = request.form("Action").or(target).unwrap_or_else(|| efs_action(&request.method, &request.path));
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let token = ["ClientToken", "CreationToken"].iter().find_map(|name| request.form(name).or_else(|| Some(body[name].as_str()?.into())));
    let attempt = request.header("amz-sdk-request").and_then(|text| text.split("attempt=").nth(1)?.split(';').next()?.trim().parse().ok());
    // A question whether something would be allowed.
    let dry = request.form("DryRun").as_deref() == Some("true");
    let mutating = !dry && !["Describe", "Get", "List"].iter().any(|start| action.starts_with(start));
    let action = if dry { format!("Dry{action}") } else { action };
    let identity = identity(&action, request, &body);
    Call { action, token, attempt, mutating, identity }
}

/// Tokens are made for a request, and the writers' records count runs; all else is the same whenever it is asked for.
fn identity(action: &str, request: &Request, body: &Value) -> String {
    if body["Name"].as_str().is_some_and(|name| name.contains("/epoch/")) {
        let writer = body["Value"].as_str().unwrap_or_default().split(':').next().unwrap_or_default();
        return format!("{action} of an epoch {writer}");
    }
    let fields = form_urlencoded::parse(&request.body).filter(|(key, _)| key != "ClientToken");
    let fields: BTreeSet<String> = fields.map(|(key, value)| format!("{key}={value}")).collect();
    format!("{action} {} {}", request.path, fields.into_iter().collect::<Vec<_>>().join(" "))
}

fn efs_action(method: &str, path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    let noun = match parts.first() {
        Some(&"file-systems") if parts.len() > 2 => "LifecycleConfiguration",
        Some(&"file-systems") => "FileSystem",
        Some(&"mount-targets") if parts.len() > 2 => "MountTargetSecurityGroups",
        Some(&"mount-targets") => "MountTarget",
        Some(&"resource-tags") => "Tags",
        _ => "Unknown",
    };
    let verb = match method {
        "GET" => "Describe",
        "POST" if noun == "Tags" => "Tag",
        "POST" => "Create",
        "DELETE" => "Delete",
        _ => "Put",
    };
    let plural = if verb == "Describe" && !noun.ends_with('s') { "s" } else { "" };
    format!("{verb}{noun}{plural}")
}

fn throttled(request: &Request) -> Vec<u8> {
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>Request limit exceeded.</Message></Error>");
    match request.form("Version").as_deref() {
        Some("2016-11-15") => {
            let body = format!("<Response><Errors>{}</Errors><RequestID>r</RequestID></Response>", error("RequestLimitExceeded"));
            answer(503, "text/xml", &body)
        }
        Some(_) => answer(400, "text/xml", &format!("<ErrorResponse>{}<RequestId>r</RequestId></ErrorResponse>", error("Throttling"))),
        None => answer(400, "application/x-amz-json-1.1", r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#),
    }
}

#[derive(Debug, Clone, Deserialize)]
struct Launch {
    id: String,
    address: Ipv4Addr,
    public: Option<Ipv4Addr>,
    subnet: ipnet::Ipv4Net,
    image: String,
    vcpus: u64,
    memory_mib: u64,
    region: String,
    zone: String,
    keys: Vec<String>,
    user_data: String,
    profile: Option<String>,
}

#[derive(Debug, Deserialize)]
struct KnownBalancer {
    id: String,
    dns: String,
    addresses: Vec<KnownAddress>,
    listeners: Vec<KnownListener>,
}

#[derive(Debug, Deserialize)]
struct KnownAddress {
    private: Ipv4Addr,
    public: Option<Ipv4Addr>,
}

#[derive(Debug, Deserialize)]
struct KnownListener {
    port: u16,
    protocol: String,
    targets: Vec<KnownTarget>,
}

#[derive(Debug, Deserialize)]
struct KnownTarget {
    group: String,
    id: String,
    port: u16,
    address: Ipv4Addr,
}

#[derive(Debug, Deserialize)]
struct KnownMount {
    address: Ipv4Addr,
    filesystem: String,
    region: String,
}

/// Makes true what moto says, and tells moto when it is.
struct Keeper {
    machines: Arc<Machines>,
    metadata: Metadata,
    balancers: Balancers,
    end: Arc<AtomicBool>,
    namespace: Namespace,
    /// Machines and load balancers only look as if they were there, after a moment.
    ghosts: bool,
    /// Instances that are being started or run: their address, and the thread that starts them.
    instances: BTreeMap<String, (Ipv4Addr, Option<JoinHandle<()>>)>,
    active: BTreeSet<String>,
    /// When a target (group and name) was first seen at this place, and what was told of it.
    told: BTreeMap<String, (Instant, Option<bool>)>,
}

impl Keeper {
    fn new(namespace: &Namespace, machines: Arc<Machines>, end: Arc<AtomicBool>, ghosts: bool) -> Keeper {
        Keeper {
            machines,
            metadata: Metadata::start(namespace),
            balancers: Balancers::new(namespace),
            end,
            namespace: namespace.clone(),
            ghosts,
            instances: BTreeMap::new(),
            active: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        let mut seen = 0;
        while !self.end.load(Ordering::Relaxed) {
            let events: Vec<Value> = get(&format!("/events?after={seen}&seconds={LOOK_SECONDS}"));
            seen += events.len();
            for event in &events {
                self.hear(event);
            }
            if events.iter().any(|event| matches!(event["what"].as_str(), Some("balancers" | "mounts" | "unbalance"))) {
                self.mount();
                self.balance();
                for event in events.iter().filter(|event| event["what"] == "unbalance") {
                    post(&format!("/gone?id={}", event["id"].as_str().unwrap_or_default()), "");
                }
            }
            self.report_health();
        }
        for (_, (_, thread)) in self.instances {
            let _ = thread.map(JoinHandle::join);
        }
    }

    fn hear(&mut self, event: &Value) {
        match event["what"].as_str() {
            Some("launch") => self.launch(serde_json::from_value(event.clone()).expect("a launch")),
            Some("settle") => post(&format!("/ready?id={}", event["id"].as_str().unwrap_or_default()), ""),
            Some("unmount") => post(&format!("/gone?id={}", event["id"].as_str().unwrap_or_default()), ""),
            Some("terminate") => self.terminate(event["id"].as_str().expect("an id").to_string()),
            _ => {}
        }
    }

    fn launch(&mut self, launch: Launch) {
        let identity = Identity {
            instance: launch.id.clone(),
            region: launch.region.clone(),
            zone: launch.zone.clone(),
            role: launch.profile.clone(),
        };
        self.metadata.tell(launch.address, identity);
        let (id, address) = (launch.id.clone(), launch.address);
        let machines = self.machines.clone();
        if self.ghosts {
            let appear = move || {
                std::thread::sleep(BOOT);
                post(&format!("/ready?id={}", launch.id), GHOST_KEY);
            };
            self.instances.insert(id, (address, Some(self.namespace.thread(appear))));
            return;
        }
        let start = move || match machines.start(&launch.spec()) {
            Ok(key) => post(&format!("/ready?id={}", launch.id), &key),
            Err(error) => eprintln!("{error}"),
        };
        self.instances.insert(id, (address, Some(self.namespace.thread(start))));
    }

    fn terminate(&mut self, id: String) {
        let Some((address, start)) = self.instances.remove(&id) else { return post(&format!("/gone?id={id}"), "") };
        let (machines, metadata) = (self.machines.clone(), self.metadata.clone());
        let stop = move || {
            let _ = start.map(JoinHandle::join);
            if let Err(error) = machines.stop(&id) {
                eprintln!("could not stop machine {id}: {error}");
            }
            metadata.forget(address);
            post(&format!("/gone?id={id}"), "");
        };
        // Beside the instances: nobody waits for it but the drop of the rig.
        let thread = self.namespace.thread(stop);
        self.instances.insert(format!("end of {address}"), (address, Some(thread)));
    }

    fn mount(&self) {
        let mounts: Vec<KnownMount> = get("/mounts");
        let mut wanted = BTreeSet::new();
        for mount in &mounts {
            let name = format!("{}.efs.{}.amazonaws.com", mount.filesystem, mount.region);
            for server in [mount.address.to_string(), name] {
                self.machines.serve_filesystem(&server, &mount.filesystem);
                wanted.insert(server);
            }
        }
        self.machines
            .filesystem_servers()
            .iter()
            .filter(|server| !wanted.contains(*server))
            .for_each(|old| self.machines.unserve_filesystem(old));
    }

    fn balance(&mut self) {
        let known: Vec<KnownBalancer> = get("/balancers");
        let wishes: Vec<Wish> = known.iter().flat_map(KnownBalancer::wishes).collect();
        if !self.ghosts {
            self.balancers.set(&wishes);
        }
        // Names of internal ones are public, too; their addresses lead there from inside only.
        let names = |balancer: &KnownBalancer| {
            let addresses = balancer.addresses.iter().map(|address| address.public.unwrap_or(address.private));
            addresses.map(|address| (balancer.dns.clone(), address)).collect::<Vec<_>>()
        };
        self.namespace.publish_names(&known.iter().flat_map(names).collect::<Vec<_>>());
        for balancer in &known {
            if self.active.insert(balancer.id.clone()) {
                post(&format!("/ready?id={}", balancer.id), "");
            }
        }
    }

    fn report_health(&mut self) {
        let health = self.balancers.health();
        // The same target behind several addresses of one balancer is one target: down when it is down at one of them.
        let mut targets: BTreeMap<String, bool> = BTreeMap::new();
        for (_, name, up) in health {
            *targets.entry(name).or_insert(true) &= up;
        }
        self.told.retain(|name, _| targets.contains_key(name));
        for (name, up) in targets {
            let (since, told) = self.told.entry(name.clone()).or_insert((Instant::now(), None));
            if *told == Some(up) || since.elapsed() < PROBATION {
                continue;
            }
            *told = Some(up);
            let [group, id, port] = name.split(' ').collect::<Vec<_>>()[..] else { continue };
            let state = if up { "healthy" } else { "unhealthy" };
            let body = json!({"targetGroup": group, "target": id, "port": port, "state": state});
            post("/health", &body.to_string());
        }
    }
}

impl KnownBalancer {
    /// Every listener at every address.
    fn wishes(&self) -> Vec<Wish> {
        let addresses: Vec<Ipv4Addr> =
            self.addresses.iter().flat_map(|address| [Some(address.private), address.public]).flatten().collect();
        let wish = |listener: &KnownListener, address: Ipv4Addr| {
            assert_eq!(listener.protocol, "TCP", "this rig forwards TCP");
            let target = |target: &KnownTarget| Target {
                name: format!("{} {} {}", target.group, target.id, target.port),
                address: SocketAddr::from((target.address, target.port)),
            };
            Wish { address: SocketAddr::from((address, listener.port)), targets: listener.targets.iter().map(target).collect() }
        };
        self.listeners.iter().flat_map(|listener| addresses.iter().map(move |address| wish(listener, *address))).collect()
    }
}

impl Launch {
    fn spec(&self) -> Spec {
        use base64::Engine;
        let data = base64::engine::general_purpose::STANDARD.decode(self.user_data.trim()).expect("user data is base64");
        Spec {
            name: self.id.clone(),
            hostname: format!("ip-{}", self.address.to_string().replace('.', "-")),
            address: self.address,
            subnet: self.subnet,
            public: self.public,
            user: if self.image.starts_with("ubuntu/") { "ubuntu" } else { "admin" }.into(),
            authorized_keys: self.keys.clone(),
            cpu_millis: self.vcpus * 1000,
            memory_bytes: self.memory_mib << 20,
            user_data: String::from_utf8(data).expect("user data is text"),
        }
    }
}

fn get<T: for<'a> Deserialize<'a>>(path: &str) -> T {
    let text = ask(CONTROL, "GET", path, "").expect("moto's control port answers");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

/// Whatever is told may be told twice.
fn post(path: &str, body: &str) {
    let told = (0..3).any(|_| ask(CONTROL, "POST", path, body).is_ok());
    if !told {
        eprintln!("moto's control port does not take {path}");
    }
}
