//! Every mistake in a blueprint at once: what a schema cannot say, read leniently from the tree so that one mistake hides no other.

use super::manifests::Object;
use super::quantity::{self, Quantity};
use super::schema::{FIRST_NODE_PORT, LAST_NODE_PORT, MOST_MACHINES, OF_SERVICE};
use super::structure::{Report, did_you_mean};
use super::tree::{Data, Node, Place};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Each would keep a store of its own: three or five need a replicated one.
const MOST_CONTROL_PLANES: i64 = 1;
/// `<cluster>-<machine>` and the like become names with clouds, which take 63 letters.
const LONGEST_CLUSTER_NAME: usize = 40;
/// A DNS label, less "-1000".
const LONGEST_GROUP_NAME: usize = 58;
const LONGEST_LABEL: usize = 63;
/// Below this, a machine spends its time on starting containerd and the agent rather than on pods.
const LEAST_CPU_MILLIS: i64 = 100;
/// containerd, sshd and the agent need about 100 MiB beside the first pod; less ends in kills by the kernel.
const LEAST_MEMORY: i64 = 256 << 20;
/// kprov, containerd's own data and one image.
const LEAST_DISK: i64 = 1 << 30;
const LEAST_FILESYSTEM: i64 = 1 << 20;

/// Reports what is wrong with the blueprint's meaning. `objects` are those of all its workloads that could be read.
pub fn meaning(blueprint: &Node, objects: &[Object], report: &mut dyn Report) {
    if let Some(name) = blueprint.field("metadata").and_then(|metadata| metadata.field("name")) {
        label(name, "metadata.name", "a cluster's name", LONGEST_CLUSTER_NAME, report);
    }
    let Some(spec) = blueprint.field("spec") else { return };
    access(spec, report);
    machines(spec, report);
    load_balancers(spec, objects, report);
    filesystems(spec, report);
    super::hosts::ssh(spec, report);
    super::aws::aws(spec, report);
}

/// What is allowed but deserves a word.
pub fn warnings(blueprint: &Node, objects: &[Object]) -> Vec<String> {
    let mut warnings = Vec::new();
    let ranges = blueprint.field("spec").and_then(|spec| spec.field("access")).and_then(|access| access.field("from"));
    for range in ranges.map_or(&[][..], Node::items).iter().filter_map(Node::text) {
        if range.parse::<IpNet>().is_ok_and(|range| range.prefix_len() == 0) {
            warnings.push(format!("spec.access.from: {range} lets everybody reach SSH and the API"));
        }
    }
    let mut seen = BTreeMap::new();
    for object in objects {
        if let Some(first) = seen.insert(object.identity(), &object.file) {
            warnings.push(format!("{} is in {first} and again in {}: the later one counts", object.title(), object.file));
        }
    }
    warnings
}

fn items<'a>(spec: &'a Node, name: &'static str) -> impl Iterator<Item = (String, &'a Node)> {
    let items = spec.field(name).map_or(&[][..], Node::items);
    items.iter().enumerate().map(move |(index, item)| (format!("spec.{name}[{index}]"), item))
}

fn access(spec: &Node, report: &mut dyn Report) {
    let ranges = spec.field("access").and_then(|access| access.field("from")).map_or(&[][..], Node::items);
    for (index, range) in ranges.iter().enumerate() {
        let Some(text) = range.text().filter(|text| text.parse::<IpNet>().is_err()) else { continue };
        let hint = match text.parse::<IpAddr>() {
            Ok(address) => format!("for this one address write {address}/{}", if address.is_ipv4() { 32 } else { 128 }),
            Err(_) => "for instance 192.0.2.0/24 or 2001:db8::/32".into(),
        };
        report.report(range.place, &format!("spec.access.from[{index}]"), format!("`{text}` is no address range"), Some(hint));
    }
}

