//! A network of its own, without a way out: a bridge for machines, and whoever enters it. Gone when nobody is in it any more.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

/// Where what the test runs answers the machines (RFC 2544's range: nobody's network).
pub const HOME: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where every cloud answers its machines about themselves.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const BRIDGE: &str = "rig";

type Work = Box<dyn FnOnce() + Send>;

/// Cheap to clone; everything that is made through it ends with the last one.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
    /// What stands in for the cloud's public names: /etc/hosts of those who look from outside.
    hosts: Arc<tempfile::NamedTempFile>,
    /// A thread that lives as long as the namespace: children die with the thread that made them.
    parent: Arc<Mutex<Sender<Work>>>,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (sender, receiver) = channel::<Work>();
        let (tell, hear) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(File::open("/proc/thread-self/ns/net").expect("this thread's network")).expect("somebody waits");
            receiver.into_iter().for_each(|work| work());
        });
        let file = hear.recv().expect("the namespace's file");
        let hosts = tempfile::NamedTempFile::new().expect("a file for names");
        let namespace = Namespace { file: Arc::new(file), hosts: Arc::new(hosts), parent: Arc::new(Mutex::new(sender)) };
        namespace.publish_names(&[]);
        namespace.furnish();
        namespace
    }

    /// A fixed MAC: a bridge without one takes its ports', and every change of a port would cut its connections.
    fn furnish(&self) {
        self.script(&format!(
            "ip link set lo up
             ip link add {BRIDGE} address 02:00:00:00:00:01 type bridge
             ip link set {BRIDGE} up
             ip address add {HOME}/32 dev lo
             ip address add {METADATA}/32 dev lo
             ip route add default dev {BRIDGE}
             ip route add blackhole 10.244.0.0/14
             echo 1 >/proc/sys/net/ipv4/ip_forward"
        ));
        // Public addresses lead to private ones, as a cloud's gateway does it; and a cloud's network carries no pods' addresses.
        self.feed(
            "nft",
            &["-f", "-"],
            "table ip rig {
               map public { type ipv4_addr : ipv4_addr; }
               chain local { type nat hook output priority -100; dnat to ip daddr map @public; }
               chain in { type nat hook prerouting priority -100; dnat to ip daddr map @public; }
               chain out { type nat hook postrouting priority 100; ct status dnat masquerade; }
             }
             table bridge rig {
               chain between { type filter hook forward priority 0; ip saddr 10.244.0.0/14 drop; ip daddr 10.244.0.0/14 drop; }
             }",
        );
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The calling thread is inside from now on.
    pub fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace is there");
    }

    /// A thread of its own inside, for as long as it has something to do.
    pub fn thread(&self, work: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
        let inside = self.clone();
        std::thread::spawn(move || {
            inside.enter();
            // Or it would hold what it stands in.
            drop(inside);
            work();
        })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.clone();
        let enter = move || setns(&*file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: one system call on an open descriptor between fork and exec.
        unsafe { command.pre_exec(enter) };
        command.stdin(Stdio::null());
        command
    }

    /// The same for somebody outside, who knows the cloud's public names.
    pub fn command_outside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(program);
        let hosts = self.hosts.path().to_path_buf();
        let see = move || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).map_err(io::Error::from)
        };
        // SAFETY: three system calls between fork and exec; their words are short enough to need no memory of their own.
        unsafe { command.pre_exec(see) };
        command
    }

    /// Exactly these from now on, in place: a mount keeps to its file.
    pub fn publish_names(&self, names: &[(String, Ipv4Addr)]) {
        let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
        std::fs::write(self.hosts.path(), format!("127.0.0.1 localhost\n{lines}")).expect("the file of names");
    }

    /// Started by a thread that stays, and killed by the kernel when this process ends, however it ends.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        let (tell, hear) = channel();
        let parent = std::process::id();
        let leash = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid().as_raw() as u32 == parent { Ok(()) } else { Err(io::Error::other("the test has ended")) }
        };
        // SAFETY: two system calls between fork and exec.
        unsafe { command.pre_exec(leash) };
        let work: Work = Box::new(move || drop(tell.send(command.spawn())));
        self.parent.lock().expect("the namespace's thread").send(work).map_err(|_| io::Error::other("the namespace's thread has ended"))?;
        hear.recv().map_err(io::Error::other)?
    }

    pub fn script(&self, text: &str) {
        self.feed("sh", &["-e"], text);
    }

    pub fn feed(&self, program: &str, arguments: &[&str], text: &str) {
        use std::io::Write;
        let mut command = self.command(program);
        let mut child = command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(program);
        child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect(program);
        let output = child.wait_with_output().expect(program);
        assert!(output.status.success(), "{program}: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, std::time::Duration::from_secs(5)))
    }

    /// Reachable from outside by the machine's public address, too.
    pub fn publish(&self, public: Ipv4Addr, private: Ipv4Addr) {
        self.feed("nft", &["-f", "-"], &format!("add element ip rig public {{ {public} : {private} }}"));
    }

    pub fn unpublish(&self, public: Ipv4Addr) {
        self.feed("nft", &["-f", "-"], &format!("delete element ip rig public {{ {public} }}"));
    }

    /// What still uses it: links of machines.
    pub fn links(&self) -> Vec<String> {
        let names =
            || nix::net::if_::if_nameindex().expect("the links").iter().map(|link| link.name().to_string_lossy().into_owned()).collect();
        let names: Vec<String> = self.run(names);
        names.into_iter().filter(|name| name != "lo" && name != BRIDGE).collect()
    }
}
