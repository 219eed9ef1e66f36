//! What can be wrong with `spec.providers.ssh` before any machine is asked: hosts told apart, matched with groups, and written well.

use super::check::{self, elsewhere};
use super::diagnostic::counted;
use super::structure::{Report, did_you_mean};
use super::tree::{Node, Place};
use ipnet::{IpAdd, IpSub, Ipv4AddrRange};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const PATH: &str = "spec.providers.ssh";
/// A load balancer each; a whole /16 is a mistake.
const MOST_ADDRESSES: usize = 4096;

/// Nothing when another provider is chosen: its section may wait there.
pub fn ssh(spec: &Node, report: &mut dyn Report) {
    if spec.text_of("provider") != Some("ssh") {
        return;
    }
    let section = spec.field("providers").and_then(|providers| providers.field("ssh"));
    let Some(hosts) = section.and_then(|section| section.field("hosts")).filter(|hosts| !hosts.items().is_empty()) else {
        let place = spec.field("provider").map_or(spec.place, |provider| provider.place);
        let hint = Some("list your machines there: `hosts: [{address: 192.0.2.10}]`".into());
        return report.report(place, PATH, format!("{PATH}.hosts names no machine"), hint);
    };
    let groups = groups(spec);
    let mut seen: BTreeMap<(String, i64), Place> = BTreeMap::new();
    for (index, host) in hosts.items().iter().enumerate() {
        let path = format!("{PATH}.hosts[{index}]");
        if let Some(address) = host.field("address")
            && let Some(text) = address.text()
        {
            let key = (text.to_lowercase(), host.field("port").and_then(Node::whole_number).unwrap_or(22));
            match seen.get(&key) {
                Some(first) => report.report(
                    address.place,
                    &format!("{path}.address"),
                    format!("two hosts have the address `{text}`"),
                    elsewhere(*first),
                ),
                None => drop(seen.insert(key, address.place)),
            }
        }
        words(host, &path, report);
        membership(host, &path, &groups, report);
    }
    enough(hosts, &groups, report);
    addresses(section, report);
    filesystems(spec, section, hosts, report);
}

/// Name, role and count of each machine group that can be read.
fn groups(spec: &Node) -> Vec<(&str, &str, usize)> {
    let groups = spec.field("machines").map_or(&[][..], Node::items).iter();
    let read = |group: &'static str, node: &Node| node.field(group).and_then(Node::whole_number);
    groups
        .filter_map(|group| Some((group.text_of("name")?, group.text_of("role")?, usize::try_from(read("count", group)?).ok()?)))
        .collect()
}

/// Each ends up in a file that ssh reads.
fn words(host: &Node, path: &str, report: &mut dyn Report) {
    let mut word = |field: &str, is_good: &dyn Fn(&str) -> bool, what: &str, hint: &str| {
        check::word(host.field(field), &format!("{path}.{field}"), is_good, what, hint, report);
    };
    word("address", &is_address, "the name or the address of a host", "for instance 192.0.2.10 or web1.example.com");
    word("user", &is_user, "a user's name", "for instance root or debian");
    word("jump", &|text| jump(text).is_some(), "a host to go through", "write user@host:port, for instance admin@bastion.example.com");
    word("hostKey", &is_host_key, "a public host key", "one line of `ssh-keyscan`, without the name: ssh-ed25519 AAAA...");
    word("jumpHostKey", &is_host_key, "a public host key", "one line of `ssh-keyscan`, without the name: ssh-ed25519 AAAA...");
    word("fingerprint", &is_fingerprint, "a host key's fingerprint", "as `ssh-keygen -lf` prints it: SHA256:...");
    word("key", &is_path, "a path that ssh can be told", "letters, digits and /._-~+@ only");
}

fn membership(host: &Node, path: &str, groups: &[(&str, &str, usize)], report: &mut dyn Report) {
    let Some((node, group)) = host.field("group").and_then(|node| Some((node, node.text()?))) else { return };
    let path = format!("{path}.group");
    match (groups.iter().find(|(name, ..)| *name == group), host.text_of("role")) {
        (None, _) => {
            let names: Vec<&str> = groups.iter().map(|(name, ..)| *name).collect();
            report.report(node.place, &path, format!("no machine group is called `{group}`"), Some(did_you_mean(group, &names)));
        }
        (Some((_, of_group, _)), Some(role)) if *of_group != role => {
            let message = format!("group `{group}` is of role {of_group}, this host is for role {role}");
            report.report(node.place, &path, message, Some("leave one of the two out".into()));
        }
        _ => {}
    }
}