fn machines(spec: &Node, report: &mut dyn Report) {
    unique(spec, "machines", "machine groups", report);
    let (mut control_planes, mut total, mut countable) = (0_i64, 0_i64, true);
    let mut control_plane_count = None;
    for (path, group) in items(spec, "machines") {
        if let Some(name) = group.field("name") {
            label(name, &format!("{path}.name"), "a machine group's name", LONGEST_GROUP_NAME, report);
        }
        let count = group.field("count").and_then(Node::whole_number).filter(|count| (0..=i64::from(MOST_MACHINES)).contains(count));
        countable &= count.is_some() && matches!(group.text_of("role"), Some("control-plane" | "worker"));
        total += count.unwrap_or(0);
        if group.text_of("role") == Some("control-plane") {
            control_planes += count.unwrap_or(0);
            control_plane_count = group.field("count").map(|count| (count.place, format!("{path}.count"))).or(control_plane_count);
        }
        if let Some(size) = group.field("size") {
            amount(size, &path, "cpu", LEAST_CPU_MILLIS, report);
            amount(size, &path, "memory", LEAST_MEMORY, report);
            amount(size, &path, "disk", LEAST_DISK, report);
        }
    }
    let Some(list) = spec.field("machines").filter(|list| countable && !list.items().is_empty()) else { return };
    let (place, path) = control_plane_count.unwrap_or((Place { width: 1, ..list.place }, "spec.machines".into()));
    if control_planes == 0 {
        let message = "no machine has the role control-plane".to_string();
        report.report(place, &path, message, Some("one group needs `role: control-plane` and `count: 1`".into()));
    } else if control_planes > MOST_CONTROL_PLANES {
        let message = format!("{control_planes} control-plane machines: their store is not replicated yet, so there can be only one");
        report.report(place, &path, message, Some(format!("use {MOST_CONTROL_PLANES}")));
    }
    if total > i64::from(MOST_MACHINES) {
        let message = format!("{total} machines in all; a blueprint holds at most {MOST_MACHINES}");
        report.report(Place { width: 1, ..list.place }, "spec.machines", message, None);
    }
}

/// A quantity of at least `least` millicores or bytes.
fn amount(holder: &Node, path: &str, name: &str, least: i64, report: &mut dyn Report) {
    let Some(node) = holder.field(name) else { return };
    let path = if name == "size" { format!("{path}.size") } else { format!("{path}.size.{name}") };
    let is_cpu = name == "cpu";
    let quantity = match &node.data {
        Data::Text(text) => Quantity::parse(text),
        Data::Number(_) if is_cpu => Quantity::from_value(&node.to_value()),
        _ => return,
    };
    let example = if is_cpu { "2 or \"500m\"" } else { "\"512Mi\" or \"10Gi\"" };
    match quantity {
        Err(why) => {
            let text = node.text().unwrap_or_default();
            report.report(node.place, &path, format!("`{text}` is not a quantity: {why}"), Some(format!("for instance {example}")));
        }
        Ok(quantity) => {
            let (value, shown) =
                if is_cpu { (quantity.millis(), quantity::format_cpu(least)) } else { (quantity.units(), quantity::format_bytes(least)) };
            if value < least {
                report.report(
                    node.place,
                    &path,
                    format!("this is too small: {name} is at least {shown}"),
                    Some(format!("for instance {example}")),
                );
            }
        }
    }
}

fn load_balancers(spec: &Node, objects: &[Object], report: &mut dyn Report) {
    unique(spec, "loadBalancers", "load balancers", report);
    let has_workloads = !objects.is_empty();
    let mut listeners = 0;
    for (path, balancer) in items(spec, "loadBalancers") {
        if let Some(name) = balancer.field("name") {
            let path = format!("{path}.name");
            label(name, &path, "a load balancer's name", LONGEST_LABEL, report);
            if name.text().is_some_and(|name| name.starts_with(OF_SERVICE)) {
                let message = format!("names that start with `{OF_SERVICE}` belong to services of type LoadBalancer");
                report.report(name.place, &path, message, Some("choose another name".into()));
            }
        }
        let mut ports: BTreeMap<i64, Place> = BTreeMap::new();
        for (index, listener) in balancer.field("listeners").map_or(&[][..], Node::items).iter().enumerate() {
            let path = format!("{path}.listeners[{index}]");
            listeners += 1;
            if listeners == usize::from(LAST_NODE_PORT - FIRST_NODE_PORT) + 2 {
                let message = format!("a blueprint has at most {} listeners", LAST_NODE_PORT - FIRST_NODE_PORT + 1);
                report.report(listener.place, &path, message, None);
            }
            if let Some((port, node)) = listener.field("port").and_then(|node| Some((node.whole_number()?, node))) {
                match ports.get(&port) {
                    Some(first) => {
                        let message = format!("two listeners of one load balancer have port {port}");
                        report.report(node.place, &format!("{path}.port"), message, elsewhere(*first));
                    }
                    None => {
                        ports.insert(port, node.place);
                    }
                }
            }
            service(listener, &path, has_workloads.then_some(objects), report);
        }
    }
}

