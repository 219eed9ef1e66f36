//! Network namespaces for tests: each is gone with the thread or the value that made it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

/// Runs `story` on a thread in a network namespace of its own. Without root there is nothing to test: says so and returns.
pub fn in_own_namespace(story: impl Future<Output = ()> + Send + 'static) {
    // SAFETY: geteuid only reads.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may unshare");
        // All tasks on this one thread: others would be in the host's namespace.
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(story);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs one command line (split at blanks) in the calling thread's namespace; panics when it fails.
pub fn sh(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Answers every connection to `address` with `name`, on a thread inside the namespace `space`.
pub fn serve(space: &str, address: &str, name: &'static str) {
    let (space, address) = (space.to_string(), address.to_string());
    let (ready, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        enter(&space);
        let listener = TcpListener::bind(&address).unwrap_or_else(|error| panic!("{address}: {error}"));
        ready.send(()).expect("waited for");
        for stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = Write::write_all(&mut &stream, format!("{name} {peer}").as_bytes());
        }
    });
    wait.recv().expect("the server listens");
}

/// What `address` answers to a caller inside the namespace: "name client-address", or the error's kind.
pub fn ask(space: &str, address: &str) -> String {
    let (space, address) = (space.to_string(), address.to_string());
    std::thread::spawn(move || {
        enter(&space);
        let target = address.parse().expect("an address");
        match TcpStream::connect_timeout(&target, Duration::from_secs(2)) {
            Ok(mut stream) => {
                let mut text = String::new();
                let _ = Read::read_to_string(&mut stream, &mut text);
                text
            }
            Err(error) => format!("{:?}", error.kind()),
        }
    })
    .join()
    .expect("asked")
}

fn enter(space: &str) {
    let file = std::fs::File::open(format!("/run/netns/{space}")).expect("the namespace");
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter");
}

/// Runs `story` to its end on a thread inside the namespace `space`.
pub fn inside<T: Send + 'static>(space: &str, story: impl Future<Output = T> + Send + 'static) -> T {
    let space = space.to_string();
    let thread = std::thread::spawn(move || {
        enter(&space);
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(story)
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Named namespaces that are gone at the end of the test, however it ends.
pub struct Spaces(pub Vec<String>);

impl Spaces {
    /// Without root there is nothing to test: says so.
    pub fn make(names: &[&str]) -> Option<Spaces> {
        // SAFETY: geteuid only reads.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root");
            return None;
        }
        // Tests of one process run side by side.
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let spaces = Spaces(names.iter().map(|name| format!("kprov-test-{}-{count}-{name}", std::process::id())).collect());
        for name in &spaces.0 {
            sh(&format!("ip netns add {name}"));
            sh(&format!("ip -n {name} link set lo up"));
        }
        Some(spaces)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}
