//! The rig itself: what the stories believe of it.

use super::aws::{Aws, MOTO, REGION, python};
use super::machines::{Machines, Spec};
use super::namespace::{HOME, Namespace};
use super::proxy::{Fault, Rule};
use crate::harness::require_root;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn spec(name: &str, last: u8, key: &str) -> Spec {
    Spec {
        name: name.into(),
        hostname: format!("ip-10-0-1-{last}"),
        address: Ipv4Addr::new(10, 0, 1, last),
        subnet: "10.0.1.0/24".parse().expect("a subnet"),
        public: Some(Ipv4Addr::new(54, 0, 0, last)),
        user: "admin".into(),
        authorized_keys: vec![key.into()],
        cpu_millis: 1000,
        memory_bytes: 512 << 20,
        user_data: "#cloud-config\nhostname: web\nwrite_files:\n- {path: /etc/greeting, content: hello, permissions: '0600'}\n\
                    runcmd:\n- echo ran >/etc/ran\n- [sh, -c, \"echo 'two words' >>/etc/ran\"]\n"
            .into(),
    }
}

/// What a client with a strict private known_hosts gets.
fn ssh(namespace: &Namespace, folder: &Path, host_key: &str, address: Ipv4Addr, command: &str) -> (bool, String) {
    std::fs::write(folder.join("known_hosts"), format!("{address} {host_key}\n")).expect("known_hosts");
    let known = format!("UserKnownHostsFile={}", folder.join("known_hosts").display());
    let mut ssh = namespace.command("ssh");
    ssh.args(["-F", "none", "-o", &known, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-i"]);
    let output = ssh.arg(folder.join("key")).arg(format!("admin@{address}")).arg(command).output().expect("ssh");
    (output.status.success(), crate::harness::text(&output))
}

#[test]
fn emulated_machines_are_reached_by_their_addresses_and_by_nothing_else() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.path().join("key")).status();
    assert!(made.expect("ssh-keygen").success());
    let key = std::fs::read_to_string(folder.path().join("key.pub")).expect("the key");
    let namespace = Namespace::new();
    let machines = Machines::new(&namespace);
    let begin = Instant::now();
    let one = machines.start(&spec("i-1", 4, &key)).expect("a machine");
    eprintln!("a machine to its sshd: {:?}", begin.elapsed());
    let two = machines.start(&spec("i-2", 5, &key)).expect("another machine");
    assert_ne!(one, two, "each machine has a host key of its own");
    let run = |last: u8, host_key: &str, command: &str| ssh(&namespace, folder.path(), host_key, Ipv4Addr::new(10, 0, 1, last), command);

    let (good, said) = run(4, &one, "sudo -n sh -c 'id -u; hostname; cat /etc/greeting /etc/ran; stat -c %a /etc/greeting'");
    assert!(good && said.contains("0\nweb\nhelloran\ntwo words\n600"), "{said}");
    assert!(!run(4, &two, "true").0, "another machine's key is refused");
    let public = ssh(&namespace, folder.path(), &two, Ipv4Addr::new(54, 0, 0, 5), "hostname -I").1;
    assert!(public.contains("10.0.1.5"), "the public address leads to the private one: {public}");
    let peer = run(4, &one, "exec 3<>/dev/tcp/10.0.1.5/22; head -c 4 <&3; exec 4<>/dev/tcp/54.0.0.5/22; head -c 4 <&4").1;
    assert_eq!(peer.trim(), "SSH-SSH-", "machines reach each other");
    for (name, hidden) in [("the host's home", "/root/.cargo"), ("the host's work", "/work"), ("its keys", "/etc/ssh/moduli")] {
        assert!(!machines.inside("i-1", &format!("test -e {hidden}")).status.success(), "{name} is hidden");
    }
    let out =
        machines.inside("i-1", "timeout 1 sh -c 'echo >/dev/udp/192.0.2.1/9'; ip -o link | grep -c eth0; cat /proc/net/route | wc -l");
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("1\n"), "one way out, to the rig: {out:?}");

    machines.serve_filesystem("10.0.1.9", "fs-1");
    let mount =
        |what: &str| machines.inside("i-1", &format!("mkdir -p /media/x; mount -t nfs4 {what} /media/x && echo shared >/media/x/file"));
    assert!(!mount("10.0.1.8:/").status.success(), "nobody serves there");
    assert!(!mount("-o nfsvers=3 10.0.1.9:/").status.success(), "a wrong option is refused");
    let mounted = mount("-o nfsvers=4.1,hard,timeo=600,retrans=2,noresvport 10.0.1.9:/");
    assert!(mounted.status.success(), "{mounted:?}");
    let other = machines.inside("i-2", "mount -t nfs4 -o nfsvers=4.1 10.0.1.9:/ /mnt && cat /mnt/file");
    assert_eq!(String::from_utf8_lossy(&other.stdout), "shared\n");

    machines.stop("i-1").expect("stopped");
    machines.stop("i-1").expect("twice is no error");
    let place = machines.folder("i-2");
    drop(machines);
    assert!(!place.exists());
    assert_eq!(namespace.links(), Vec::<String>::new(), "no cable is left");
    assert!(namespace.connect(SocketAddr::from((HOME, 1))).is_err());
}

