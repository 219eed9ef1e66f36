//! A question's answer, as a pure function of the question and the index. The names are those of the Kubernetes DNS specification 1.1.0
//! (github.com/kubernetes/dns/blob/master/docs/specification.md).

use super::index::{Entry, Index, Port, undashed};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::IpAddr;

/// Seconds. Short, because pods come and go; upstream's default.
const TTL: u32 = 5;
/// A service may name a service that names a service; a circle ends here.
const MOST_ALIASES: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists, but not with this type.
    NoData,
    NoSuchName,
    /// Not ours: somebody else answers this name. `aliases` lead to it.
    Elsewhere {
        name: Name,
        aliases: Vec<Record>,
    },
    /// Ours, but nothing is known yet.
    NotReady,
}

/// Answers for `name` and `kind`.
pub fn answer(index: &Index, name: &Name, kind: RecordType) -> Answer {
    let mut name = name.clone();
    let mut aliases: Vec<Record> = Vec::new();
    loop {
        match lookup(index, &name, kind) {
            Found::Alias(target) => {
                aliases.push(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
                if kind == RecordType::CNAME || aliases.len() >= MOST_ALIASES {
                    return Answer::Records { answers: aliases, additionals: vec![] };
                }
                name = target;
            }
            Found::Data(data, additionals) => {
                let fits = |data: &RData| data.record_type() == kind || kind == RecordType::ANY;
                let own: Vec<Record> = data.into_iter().filter(fits).map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
                if own.is_empty() && aliases.is_empty() {
                    return Answer::NoData;
                }
                aliases.extend(own);
                return Answer::Records { answers: aliases, additionals };
            }
            Found::Nothing if aliases.is_empty() => return Answer::NoSuchName,
            Found::Nothing => return Answer::Records { answers: aliases, additionals: vec![] },
            Found::NotOurs => return Answer::Elsewhere { name, aliases },
            Found::NotReady => return Answer::NotReady,
        }
    }
}

/// What goes with a negative answer, so that resolvers may remember it for a moment.
pub fn authority(index: &Index) -> Option<Record> {
    let zone = absolute(index, &[])?;
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa(index)?)))
}

enum Found {
    /// All data of a name; the caller picks the type asked for.
    Data(Vec<RData>, Vec<Record>),
    Alias(Name),
    Nothing,
    NotOurs,
    NotReady,
}

fn lookup(index: &Index, name: &Name, kind: RecordType) -> Found {
    let labels: Vec<String> = name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    if labels.len() > 2 && matches!(labels[labels.len() - 2..], ["in-addr" | "ip6", "arpa"]) {
        return reverse(index, name);
    }
    let Some(split) = labels.len().checked_sub(index.domain.len()).filter(|split| labels[*split..] == index.domain) else {
        return Found::NotOurs;
    };
    let nothing_more = Found::Data(vec![], vec![]);
    match &labels[..split] {
        [] => {
            let servers = absolute(index, &["ns", "dns"]).map(|server| RData::NS(NS(server)));
            Found::Data(soa(index).map(RData::SOA).into_iter().chain(servers).collect(), vec![])
        }
        ["dns-version"] => Found::Data(vec![RData::TXT(TXT::new(vec!["1.1.0".into()]))], vec![]),
        ["dns"] | ["svc"] | ["pod"] => nothing_more,
        ["ns", "dns"] => Found::Data(vec![address_data(index.dns)], vec![]),
        // Any namespace is taken for granted, as upstream's default does: pods are not watched here.
        [_, "pod"] => nothing_more,
        [label, _, "pod"] => undashed(label).map_or(Found::Nothing, |address| Found::Data(vec![address_data(address)], vec![])),
        [.., "svc"] if !index.complete => Found::NotReady,
        [namespace, "svc"] => exists(index.has_namespace(namespace)),
        [rest @ .., service, namespace, "svc"] => match index.service(namespace, service) {
            Some(entry) => below_service(index, entry, rest, &[service, namespace, "svc"], kind),
            None => Found::Nothing,
        },
        _ => Found::Nothing,
    }
}

fn exists(yes: bool) -> Found {
    if yes { Found::Data(vec![], vec![]) } else { Found::Nothing }
}

