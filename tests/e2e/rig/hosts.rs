//! Machines that are there already: namespaced hosts on one switch, made by nobody's provider, and an operator with a key beside them.

use super::machines::{Machines, Spec};
use super::namespace::{BRIDGE, Namespace};
use crate::harness::{binary, require_root, text};
use kprov::blueprint::ProviderName;
use kprov::providers::Settings;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A switch with hosts, and the operator's folder.
pub struct Hosts {
    pub name: String,
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
            "nft delete table bridge rig; ip route del blackhole 10.244.0.0/16; ip address add 10.99.0.1/24 dev {BRIDGE}"
        ));
        let machines = Machines::new(&namespace);
        Hosts { name: format!("{name}-{}", std::process::id()), namespace, machines, folder, hosts: Vec::new() }
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
            address: Ipv4Addr::new(10, 99, 0, last),
            subnet: "10.99.0.0/24".parse().expect("a subnet"),
            public: None,
            user: "debian".into(),
            authorized_keys: vec![key.trim().into()],
            cpu_millis: 2000,
            memory_bytes: 1 << 30,
            user_data: format!(
                "#!/bin/sh\nset -e\nrmdir /etc/cni /etc/containerd /etc/kprov\nsed -i 's/^PermitRootLogin .*/PermitRootLogin prohibit-password/' /etc/ssh/sshd_config\n\
                 mkdir -p -m 700 /root/.ssh\necho '{}' >/root/.ssh/authorized_keys\nchmod 600 /root/.ssh/authorized_keys\n{more}\n",
                key.trim()
            ),
        };
        let host_key = self.machines.start(&spec).expect("a host");
        self.hosts.push(Host { name: spec.name, address: spec.address, user: user.into(), key: host_key, jump: None });
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

    /// The repository's example with these hosts in it.
    pub fn example(&self, workers: usize, more: &str) -> PathBuf {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("blueprints");
        let web = std::fs::read_to_string(examples.join("hello.yaml")).expect("hello.yaml");
        std::fs::write(self.path("hello.yaml"), web).expect("hello.yaml");
        let text = std::fs::read_to_string(examples.join("ssh.yaml")).expect("ssh.yaml");
        let (head, _) = text.split_once("      hosts:").expect("the example lists hosts");
        let head = head.replace("name: shop\n", &format!("name: {}\n", self.name)).replace("count: 2", &format!("count: {workers}"));
        let path = self.path("blueprint.yaml");
        std::fs::write(&path, format!("{head}      hosts:\n{}{more}", self.list())).expect("the blueprint");
        path
    }

    pub fn command(&self) -> Command {
        let mut command = self.namespace.command(binary());
        command.env("KPROV_HOME", self.home()).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        command
    }

    pub fn kprov(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("kprov starts")
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.kprov(arguments);
        assert!(output.status.success(), "kprov {arguments:?} failed ({}):\n{}", output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Kills a command with -9 as soon as its `count`-th line with `word` appears.
    pub fn kill_after(&self, arguments: &[&str], word: &str, count: usize) {
        let mut child = self.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kprov starts");
        let lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let seen = lines.map_while(Result::ok).filter(|line| line.contains(word)).take(count).count();
        child.kill().expect("kill");
        child.wait().expect("the process ends");
        assert_eq!(seen, count, "the moment to kill at never came");
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        let kubeconfig = self.home().join("clusters/ssh").join(&self.name).join("kubeconfig");
        let mut command = self.namespace.command("kubectl");
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments).output().expect("kubectl starts")
    }

    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        assert!(output.status.success(), "kubectl {arguments:?} failed ({}):\n{}", output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn http_get(&self, address: &str, path: &str) -> std::io::Result<String> {
        self.namespace.run(|| crate::harness::http_get(address, path))
    }

    /// Everything of a host that kprov could have changed: files, mounts, processes, links, addresses, routes, rules, control groups.
    pub fn inventory(&self, host: &str) -> String {
        let look = "find / -xdev -newer /etc/machine-id \\( -path /proc -o -path /sys -o -path /dev -o -path /var/log -o -path /var/lib/cloud \\) -prune -o -type f -print | sort
            find /etc/kprov /var/lib/kprov /var/lib/containerd /run /etc/cni /etc/containerd /root /home /usr/local 2>/dev/null | grep -v -e /run/sshd -e /run/sudo | sort
            cut -d' ' -f5 /proc/self/mountinfo | sort
            ps -eo args= | grep -v -e '^ps ' -e '^sh -c' -e '^sshd: ' -e '^sort' -e '^grep' -e '^find' | sort
            ip -o link | cut -d: -f2 | sed 's/@.*//'; ip -o -4 addr | sed 's/  */ /g' | cut -d' ' -f2-4; ip route
            nft list tables; find /sys/fs/cgroup -type d -name '*kp*'; cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null";
        let output = self.machines.inside(host, look);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// For what nobody tells: the loop inside does it when it comes to it.
    pub fn until(&self, is_so: impl Fn() -> bool) {
        let begin = std::time::Instant::now();
        while !is_so() {
            assert!(begin.elapsed().as_secs() < 60, "it did not come to be");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    pub fn inventories(&self) -> Vec<String> {
        self.hosts.iter().map(|host| self.inventory(&host.name)).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.home().join("log")).into_iter().flatten().flatten() {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(60).collect();
                eprintln!("--- {}\n{}", entry.path().display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}