#[test]
fn emulated_machines_run_containers_within_their_limits() {
    require_root();
    let namespace = Namespace::new();
    let machines = Machines::new(&namespace);
    machines.start(&spec("i-1", 4, "ssh-ed25519 AAAA")).expect("a machine");
    machines.serve_filesystem("images", "fs-images");
    let image = machines.folder("shared").join("fs-images/image.tar");
    let made = Command::new(crate::harness::binary()).args(["image", "--output"]).arg(image).output().expect("kprov starts");
    assert!(made.status.success(), "{}", crate::harness::text(&made));
    let run = machines.inside(
        "i-1",
        "set -e
         containerd >/var/log/containerd.log 2>&1 &
         for i in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
         ctr images import /opt/rig/nfs/images/image.tar
         ctr run --rm --memory-limit 33554432 kprov.dev/kprov:latest one kprov --version
         cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true",
    );
    let said = crate::harness::text(&run);
    assert!(said.contains(&format!("kprov {}\n{}\n", env!("CARGO_PKG_VERSION"), 512 << 20)), "{said}");
}

#[test]
fn the_strict_layer_over_moto_holds_for_this_moto() {
    let mut moto = Command::new(python());
    let output = moto.arg(MOTO).arg("--self-test").output().expect("python starts");
    assert!(output.status.success(), "{}", crate::harness::text(&output));
}

/// A plain client's story against the emulated cloud; what it printed.
fn client(aws: &Aws, arguments: &[&str]) -> String {
    let mut python = aws.namespace.command(python());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/rig/aws_story.py");
    let output = python.arg(script).arg(aws.endpoint()).args(arguments).output().expect("python");
    assert!(output.status.success(), "{}", crate::harness::text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

#[test]
fn instances_balancers_and_mounts_of_the_emulated_cloud_are_real() {
    let aws = Aws::start();
    let before = aws.dump();
    let begin = Instant::now();
    let said = client(&aws, &["up"]);
    eprintln!("an instance, a balancer, a filesystem: {:?}", begin.elapsed());
    let [instance, private, public, balancer, mount] = said.split(' ').collect::<Vec<_>>()[..] else { panic!("{said}") };
    for address in [format!("{balancer}:80"), format!("{private}:32000"), format!("{public}:32000")] {
        let answer = aws.namespace.run(|| crate::harness::http_get(&address, "/")).expect("it answers");
        assert!(answer.contains("it serves"), "{address}: {answer}");
    }
    let inside = |shell: &str| String::from_utf8_lossy(&aws.machines.inside(instance, shell).stdout).into_owned();
    let imds = "python3 -c \"import urllib.request as u\nr = u.Request('http://169.254.169.254/latest/api/token', method='PUT', \
                headers={'X-aws-ec2-metadata-token-ttl-seconds': '60'})\nt = u.urlopen(r).read().decode()\n\
                for p in ('iam/security-credentials/', 'placement/region', 'iam/security-credentials/story'):\n  \
                print(u.urlopen(u.Request('http://169.254.169.254/latest/meta-data/' + p, headers={'X-aws-ec2-metadata-token': t})).read().decode())\"";
    let told = inside(imds);
    assert!(told.starts_with(&format!("story\n{REGION}\n")) && told.contains("ASIAstory"), "{told}");
    assert!(inside(&format!("mount -t nfs4 -o nfsvers=4.1 {mount}:/ /mnt && echo mounted")).contains("mounted"));
    let cloud = inside("python3 -c \"import urllib.request as u; print(u.urlopen('http://198.18.0.1:4566/moto-api/').status)\"");
    assert_eq!(cloud.trim(), "200", "the loop inside reaches the cloud");

    for (name, fault) in [
        ("lost", Fault::LostReply),
        ("truncated", Fault::Truncated),
        ("duplicate", Fault::Duplicate),
        ("reset", Fault::Reset),
        ("throttle", Fault::Throttle),
        ("status", Fault::Status(503)),
        ("gateway", Fault::BadGateway),
        ("silent", Fault::Silent(Duration::from_secs(3))),
        ("slow", Fault::Slow(Duration::from_millis(300))),
    ] {
        aws.proxy.clear();
        let rule = aws.proxy.rule(Rule::on("RunInstances", fault).count(1));
        let made = client(&aws, &["tokens", name]);
        assert_eq!(aws.proxy.fired(rule), 1, "{name} never happened");
        let ledger = aws.proxy.ledger();
        let calls: Vec<_> = ledger.iter().filter(|entry| entry.call.action == "RunInstances").collect();
        assert!(calls.iter().all(|entry| entry.call.token.as_deref() == Some(name)), "{calls:?}");
        let attempts = if matches!(fault, Fault::Slow(_) | Fault::Duplicate) { 1 } else { 2 };
        assert_eq!(calls.len(), attempts, "{name}");
        assert!(made.starts_with("i-"));
    }
    let instances = aws.dump().iter().filter(|row| row.kind == "instance").count();
    assert_eq!(instances, 10, "each token made one instance");
    aws.proxy.clear();
    client(&aws, &["down"]);
    assert_eq!(aws.dump(), before, "nothing is left in the account");
    assert_eq!((aws.machines.names(), aws.namespace.links()), (vec![], vec![]), "nor on this host");
}
