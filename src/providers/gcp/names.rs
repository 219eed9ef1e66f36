//! How our things are called and marked: a name from (cluster, id), and our labels as JSON in the description of every thing, since half
//! of Google's kinds have no labels. Pure.

use crate::engine::{Cluster, Id};
use crate::providers::ownership::{CLUSTER_UID, Mark};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use uuid::Uuid;

/// In the descriptions of a cluster's network and of its writers' records.
pub const REGION: &str = "region";
/// The user that the cluster's public key is for.
pub const SSH_USER: &str = "kprov";
/// Google's names: `[a-z]([-a-z0-9]*[a-z0-9])?`, at most this long.
const LONGEST: usize = 63;

/// What stands in `description`: the mark's labels, and what else has no better place (all texts).
pub fn description(mark: &Mark, more: &[(&str, &str)]) -> String {
    let mut all = mark.labels();
    all.extend(more.iter().map(|(name, value)| (name.to_string(), value.to_string())));
    serde_json::to_string(&all).expect("texts are plain data")
}

/// The texts of a description that we wrote; a stranger's has none.
pub fn described(thing: &Value) -> BTreeMap<String, String> {
    thing["description"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Whose a thing is, when it is this cluster's. Names only say where to look.
pub fn mark(uid: &str, thing: &Value) -> Option<Mark> {
    let texts = described(thing);
    Mark::read(uid, texts.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Finds things with labels.
pub fn label_filter(uid: &str) -> String {
    format!("labels.{CLUSTER_UID}={uid}")
}

/// Finds things by the beginning of their names; what matches is still asked for its mark.
pub fn name_filter(uid: &str) -> String {
    format!("name eq \"{}-.*\"", prefix(uid))
}

/// `kprov-` and twelve letters of the uid: what all names of a cluster begin with.
pub fn prefix(uid: &str) -> String {
    let digits = match Uuid::parse_str(uid) {
        Ok(uuid) => uuid.simple().to_string(),
        Err(_) => hex::encode(Sha256::digest(uid)),
    };
    format!("kprov-{}", &digits[..12])
}

pub fn name(cluster: &Cluster, id: &Id) -> String {
    named(&cluster.uid, &format!("{}-{}", id.kind, id.name))
}

/// The cluster's network and subnetwork: there is one of each.
pub fn of_cluster(cluster: &Cluster, kind: &str) -> String {
    name(cluster, &Id::new(kind, &cluster.name))
}

/// The network tag of the cluster's machines: what firewall rules speak of.
pub fn tag(uid: &str) -> String {
    format!("{}-node", prefix(uid))
}

/// `kprov-<uid>-<rest>`, its tail replaced by a hash where it would be too long.
pub fn named(uid: &str, rest: &str) -> String {
    let whole = format!("{}-{rest}", prefix(uid));
    if whole.len() <= LONGEST {
        return whole;
    }
    let hash = hex::encode(&Sha256::digest(&whole)[..5]);
    format!("{}-{hash}", whole[..LONGEST - 11].trim_end_matches('-'))
}

/// A UUID that is the same for the same words: Google's `requestId`.
pub fn request_id(words: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, words.join("\n").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster(uid: &str) -> Cluster {
        Cluster { name: "shop".into(), uid: uid.into() }
    }

    fn is_good(name: &str) -> bool {
        let letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        name.len() <= 63 && name.starts_with(|first: char| first.is_ascii_lowercase()) && !name.ends_with('-') && name.chars().all(letter)
    }

    #[test]
    fn every_name_is_one_that_google_takes() {
        let shop = cluster("3f2a9c11-d0e4-4b6f-9a51-0c1d2e3f4a5b");
        assert_eq!(name(&shop, &Id::new("machine", "worker-1")), "kprov-3f2a9c11d0e4-machine-worker-1");
        let (long, other) = ("a".repeat(58) + "-1", "a".repeat(58) + "-2");
        let names = [&long, &other].map(|text| name(&shop, &Id::new("machine", text.as_str())));
        assert!(names.iter().all(|name| is_good(name)), "{names:?}");
        assert_ne!(names[0], names[1], "cut names stay apart");
        assert!(is_good(&name(&cluster("u-A"), &Id::new("network", "shop"))));
        assert_ne!(prefix("u-a"), prefix("u-b"));
    }

    #[test]
    fn a_mark_is_read_back_and_a_strangers_description_is_none() {
        let ours = Mark::new(&cluster("u-1"), &Id::new("machine", "worker-1"), 2);
        let thing = json!({"description": description(&ours, &[("role", "worker")])});
        assert_eq!(mark("u-1", &thing), Some(ours));
        assert_eq!(described(&thing)["role"], "worker");
        assert_eq!(mark("u-2", &thing), None);
        assert_eq!(mark("u-1", &json!({"description": "the shop's network"})), None);
        assert_eq!(mark("u-1", &json!({})), None);
    }
}
