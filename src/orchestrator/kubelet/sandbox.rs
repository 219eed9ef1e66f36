//! What the runtime is told of a pod as a whole: name, host name, DNS, ports, namespaces, cgroup; pure.

use super::cri::messages::*;
use super::observed::*;
use crate::orchestrator::config::AgentConfig;
use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, SeccompProfile};

/// Resolvers take no more (glibc's limits, as upstream applies them).
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The folder below the log root that holds a pod's logs, one folder per container.
pub fn log_folder(pod: &Pod) -> String {
    format!("{}_{}_{}", namespace(pod), name(pod), uid(pod))
}

pub fn labels(pod: &Pod) -> Map {
    let mut labels: Map = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend([
        (LABEL_POD_NAME.to_owned(), name(pod).to_owned()),
        (LABEL_POD_NAMESPACE.to_owned(), namespace(pod).to_owned()),
        (LABEL_POD_UID.to_owned(), uid(pod).to_owned()),
    ]);
    labels
}

/// `host_resolv` is the machine's own /etc/resolv.conf, `logs` the log root.
pub fn config(
    pod: &Pod,
    agent: &AgentConfig,
    attempt: u32,
    cgroup_parent: &str,
    host_resolv: &str,
    logs: &std::path::Path,
) -> PodSandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let security = spec.security_context.clone().unwrap_or_default();
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter(|port| port.host_port.is_some_and(|port| port > 0) && !host_network(pod));
    let privileged = containers(pod)
        .iter()
        .chain(init_containers(pod))
        .any(|container| container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name: name(pod).into(), uid: uid(pod).into(), namespace: namespace(pod).into(), attempt }),
        hostname: if host_network(pod) { String::new() } else { host_name(pod, &agent.cluster_domain) },
        log_directory: logs.join(log_folder(pod)).to_string_lossy().into_owned(),
        dns_config: dns(pod, agent, host_resolv),
        port_mappings: ports
            .map(|port| PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => 1,
                    Some("SCTP") => 2,
                    _ => 0,
                },
                container_port: port.container_port,
                host_port: port.host_port.unwrap_or(0),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
            .collect(),
        labels: labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: security.run_as_user.map(|value| Int64Value { value }),
                run_as_group: security.run_as_user.and(security.run_as_group).map(|value| Int64Value { value }),
                supplemental_groups: groups(&security),
                privileged,
                seccomp: Some(seccomp(None, None)),
            }),
            sysctls: security.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        }),
    }
}

pub fn groups(security: &PodSecurityContext) -> Vec<i64> {
    security.fs_group.iter().chain(security.supplemental_groups.iter().flatten()).copied().collect()
}

pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let is = |get: fn(&k8s_openapi::api::core::v1::PodSpec) -> Option<bool>| spec.and_then(get).unwrap_or(false);
    NamespaceOption {
        network: if host_network(pod) { namespace::NODE } else { namespace::POD },
        pid: match () {
            () if is(|spec| spec.host_pid) => namespace::NODE,
            () if is(|spec| spec.share_process_namespace) => namespace::POD,
            () => namespace::CONTAINER,
        },
        ipc: if is(|spec| spec.host_ipc) { namespace::NODE } else { namespace::POD },
    }
}

/// The container's profile, else the pod's, else the runtime's default: kprov confines what nobody spoke of.
pub fn seccomp(container: Option<&SeccompProfile>, pod: Option<&SeccompProfile>) -> SecurityProfile {
    match container.or(pod) {
        Some(profile) if profile.type_ == "Unconfined" => SecurityProfile { profile_type: 1, localhost_ref: String::new() },
        Some(profile) if profile.type_ == "Localhost" => {
            let path = format!("/var/lib/kubelet/seccomp/{}", profile.localhost_profile.as_deref().unwrap_or_default());
            SecurityProfile { profile_type: 2, localhost_ref: path }
        }
        _ => SecurityProfile::default(),
    }
}

/// The short name (63 letters, the kernel's limit is 64), or the full one when the pod asks for it.
pub fn host_name(pod: &Pod, domain: &str) -> String {
    let short = short_name(pod);
    let full = pod.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn).unwrap_or(false);
    match full_name(pod, domain) {
        Some(name) if full => name,
        _ => short,
    }
}

fn short_name(pod: &Pod) -> String {
    let named = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty()).unwrap_or(name(pod));
    let cut: String = named.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn full_name(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{domain}", short_name(pod), namespace(pod)))
}

