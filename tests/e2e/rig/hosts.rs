//! Machines that are there already: namespaced hosts on one switch, made by nobody's provider, and an operator with a key beside them.

use super::machines::{Machines, Spec};
use super::namespace::{BRIDGE, Namespace};
use crate::harness::{Operated, binary, require_root, show_logs_of_a_failure};
use kprov::blueprint::ProviderName;
use kprov::providers::Settings;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The network behind the router.
const BEYOND: [u8; 3] = [10, 98, 0];

/// What a host has of NFS where the kernel has nothing.
const NFS: [(&str, &str); 3] = [
    ("/usr/sbin/exportfs", include_str!("exportfs.sh")),
    ("/etc/init.d/nfs-kernel-server", include_str!("nfs_service.sh")),
    // For nothing but the question whether the kernel has NFS.
    ("/usr/local/sbin/modprobe", "#!/bin/sh\ncase $* in '-nq nfsd' | '-nq nfsv4') ;; *) exit 1 ;; esac\n"),
];

/// A switch with hosts, and the operator's folder.
pub struct Hosts {
    pub name: String,
    /// The first three bytes of everybody's address.
    network: [u8; 3],
    /// As in the operator's own ~/.ssh, and not in the blueprint.
    at_home: bool,
    known_wrongly: bool,
    /// The operator's ssh agent.
    agent: Option<Agent>,
    namespace: Namespace,
    pub machines: Machines,
    folder: tempfile::TempDir,
    hosts: Vec<Host>,
}

pub struct Host {
    pub name: String,
    pub address: Ipv4Addr,
    pub user: String,
    /// Its public host key.
    pub key: String,
    jump: Option<String>,
}

impl Hosts {
    /// `name` becomes part of the cluster's name; the process id keeps two runs apart.
    pub fn new(name: &str) -> Hosts {
        Hosts::of(&format!("{name}-{}", std::process::id()), [10, 99, 0])
    }

    /// The hosts that blueprints/shop.yaml lists, and an operator whose own ssh knows them.
    pub fn of_the_shop() -> Hosts {
        let mut hosts = Hosts::of("shop", [192, 0, 2]);
        hosts.at_home = true;
        hosts.root(11);
        hosts.root(12);
        hosts.sudo(13);
        hosts
    }

    fn of(name: &str, network: [u8; 3]) -> Hosts {
        require_root();
        let folder = tempfile::Builder::new().prefix("kprov-e2e-").tempdir().expect("a folder for the story");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f"])
            .arg(folder.path().join("key"))
            .status();
        assert!(made.expect("ssh-keygen").success());
        let namespace = Namespace::new();
        // A switch in somebody's own rack carries what is sent through it, pods' packets and ARP of any address included.
        namespace.script(&format!(
            "nft delete table bridge rig; ip route del blackhole 10.244.0.0/14; ip address add {}/24 dev {BRIDGE}",
            address(network, 1)
        ));
        let machines = Machines::new(&namespace);
        Hosts {
            name: name.into(),
            network,
            at_home: false,
            known_wrongly: false,
            agent: None,
            namespace,
            machines,
            folder,
            hosts: Vec::new(),
        }
    }

    /// A host whose root logs in with the operator's key.
    pub fn root(&mut self, last: u8) {
        self.host(last, "root", "");
    }

    /// One whose `debian` becomes root by sudo.
    pub fn sudo(&mut self, last: u8) {
        self.host(last, "debian", "");
    }

    /// `more` runs before sshd starts.
    pub fn host(&mut self, last: u8, user: &str, more: &str) {
        let key = std::fs::read_to_string(self.path("key.pub")).expect("the operator's key");
        let spec = Spec {
            name: format!("host-{last}"),
            hostname: format!("host-{last}"),
            address: address(self.network, last),
            subnet: ipnet::Ipv4Net::new_assert(address(self.network, 0), 24),
            public: None,
            user: "debian".into(),
            authorized_keys: vec![key.trim().into()],
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            user_data: format!(
                "#!/bin/sh\nset -e\nrmdir /etc/cni /etc/containerd /etc/kprov\nrm -rf /var/lib/cni\nsed -i 's/^PermitRootLogin .*/PermitRootLogin prohibit-password/' /etc/ssh/sshd_config\n\
                 mkdir -p -m 700 /root/.ssh\necho '{}' >/root/.ssh/authorized_keys\nchmod 600 /root/.ssh/authorized_keys\n\
                 : >/etc/exports\n{}{more}\n",
                key.trim(),
                NFS.map(|(path, text)| format!("cat >{path} <<'END_OF_FILE'\n{text}END_OF_FILE\nchmod 755 {path}\n")).concat(),
            ),
        };
        let host_key = self.machines.start(&spec).expect("a host");
        self.hosts.push(Host { name: spec.name, address: spec.address, user: user.into(), key: host_key, jump: None });
    }