fn service(listener: &Node, path: &str, objects: Option<&[Object]>, report: &mut dyn Report) {
    let Some((node, text)) = listener.field("service").and_then(|node| Some((node, node.text()?))) else { return };
    let path = format!("{path}.service");
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if !is_label(namespace) || !is_label(name) {
        let message = format!("`{text}` is not the name of a service");
        return report.report(node.place, &path, message, Some("write namespace/service, for instance shop/web".into()));
    }
    let Some(objects) = objects else { return };
    let services: Vec<&Object> = objects.iter().filter(|object| object.is("v1", "Service")).collect();
    let Some(found) = services.iter().find(|object| object.namespace() == namespace && object.name() == name) else {
        let known: Vec<String> = services.iter().map(|object| format!("{}/{}", object.namespace(), object.name())).collect();
        let hint = match known.as_slice() {
            [] => "the workloads define no service at all".into(),
            known => did_you_mean(text, &known.iter().map(String::as_str).collect::<Vec<_>>()),
        };
        return report.report(node.place, &path, format!("no workload defines the service {namespace}/{name}"), Some(hint));
    };
    let target = listener.field("targetPort");
    let Some(port) = target.map_or(Some(80), Node::whole_number) else { return };
    let ports: Vec<i64> = found.value["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["port"].as_i64()).collect();
    if !ports.contains(&port) {
        let place = target.map_or(node.place, |target| target.place);
        let hint = match ports.as_slice() {
            [] => "the service has no ports at all".into(),
            [only] => format!("say `targetPort: {only}`"),
            many => format!("targetPort is one of {}", many.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")),
        };
        report.report(place, &path, format!("the service {namespace}/{name} has no port {port}"), Some(hint));
    }
}

fn filesystems(spec: &Node, report: &mut dyn Report) {
    unique(spec, "filesystems", "filesystems", report);
    for (path, filesystem) in items(spec, "filesystems") {
        if let Some(name) = filesystem.field("name") {
            label(name, &format!("{path}.name"), "a filesystem's name", LONGEST_LABEL, report);
        }
        amount(filesystem, &path, "size", LEAST_FILESYSTEM, report);
    }
}

fn unique(spec: &Node, list: &'static str, what: &str, report: &mut dyn Report) {
    let mut names: BTreeMap<&str, Place> = BTreeMap::new();
    for (path, item) in items(spec, list) {
        let Some((node, name)) = item.field("name").and_then(|node| Some((node, node.text()?))) else { continue };
        match names.get(name) {
            Some(first) => {
                report.report(node.place, &format!("{path}.name"), format!("two {what} have the name `{name}`"), elsewhere(*first))
            }
            None => {
                names.insert(name, node.place);
            }
        }
    }
}

/// A text that has to look like something, where there is one.
pub(super) fn word(node: Option<&Node>, path: &str, is_good: impl Fn(&str) -> bool, what: &str, hint: &str, report: &mut dyn Report) {
    if let Some(node) = node
        && let Some(text) = node.text()
        && !is_good(text)
    {
        report.report(node.place, path, format!("`{text}` is not {what}"), Some(hint.into()));
    }
}

pub(super) fn elsewhere(first: Place) -> Option<String> {
    (first.line > 0).then(|| format!("the first one is on line {}", first.line))
}

fn label(node: &Node, path: &str, what: &str, longest: usize, report: &mut dyn Report) {
    let Some(text) = node.text() else { return };
    if text.len() > longest {
        let message = format!("{what} has at most {longest} letters, this one has {}", text.chars().count());
        return report.report(node.place, path, message, None);
    }
    if is_label(text) && text.starts_with(|letter: char| letter.is_ascii_lowercase()) {
        return;
    }
    let mended: String = text.to_lowercase().chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
    let mended = mended.trim_matches('-').trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '-');
    let hint = if mended.is_empty() { "for instance `shop`".into() } else { format!("for instance `{mended}`") };
    let message = format!("`{text}` is not {what}: small letters, digits and dashes, a letter first, no dash last");
    report.report(node.place, path, message, Some(hint));
}

/// RFC 1123.
fn is_label(text: &str) -> bool {
    let inside = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
    !text.is_empty() && text.len() <= LONGEST_LABEL && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}