fn below_service(index: &Index, entry: &Entry, rest: &[&str], service: &[&str], kind: RecordType) -> Found {
    match (entry, rest) {
        (Entry::External { target }, []) => match Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) {
            Ok(target) => Found::Alias(target),
            Err(_) => Found::Nothing,
        },
        (Entry::External { .. }, _) => Found::Nothing,
        (Entry::Cluster { addresses, .. }, []) => Found::Data(addresses.iter().copied().map(address_data).collect(), vec![]),
        (Entry::Headless { hosts }, []) => {
            Found::Data(hosts.values().flat_map(|host| &host.addresses).copied().map(address_data).collect(), vec![])
        }
        (Entry::Cluster { ports, .. }, [protocol]) => exists(ports.iter().any(|port| has_protocol(port, protocol))),
        (Entry::Headless { hosts }, [label]) => match hosts.get(*label) {
            Some(host) => Found::Data(host.addresses.iter().copied().map(address_data).collect(), vec![]),
            None => exists(hosts.values().flat_map(|host| &host.ports).any(|port| has_protocol(port, label))),
        },
        (Entry::Cluster { addresses, ports }, [name, protocol]) => {
            let found = ports.iter().filter(|port| has_protocol(port, protocol) && has_name(port, name));
            let target = absolute(index, service);
            serve(found.filter_map(|port| Some((target.clone()?, port.number))).collect(), |_| addresses.clone(), kind)
        }
        (Entry::Headless { hosts }, [name, protocol]) => {
            let mut found = Vec::new();
            for (host, what) in hosts {
                let labels = [&[host.as_str()][..], service].concat();
                for port in what.ports.iter().filter(|port| has_protocol(port, protocol) && has_name(port, name)) {
                    found.extend(absolute(index, &labels).map(|target| (target, port.number)));
                }
            }
            let host = |target: &Name| target.iter().next().and_then(|label| hosts.get(String::from_utf8_lossy(label).as_ref()));
            serve(found, |target| host(target).map(|host| host.addresses.iter().copied().collect()).unwrap_or_default(), kind)
        }
        _ => Found::Nothing,
    }
}

/// SRV data for the targets, with their addresses as a courtesy.
fn serve(targets: Vec<(Name, u16)>, addresses: impl Fn(&Name) -> Vec<IpAddr>, kind: RecordType) -> Found {
    if targets.is_empty() {
        return Found::Nothing;
    }
    // Weights say that all are equal; their sum stays near 100, as upstream has it.
    let weight = (100 / targets.len().clamp(1, 100)) as u16;
    let mut additionals = Vec::new();
    if kind == RecordType::SRV {
        let mut names: Vec<&Name> = targets.iter().map(|(target, _)| target).collect();
        names.dedup();
        for target in names {
            additionals.extend(addresses(target).into_iter().map(|address| Record::from_rdata(target.clone(), TTL, address_data(address))));
        }
    }
    Found::Data(targets.into_iter().map(|(target, port)| RData::SRV(SRV::new(0, weight, port, target))).collect(), additionals)
}

fn has_protocol(port: &Port, label: &str) -> bool {
    label.strip_prefix('_') == Some(&port.protocol)
}

fn has_name(port: &Port, label: &str) -> bool {
    !port.name.is_empty() && label.strip_prefix('_') == Some(&port.name)
}

fn reverse(index: &Index, name: &Name) -> Found {
    let Ok(range) = name.parse_arpa_name() else { return Found::NotOurs };
    let address = range.addr();
    let whole = range.prefix_len() == range.max_prefix_len();
    if whole {
        let targets: Vec<RData> = index
            .names(address)
            .filter_map(|labels| {
                let labels: Vec<&str> = labels.iter().map(String::as_str).chain(["svc"]).collect();
                absolute(index, &labels).map(|target| RData::PTR(PTR(target)))
            })
            .collect();
        if !targets.is_empty() {
            return Found::Data(targets, vec![]);
        }
    }
    match index.own_ranges.iter().any(|own| own.contains(&range)) {
        true if !index.complete => Found::NotReady,
        true => exists(!whole),
        false => Found::NotOurs,
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn soa(index: &Index) -> Option<SOA> {
    // The serial never changes: nobody transfers this zone.
    Some(SOA::new(absolute(index, &["ns", "dns"])?, absolute(index, &["hostmaster"])?, 1, 7200, 1800, 86_400, TTL))
}

/// Labels below the cluster's domain; `None` when a name of the cluster is too long for DNS.
fn absolute(index: &Index, labels: &[&str]) -> Option<Name> {
    Name::from_labels(labels.iter().copied().chain(index.domain.iter().map(String::as_str)).map(str::as_bytes)).ok()
}