    /// One on another link: a router is between it and the rest.
    pub fn beyond(&mut self, last: u8) {
        let near = std::mem::replace(&mut self.network, BEYOND);
        self.root(last);
        self.network = near;
        let (far, router) = (address(BEYOND, last), address(BEYOND, 1));
        self.namespace.script(&format!(
            "ip link show far >/dev/null 2>&1 || ip link add far address 02:00:00:00:00:02 type bridge
             ip address del {router}/24 dev {BRIDGE}; ip address replace {router}/24 dev far; ip link set far up
             ip link set {} master far
             ip route replace blackhole 10.244.0.0/14",
            super::machines::link(far)
        ));
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Whatever comes from the operator gets no answer: only neighbours reach it.
    pub fn hidden(&mut self, last: u8) {
        self.host(last, "root", "ip route add blackhole 10.99.0.1/32");
        self.hosts.last_mut().expect("a host").jump = Some("debian@10.99.0.10".into());
    }

    /// A host that others are reached through: it is no machine of any cluster.
    pub fn bastion(&mut self) -> String {
        self.host(10, "debian", "");
        self.hosts.pop().expect("a host").key
    }

    pub fn unlist(&mut self, name: &str) {
        self.hosts.retain(|host| host.name != name);
    }

    /// The list for `spec.providers.ssh.hosts`, host keys included.
    pub fn list(&self) -> String {
        let key = self.path("key").display().to_string();
        let words = |key: &str| key.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let line = |host: &Host| {
            let jump = host.jump.as_ref().map(|jump| format!(", jump: \"{jump}\"")).unwrap_or_default();
            format!(
                "        - {{address: {}, user: {}, key: \"{key}\", hostKey: \"{}\"{jump}}}\n",
                host.address,
                host.user,
                words(&host.key)
            )
        };
        self.hosts.iter().map(line).collect()
    }

    /// What the provider is told of one of them.
    pub fn settings(&self, index: usize) -> Settings {
        let host = &self.hosts[index];
        let own =
            serde_json::json!({"hosts": [{"address": host.address, "user": host.user, "key": self.path("key"), "hostKey": host.key}]});
        Settings { provider: ProviderName::Ssh, location: None, own }
    }

    /// Runs `work` where the hosts are reached.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// The repository's example with nothing but its provider line changed.
    pub fn shop(&self) -> PathBuf {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
        std::fs::copy(examples.join("web.yaml"), self.path("web.yaml")).expect("web.yaml");
        let text = std::fs::read_to_string(examples.join("shop.yaml")).expect("shop.yaml");
        let path = self.path("blueprint.yaml");
        assert!(text.contains("  provider: local "), "the line that one changes");
        std::fs::write(&path, text.replace("  provider: local ", "  provider: ssh ")).expect("the blueprint");
        path
    }

    /// The same for these hosts, without free addresses for load balancers.
    pub fn example(&self, workers: usize, more: &str) -> PathBuf {
        self.example_of(workers, &format!("{}{more}", self.list()))
    }

    /// With a list of the story's own.
    pub fn example_of(&self, workers: usize, list: &str) -> PathBuf {
        let path = self.shop();
        let text = std::fs::read_to_string(&path).expect("the blueprint");
        let (head, _) = text.split_once("      hosts:").expect("the example lists hosts");
        let head = head.replace("name: shop\n", &format!("name: {}\n", self.name)).replace("count: 2", &format!("count: {workers}"));
        let head = head.replace("disk: 8Gi", "disk: 2Gi");
        std::fs::write(&path, format!("{head}      hosts:\n{list}")).expect("the blueprint");
        path
    }

    /// From now on the operator's own ssh knows the hosts, and only their agent has the key.
    pub fn use_agent(&mut self) {
        self.at_home = true;
        self.agent = Some(Agent::with(&self.path("key"), self.path("agent")));
    }

    /// The operator's ssh expects of each host the key of another.
    pub fn swap_known_keys(&mut self) {
        self.known_wrongly = true;
    }

    /// As people read it on the host's console.
    pub fn fingerprint(&self, host: &Host) -> String {
        let file = self.path(&format!("{}.pub", host.name));
        std::fs::write(&file, &host.key).expect("the host's key");
        let output = Command::new("ssh-keygen").arg("-lf").arg(file).output().expect("ssh-keygen");
        String::from_utf8_lossy(&output.stdout).split(' ').nth(1).expect("a fingerprint").to_string()
    }

    /// ssh takes its user's home from the list of users: there, and for this command only, lies the operator's folder.
    fn command_at_home(&self) -> Command {
        let home = self.path("ssh");
        std::fs::create_dir_all(&home).expect("a home");
        if self.agent.is_none() {
            std::fs::copy(self.path("key"), home.join("id_ed25519")).expect("the operator's key");
        }
        let mut keys: Vec<&str> = self.hosts.iter().map(|host| host.key.as_str()).collect();
        if self.known_wrongly {
            keys.rotate_left(1);
        }
        let known: String = self.hosts.iter().zip(keys).map(|(host, key)| format!("{} {key}\n", host.address)).collect();
        std::fs::write(home.join("known_hosts"), known).expect("the hosts that the operator knows");
        let mut command = self.namespace.command("unshare");
        let script = "mkdir -p /root/.ssh && mount --bind \"$0\" /root/.ssh && exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(home).arg(binary());
        command
    }

    /// A command that has just said its `count`-th line with `word`. Whatever else it says is read and dropped.
    pub fn begun(&self, arguments: &[&str], word: &str, count: usize) -> (Child, usize) {
        let mut child = self.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kprov starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let seen = lines.by_ref().map_while(Result::ok).filter(|line| line.contains(word)).take(count).count();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        (child, seen)
    }

    /// Kills a command with -9 as soon as its `count`-th line with `word` appears.
    pub fn kill_after(&self, arguments: &[&str], word: &str, count: usize) {
        let (mut child, seen) = self.begun(arguments, word, count);
        child.kill().expect("kill");
        child.wait().expect("the process ends");
        assert_eq!(seen, count, "the moment to kill at never came");
    }

    pub fn http_get(&self, address: &str, path: &str) -> std::io::Result<String> {
        self.namespace.run(|| crate::harness::http_get(address, path))
    }

    /// Everything of a host that kprov could have changed: files, mounts, processes, links, addresses, routes, rules, control groups.
    pub fn inventory(&self, host: &str) -> String {
        let look = "find /etc/kprov /etc/exports.d /var/lib/kprov /var/lib/kprov-filesystems /var/lib/containerd /var/lib/cni /opt/containerd /run /etc/cni /etc/containerd /root /home /usr/local 2>/dev/null | grep -v -e /run/sshd -e /run/sudo -e /run/mount | sort
            cut -d' ' -f5 /proc/self/mountinfo | sort
            ps -eo args= | grep -v -e '^\\[' -e '^ps ' -e '^sh -c' -e '^sshd: ' -e '^sort' -e '^grep' -e '^find' | sort
            ip -o link | cut -d: -f2 | sed 's/@.*//'; ip -o -4 addr | sed 's/  */ /g' | cut -d' ' -f2-4; ip route
            nft list tables; find /sys/fs/cgroup -type d -name '*kp*'; cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null
            cat /etc/exports; exportfs -s";
        let output = self.machines.inside(host, look);
        format!("{}\n{}", self.machines.own_files(host).join("\n"), String::from_utf8_lossy(&output.stdout))
    }

    pub fn has_address(&self, host: &str, address: &str) -> bool {
        !self.machines.inside(host, &format!("ip -4 -o addr show to {address}")).stdout.is_empty()
    }

    /// STOP: as if it hung. CONT: as if nothing had been.
    pub fn signal_agent(&self, host: &str, signal: &str) {
        let find = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^/usr/local/bin/kprov agent' && kill -SIGNAL ${p#/proc/}; done; true";
        self.machines.inside(host, &find.replace("SIGNAL", signal));
    }

    pub fn inventories(&self) -> Vec<String> {
        self.hosts.iter().map(|host| self.inventory(&host.name)).collect()
    }
}

impl Operated for Hosts {
    fn command(&self) -> Command {
        let mut command = if self.at_home { self.command_at_home() } else { self.namespace.command(binary()) };
        command.env("KPROV_HOME", self.home()).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        command.envs(self.agent.iter().map(|agent| ("SSH_AUTH_SOCK", &agent.socket)));
        command
    }

    fn kubectl_command(&self) -> Command {
        let mut command = self.namespace.command("kubectl");
        command.arg("--kubeconfig").arg(self.home().join("clusters/ssh").join(&self.name).join("kubeconfig"));
        command
    }
}

/// Ends with the story.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn with(key: &Path, socket: PathBuf) -> Agent {
        let mut command = Command::new("ssh-agent");
        let process = command.arg("-D").arg("-a").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("ssh-agent");
        let begin = std::time::Instant::now();
        let add = || Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).output().expect("ssh-add");
        while !add().status.success() {
            assert!(begin.elapsed().as_secs() < 10, "the agent does not take the key");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Agent { process, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
    }
}

fn address([a, b, c]: [u8; 3], last: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, last)
}

impl Drop for Hosts {
    fn drop(&mut self) {
        show_logs_of_a_failure(&self.home());
    }
}
