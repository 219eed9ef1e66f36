//! Whose a thing in a cloud is, written on the thing itself: as tags (AWS) and as labels (Google Cloud). Pure.
//!
//! Everything kprov makes carries these, and nothing is looked up, changed or deleted by anything else: a name is for people.

use crate::engine::{Cluster, Id};
use std::collections::BTreeMap;

/// The owner: the one tag that decides.
pub const CLUSTER_UID: &str = "kprov-cluster-uid";
pub const CLUSTER_NAME: &str = "kprov-cluster-name";
/// `machine/worker-1`; tags only, a label's value has no `/`.
pub const ID: &str = "kprov-id";
/// The two halves of the id as labels: one label is too short for the longest kind and name together.
pub const KIND: &str = "kprov-kind";
pub const NAME: &str = "kprov-name";
pub const GENERATION: &str = "kprov-generation";

/// Google Cloud's limit for a label's value.
pub const LONGEST_LABEL: usize = 63;

/// What is written on a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub cluster: Cluster,
    pub id: Id,
    pub generation: u32,
}

impl Mark {
    pub fn new(cluster: &Cluster, id: &Id, generation: u32) -> Self {
        Mark { cluster: cluster.clone(), id: id.clone(), generation }
    }

    pub fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = owner(&self.cluster);
        tags.insert(ID.into(), self.id.to_string());
        tags.insert(GENERATION.into(), self.generation.to_string());
        tags
    }

    /// Letters, digits, `-` and `_` only, as logical ids and uids are made of.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = owner(&self.cluster);
        labels.insert(KIND.into(), self.id.kind.clone());
        labels.insert(NAME.into(), self.id.name.clone());
        labels.insert(GENERATION.into(), self.generation.to_string());
        labels
    }

    /// What tags or labels say; `None` unless they are whole and name this cluster's uid.
    pub fn read<'a>(uid: &str, tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Mark> {
        let tags: BTreeMap<&str, &str> = tags.into_iter().collect();
        let cluster = Cluster { name: (*tags.get(CLUSTER_NAME)?).into(), uid: (*tags.get(CLUSTER_UID)?).into() };
        let id = match tags.get(ID) {
            Some(id) => id.split_once('/').map(|(kind, name)| Id::new(kind, name))?,
            None => Id::new(*tags.get(KIND)?, *tags.get(NAME)?),
        };
        let generation = tags.get(GENERATION)?.parse().ok()?;
        (cluster.uid == uid).then_some(Mark { cluster, id, generation })
    }
}

/// The tags of the cluster as a whole.
pub fn owner(cluster: &Cluster) -> BTreeMap<String, String> {
    BTreeMap::from([(CLUSTER_UID.into(), cluster.uid.clone()), (CLUSTER_NAME.into(), cluster.name.clone())])
}

/// Whether a text may be the value of a label.
pub fn is_label(text: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-' || letter == '_';
    text.len() <= LONGEST_LABEL && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let cluster = Cluster { name: "shop".into(), uid: "0b5e".into() };
        Mark::new(&cluster, &Id::new("machine", "worker-1"), 3)
    }

    fn read(uid: &str, tags: &BTreeMap<String, String>) -> Option<Mark> {
        Mark::read(uid, tags.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    #[test]
    fn a_mark_is_read_back_from_tags_and_from_labels() {
        assert_eq!(read("0b5e", &mark().tags()), Some(mark()));
        assert_eq!(read("0b5e", &mark().labels()), Some(mark()));
        assert_eq!(mark().tags()[ID], "machine/worker-1");
    }

    #[test]
    fn a_neighbours_mark_is_not_ours_however_alike() {
        assert_eq!(read("0b5", &mark().tags()), None);
        assert_eq!(read("0b5e1", &mark().labels()), None);
        let mut without = mark().tags();
        without.remove(GENERATION);
        assert_eq!(read("0b5e", &without), None);
    }

    #[test]
    fn the_longest_kind_and_name_are_labels() {
        let id = Id::new("load-balancer", "a".repeat(LONGEST_LABEL));
        assert!(Mark::new(&mark().cluster, &id, u32::MAX).labels().values().all(|value| is_label(value)));
        assert!(!is_label("machine/worker-1") && !is_label(&"a".repeat(LONGEST_LABEL + 1)));
    }
}
