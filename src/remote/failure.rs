//! ssh says everything with one exit code and a text: here the text becomes a class, an error with a next step, and whether to wait. Pure.

use super::config::Target;
use crate::error::{Error, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing listens yet.
    Refused,
    Timeout,
    Unreachable,
    /// Dropped in the middle: sshd restarts, or takes no more handshakes at once (MaxStartups).
    Closed,
    /// Somebody else answers, or the machine was made anew behind our back.
    HostKey,
    Denied,
    Unresolved,
    Other,
}

/// From what ssh printed.
pub fn classify(text: &str) -> Class {
    let has = |part: &str| text.contains(part);
    // The most telling first: a changed host key also ends in "Connection closed".
    if has("Host key verification failed") || has("HOST IDENTIFICATION HAS CHANGED") || has("host key is known") {
        Class::HostKey
    } else if has("Permission denied (") || has("Too many authentication failures") {
        Class::Denied
    } else if has("Could not resolve") {
        Class::Unresolved
    } else if has("Connection refused") {
        Class::Refused
    } else if has("timed out") {
        Class::Timeout
    } else if has("No route to host") || has("unreachable") {
        Class::Unreachable
    } else if has("Connection reset") || has("Connection closed") || has("closed by remote host") || has("Broken pipe") {
        Class::Closed
    } else {
        Class::Other
    }
}

impl Class {
    /// A machine that boots goes through these by itself.
    pub fn may_pass(self) -> bool {
        matches!(self, Class::Refused | Class::Timeout | Class::Unreachable | Class::Closed)
    }

    /// cloud-init puts keys in place a moment after sshd has started.
    pub fn may_pass_shortly(self) -> bool {
        self == Class::Denied
    }

    pub fn short(self) -> &'static str {
        match self {
            Class::Refused => "connection refused",
            Class::Timeout => "no answer",
            Class::Unreachable => "not reachable",
            Class::Closed => "connection closed",
            Class::HostKey => "wrong host key",
            Class::Denied => "permission denied",
            Class::Unresolved => "name not found",
            Class::Other => "failed",
        }
    }
}

/// The error to show, with what to do.
pub fn explain(class: Class, target: &Target, text: &str) -> Error {
    let Target { machine, address, ssh_port, ssh_user, .. } = target;
    let kind = if class.may_pass() { Kind::Timeout } else { Kind::Host };
    let error = Error::new(kind, format!("could not reach {machine} by SSH at {address}:{ssh_port}: {}", class.short()));
    // ssh's banner of at-signs says in twenty lines what the class says in two words.
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let error = if line.is_empty() { error } else { error.because(line.to_string()) };
    match class {
        Class::Refused => error.hint("sshd does not run there (any more), or listens on another port"),
        Class::Timeout | Class::Unreachable => {
            error.hint("is the machine running, and does a firewall let this host through (spec.access.from)?")
        }
        Class::Closed => error.hint("sshd may be starting, or refusing many logins at once (MaxStartups): run the same command again"),
        Class::HostKey => error
            .hint(format!("what answers at {address} is not the machine that the provider made; nothing was sent to it"))
            .hint("if the machine was re-installed by hand, delete it at the provider: kprov makes it again"),
        Class::Denied => error.hint(format!("the cluster's key is not in the authorized_keys of {ssh_user} there")),
        Class::Unresolved => error.hint("is the name right, and does this host's resolver know it?"),
        Class::Other => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_ssh_fails_has_its_class() {
        let check = |text: &str, class: Class, waits: bool| {
            assert_eq!(classify(text), class, "{text}");
            assert_eq!(class.may_pass(), waits, "{text}");
        };
        check("connect to host 10.0.0.5 port 22: Connection refused", Class::Refused, true);
        check("connect to host 10.0.0.5 port 22: Connection timed out", Class::Timeout, true);
        check("Connection timed out during banner exchange", Class::Timeout, true);
        check("connect to host 10.0.0.5 port 22: No route to host", Class::Unreachable, true);
        check("connect to host 10.0.0.5 port 22: Network is unreachable", Class::Unreachable, true);
        check("kex_exchange_identification: Connection closed by remote host", Class::Closed, true);
        check("kex_exchange_identification: read: Connection reset by peer", Class::Closed, true);
        check("root@10.0.0.5: Permission denied (publickey).", Class::Denied, false);
        check("@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n...\nHost key verification failed.", Class::HostKey, false);
        check("No ED25519 host key is known for worker-1 and you have requested strict checking.", Class::HostKey, false);
        check("Could not resolve hostname x: Name or service not known", Class::Unresolved, false);
        check("Bad owner or permissions on /root/.ssh/config", Class::Other, false);
    }

    #[test]
    fn a_wrong_host_key_says_that_nothing_was_sent() {
        let target = Target {
            machine: "worker-1".into(),
            address: "10.0.0.5".into(),
            ssh_port: 22,
            ssh_user: "root".into(),
            host_keys: vec!["ssh-ed25519 AAAA".into()],
            jump: None,
            login: None,
        };
        let error = explain(Class::HostKey, &target, "@@@@@\nHost key verification failed.\n");
        assert_eq!(error.chain(), "could not reach worker-1 by SSH at 10.0.0.5:22: wrong host key: Host key verification failed.");
        assert!(error.hints()[0].contains("nothing was sent"));
    }
}
