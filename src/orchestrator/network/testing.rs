//! Network namespaces for tests: each is gone with the thread that made it.

use std::process::Command;

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