/// Hosts for every machine: in all, and for each group among those that it may use.
fn enough(hosts: &Node, groups: &[(&str, &str, usize)], report: &mut dyn Report) {
    let listed = hosts.items().len();
    let wanted: usize = groups.iter().map(|(.., count)| count).sum();
    let hint = || Some("list more hosts, or lower a count".into());
    if wanted > listed {
        let are = |count: usize| if count == 1 { "is" } else { "are" };
        let (machines, known) = (counted(wanted, "machine"), counted(listed, "host"));
        let message = format!("{machines} {} wanted, {known} {} listed", are(wanted), are(listed));
        return report.report(Place { width: 1, ..hosts.place }, &format!("{PATH}.hosts"), message, hint());
    }
    for (name, role, count) in groups {
        let may = |host: &&Node| {
            host.text_of("group").is_none_or(|group| group == *name) && host.text_of("role").is_none_or(|theirs| theirs == *role)
        };
        let usable = hosts.items().iter().filter(may).count();
        if usable < *count {
            let message = format!("group `{name}` wants {}, {usable} of the hosts may be used for it", counted(*count, "machine"));
            report.report(Place { width: 1, ..hosts.place }, &format!("{PATH}.hosts"), message, hint());
        }
    }
}

fn addresses(section: Option<&Node>, report: &mut dyn Report) {
    let items = section.and_then(|section| section.field("addresses")).map_or(&[][..], Node::items);
    for (index, item) in items.iter().enumerate() {
        if let Some(text) = item.text().filter(|text| range(text).is_none()) {
            let hint = Some("for instance 192.0.2.40 or 192.0.2.40-192.0.2.49".into());
            report.report(item.place, &format!("{PATH}.addresses[{index}]"), format!("`{text}` is no address or range"), hint);
        }
    }
}

/// Hosts that are to keep filesystems: both must be there.
fn filesystems(spec: &Node, section: Option<&Node>, hosts: &Node, report: &mut dyn Report) {
    let names: Vec<&str> = spec.field("filesystems").map_or(&[][..], Node::items).iter().filter_map(|item| item.text_of("name")).collect();
    let written = |host: &Node| {
        let address = host.text_of("address")?;
        let port = host.field("port").and_then(Node::whole_number).filter(|port| *port != 22);
        Some(port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}")))
    };
    let places: Vec<String> = hosts.items().iter().filter_map(written).collect();
    for (name, host) in section.and_then(|section| section.field("filesystems")).map_or(&[][..], Node::fields) {
        let path = format!("{PATH}.filesystems.{}", name.name);
        if !names.contains(&name.name.as_str()) {
            report.report(name.place, &path, format!("no filesystem is called `{}`", name.name), Some(did_you_mean(&name.name, &names)));
        }
        if let Some(text) = host.text().filter(|text| !places.iter().any(|place| place == text)) {
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            report.report(host.place, &path, format!("`{text}` is none of the hosts"), Some(did_you_mean(text, &places)));
        }
    }
}

/// The addresses of `a`, or of `a-b`. IPv4: they are announced by ARP.
pub fn range(text: &str) -> Option<Vec<Ipv4Addr>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let fits = first <= last && (last.saturating_sub(first) as usize) < MOST_ADDRESSES && first.saturating_add(1) > first;
    fits.then(|| Ipv4AddrRange::new(first, last).collect())
}

/// User, host and port of `user@host:port`; only the host is needed.
pub fn jump(text: &str) -> Option<(Option<String>, String, u16)> {
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_string()), rest),
        None => (None, text),
    };
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, 22),
        Some((host, port)) => (host, port.strip_prefix(':')?.parse().ok()?),
        None if rest.matches(':').count() == 1 => rest.split_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)))?,
        None => (rest, 22),
    };
    (is_address(host) && user.as_deref().is_none_or(is_user)).then(|| (user, host.to_string(), port))
}

