//! What lies on the hosts: a claim on each machine, the cluster's records on one of them, and what a look reads of it. Pure.

use crate::engine::{Cluster, Id};
use crate::error::{Error, Result};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// `/etc/kprov/claim.json`: whose machine this host is. The script looks for `"clusterUid":` and `"machine":` in its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub cluster_uid: String,
    pub cluster: String,
    pub machine: String,
    pub generation: u32,
    pub token: String,
    /// The spec as last applied.
    pub spec: Value,
}

/// `/etc/kprov/clusters/<uid>/<kind>.<name>.json` on the host that keeps the cluster's records. For a machine it is written before its
/// claim: whoever looks knows which silent host may be whose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub id: Id,
    pub generation: u32,
    pub token: String,
    pub spec: Value,
    #[serde(default)]
    pub outputs: Value,
    /// Of a machine: how to reach its host with the cluster's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
}

impl Record {
    pub fn file(id: &Id) -> String {
        format!("{}.{}", id.kind, id.name)
    }
}

/// The first line of `/etc/exports.d/kprov.<uid>.<name>.exports`: whose this export is, and how it was wished for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    pub cluster: Cluster,
    pub record: Record,
}

/// A host as the loop inside reaches it, and as others remember it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// The host's name in all of kprov: its address as written, with its port where that is not 22.
    pub place: String,
    pub address: String,
    pub port: u16,
    pub user: String,
    pub host_keys: Vec<String>,
    /// The link that its address is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Ipv4Net>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a host says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub claim: Option<Claim>,
    /// The text of a claim that cannot be read: somebody's, and not ours to overwrite.
    pub damaged: Option<String>,
    /// Of all clusters: uid, file name without `.json`, content.
    pub records: Vec<(String, String, Value)>,
    /// Of all clusters.
    pub shares: Vec<Share>,
    /// Folders of ours and who may mount them, as the NFS server says.
    pub exported: Vec<(String, String)>,
    /// An NFS server runs.
    pub serves: bool,
    pub addresses: Vec<Ipv4Addr>,
    /// The same with their networks.
    pub links: Vec<Ipv4Net>,
    /// What it sends from by default.
    pub source: Option<Ipv4Addr>,
    pub host_keys: Vec<String>,
    /// Where its sshd listens.
    pub ssh_port: Option<u16>,
}

/// The lines of an answer; an answer that was cut off is worth another try.
pub fn lines(text: &str) -> Result<Vec<(&str, &str)>> {
    let all: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    match all.last() {
        Some(("end", "yes")) => Ok(all),
        _ => Err(Error::transient("could not understand the host: its answer is cut off")),
    }
}

impl Seen {
    pub fn parse(text: &str) -> Result<Seen> {
        let mut seen = Seen::default();
        for (key, value) in lines(text)? {
            match key {
                "claim" => match serde_json::from_str(value) {
                    Ok(claim) => seen.claim = Some(claim),
                    Err(_) => seen.damaged = Some(value.into()),
                },
                "record" => seen.records.extend(record(value)),
                "share" => seen.shares.extend(serde_json::from_str::<Share>(value)),
                "exported" => seen.exported.extend(value.split_once(' ').map(|(folder, client)| (folder.into(), client.into()))),
                "nfs" => seen.serves = true,
                "address" => seen.addresses.extend(value.parse::<Ipv4Addr>()),
                "link" => seen.links.extend(value.parse::<Ipv4Net>()),
                "source" => seen.source = value.parse().ok(),
                "hostkey" => seen.host_keys.push(value.into()),
                "port" => seen.ssh_port = value.parse().ok(),
                _ => {}
            }
        }
        Ok(seen)
    }

    pub fn claim_of(&self, cluster: &Cluster) -> Option<&Claim> {
        self.claim.as_ref().filter(|claim| claim.cluster_uid == cluster.uid)
    }

    /// The record of this name that belongs to the cluster.
    pub fn record(&self, cluster: &Cluster, name: &str) -> Option<&Value> {
        self.records.iter().find(|(uid, file, _)| *uid == cluster.uid && file == name).map(|(.., value)| value)
    }

    /// Clusters that have something here.
    pub fn clusters(&self) -> Vec<Cluster> {
        let of_claim = self.claim.iter().map(|claim| Cluster { name: claim.cluster.clone(), uid: claim.cluster_uid.clone() });
        let kept = self.records.iter().filter(|(_, file, _)| file == CLUSTER);
        let shared = self.shares.iter().map(|share| share.cluster.clone());
        of_claim.chain(kept.filter_map(|(.., value)| serde_json::from_value(value.clone()).ok())).chain(shared).collect()
    }
}

/// The record that names the cluster, and the one that names its writer.
pub const CLUSTER: &str = "cluster";
pub const EPOCH: &str = "epoch";

fn record(text: &str) -> Option<(String, String, Value)> {
    let (uid, rest) = text.split_once(' ')?;
    let (file, content) = rest.split_once(' ')?;
    Some((uid.into(), file.strip_suffix(".json")?.into(), serde_json::from_str(content).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let text = "claim={\"clusterUid\":\"u\",\"cluster\":\"shop\",\"machine\":\"worker-1\",\"generation\":1,\"token\":\"t\",\"spec\":{}}\n\
                    record=u cluster.json {\"name\":\"shop\",\"uid\":\"u\"}\nrecord=v epoch.json {\"epoch\":1}\naddress=10.0.0.5\n\
                    source=10.0.0.5\nhostkey=ssh-ed25519 AAAA\nport=2222\nend=yes\n";
        let seen = Seen::parse(text).unwrap();
        let cluster = Cluster { name: "shop".into(), uid: "u".into() };
        assert_eq!(seen.claim_of(&cluster).unwrap().machine, "worker-1");
        assert_eq!(seen.record(&cluster, CLUSTER).unwrap()["name"], "shop");
        assert_eq!(seen.record(&cluster, EPOCH), None, "another cluster's record is not ours");
        assert_eq!((seen.addresses.len(), seen.host_keys.len(), seen.clusters().len()), (1, 1, 2));
        assert_eq!(seen.ssh_port, Some(2222));
        assert!(Seen::parse(&text[..text.len() - 4]).is_err());
        assert!(Seen::parse("claim={broken\nend=yes\n").unwrap().damaged.is_some());
    }
}