/// The pod's /etc/hosts.
pub fn hosts(pod: &Pod, ips: &[String], domain: &str, host_file: &str) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    if host_network(pod) {
        text = format!("# Kubernetes-managed hosts file (host network).\n{host_file}");
    } else {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n");
        text.push_str("fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
        let names = full_name(pod, domain).map_or_else(|| short_name(pod), |full| format!("{full}\t{}", short_name(pod)));
        text.extend(ips.iter().map(|ip| format!("{ip}\t{names}\n")));
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        text.extend(aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"))));
    }
    text
}

/// The machine's own resolv.conf, or another one (`resolved`) where it is of no use to a pod: systemd-resolved writes itself there, at a
/// loopback address that means another thing in a pod; whom it asks is in a file of its own.
pub fn reachable_resolv(own: String, resolved: impl FnOnce() -> String) -> String {
    let servers = parse_resolv(&own).servers;
    let is_loopback = |server: &String| server.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if servers.is_empty() || !servers.iter().all(is_loopback) {
        return own;
    }
    Some(resolved()).filter(|text| !parse_resolv(text).servers.is_empty()).unwrap_or(own)
}

/// `None` lets the runtime copy the machine's resolv.conf.
fn dns(pod: &Pod, agent: &AgentConfig, host_resolv: &str) -> Option<DnsConfig> {
    let spec = pod.spec.as_ref()?;
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host = parse_resolv(host_resolv);
    let cluster = match policy {
        "ClusterFirst" => !host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if cluster => {
            let domain = &agent.cluster_domain;
            let mut searches = vec![format!("{}.svc.{domain}", namespace(pod)), format!("svc.{domain}"), domain.clone()];
            searches.extend(host.searches);
            DnsConfig { servers: vec![agent.dns_address.to_string()], searches, options: vec!["ndots:5".into()] }
        }
        _ if spec.dns_config.is_none() && (host_network(pod) || host.servers.is_empty()) => return None,
        _ => host,
    };
    if let Some(extra) = &spec.dns_config {
        config.servers.extend(extra.nameservers.clone().unwrap_or_default());
        config.searches.extend(extra.searches.clone().unwrap_or_default());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            // The pod's own value of an option replaces the one that was there.
            config.options.retain(|before| before.split(':').next() != Some(&name));
            config.options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    unique(&mut config.servers, MOST_SERVERS);
    unique(&mut config.searches, MOST_SEARCHES);
    Some(config)
}

fn unique(list: &mut Vec<String>, most: usize) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list.truncate(most);
}

fn parse_resolv(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let list = match words.next() {
            Some("nameserver") => &mut config.servers,
            Some("search") => {
                config.searches.clear();
                &mut config.searches
            }
            Some("options") => &mut config.options,
            _ => continue,
        };
        list.extend(words.map(str::to_owned));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn agent() -> AgentConfig {
        serde_json::from_value(json!({
            "nodeName": "n", "address": "10.0.0.1", "api": "", "data": "/d", "pki": "/p", "serviceCidr": "10.96.0.0/16", "podCidr": "10.244.0.0/16",
            "dnsAddress": "10.96.0.10", "clusterDomain": "cluster.local", "containerdSocket": "/s", "providerId": ""
        }))
        .unwrap()
    }

    #[test]
    fn dns_follows_the_policy() {
        let host = "nameserver 192.0.2.1\nsearch example.org\noptions edns0\n";
        let check = |spec, wanted: Option<(&str, &str, &str)>| {
            let got = dns(&pod(spec), &agent(), host);
            let got = got.map(|dns| (dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" ")));
            assert_eq!(got, wanted.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
        };
        let cluster = "shop.svc.cluster.local svc.cluster.local cluster.local example.org";
        check(json!({"containers": []}), Some(("10.96.0.10", cluster, "ndots:5")));
        check(json!({"containers": [], "hostNetwork": true}), None);
        check(json!({"containers": [], "dnsPolicy": "Default"}), Some(("192.0.2.1", "example.org", "edns0")));
        check(json!({"containers": [], "dnsPolicy": "Default", "hostNetwork": true}), None);
        check(
            json!({"containers": [], "dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true, "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            Some(("10.96.0.10", cluster, "ndots:2")),
        );
        check(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["x"]}}),
            Some(("192.0.2.9", "x", "")),
        );
    }

    #[test]
    fn a_resolver_that_only_the_machine_itself_reaches_is_no_pods() {
        let check = |own: &str, resolved: &str, expected: &str| assert_eq!(reachable_resolv(own.into(), || resolved.into()), expected);
        let (stub, real) = ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 169.254.169.254\nsearch internal\n");
        check(stub, real, real);
        check("nameserver ::1\n", real, real);
        check(stub, "", stub);
        check("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", real, "nameserver 127.0.0.53\nnameserver 192.0.2.1\n");
        check("search example.org\n", real, "search example.org\n");
    }

    #[test]
    fn the_hosts_file_names_the_pod() {
        let text = hosts(
            &pod(
                json!({"containers": [], "hostname": "db", "subdomain": "dbs", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
            ),
            &["10.244.0.2".into()],
            "cluster.local",
            "",
        );
        assert!(text.contains("10.244.0.2\tdb.dbs.shop.svc.cluster.local\tdb\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
    }
}