fn made_of(text: &str, extra: &str) -> bool {
    !text.is_empty() && !text.starts_with('-') && text.chars().all(|letter| letter.is_ascii_alphanumeric() || extra.contains(letter))
}

fn is_address(text: &str) -> bool {
    made_of(text, "-._:")
}

pub(super) fn is_user(text: &str) -> bool {
    made_of(text, "-_.")
}

fn is_path(text: &str) -> bool {
    made_of(text, "/._-~+@")
}

fn is_fingerprint(text: &str) -> bool {
    text.strip_prefix("SHA256:").is_some_and(|sum| sum.len() == 43 && made_of(sum, "+/"))
}

fn is_host_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let kind = words
        .next()
        .is_some_and(|kind| made_of(kind, "-@.") && (kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-")));
    kind && words.next().is_some_and(|key| made_of(key, "+/=")) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Said(Vec<String>);

    impl Report for Said {
        fn report(&mut self, place: Place, _path: &str, message: String, _hint: Option<String>) {
            self.0.push(format!("{}:{} {message}", place.line, place.column));
        }
        fn full(&self) -> bool {
            false
        }
    }

    fn check(hosts: &str, expected: &[&str]) {
        let text = format!(
            "provider: ssh\nmachines:\n- {{name: control, role: control-plane, count: 1}}\n- {{name: worker, role: worker, count: 1}}\n\
             providers:\n  ssh:\n    hosts:\n{hosts}"
        );
        let (documents, mistakes) = super::super::tree::read(&text);
        assert_eq!(mistakes, []);
        let mut said = Said(Vec::new());
        ssh(&documents[0], &mut said);
        assert_eq!(said.0, expected, "{text}");
    }

    #[test]
    fn every_mistake_in_the_list_of_hosts_is_told_with_its_place() {
        check("    - {address: 10.0.0.1}\n    - {address: 10.0.0.2, user: debian, jump: \"admin@bastion:2222\"}\n", &[]);
        check("    - {address: 10.0.0.1}\n", &["8:7 2 machines are wanted, 1 host is listed"]);
        check(
            "    - {address: 10.0.0.1, group: workers}\n    - {address: 10.0.0.1, role: worker, group: control}\n    - {address: \"a b\", fingerprint: MD5:x}\n",
            &[
                "8:34 no machine group is called `workers`",
                "9:17 two hosts have the address `10.0.0.1`",
                "9:48 group `control` is of role control-plane, this host is for role worker",
                "10:17 `a b` is not the name or the address of a host",
                "10:37 `MD5:x` is not a host key's fingerprint",
            ],
        );
        check(
            "    - {address: 10.0.0.1, role: worker}\n    - {address: 10.0.0.2, role: worker}\n",
            &["8:7 group `control` wants 1 machine, 0 of the hosts may be used for it"],
        );
        check(
            "    - {address: 10.0.0.1}\n    - {address: 10.0.0.2}\n    addresses: [10.0.0.9-10.0.0.1, 10.0.0.40]\n",
            &["10:17 `10.0.0.9-10.0.0.1` is no address or range"],
        );
        check(
            "    - {address: 10.0.0.1}\n    - {address: 10.0.0.2}\n    filesystems: {media: 10.0.0.3, medea: 10.0.0.2}\nfilesystems: [{name: media}]\n",
            &["10:26 `10.0.0.3` is none of the hosts", "10:36 no filesystem is called `medea`"],
        );
    }

    #[test]
    fn a_way_through_another_host_is_read_as_people_write_it() {
        let check = |text: &str, expected: Option<(Option<&str>, &str, u16)>| {
            let expected = expected.map(|(user, host, port)| (user.map(String::from), host.to_string(), port));
            assert_eq!(jump(text), expected, "{text}");
        };
        check("bastion", Some((None, "bastion", 22)));
        check("admin@bastion:2222", Some((Some("admin"), "bastion", 2222)));
        check("admin@[2001:db8::1]:22", Some((Some("admin"), "2001:db8::1", 22)));
        check("admin@bastion:x", None);
        check("-oProxyCommand=evil", None);
        assert_eq!(range("10.0.0.40-10.0.0.42").map(|all| all.len()), Some(3));
    }
}
