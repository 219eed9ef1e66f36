//! Which clusters an account's region holds: told by kprov's own tags on networks and filesystems, and by the writers' records, which
//! are made before everything else and go last.

use super::catalog::filter;
use super::clients::{Clients, of_ec2, of_efs};
use super::failure::{OrFailure, failure};
use super::names::PARAMETERS;
use crate::engine::Cluster;
use crate::error::Result;
use crate::providers::ownership::{CLUSTER_NAME, CLUSTER_UID};
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ssm::types::ResourceTypeForTagging;
use std::collections::BTreeMap;

type Tags = BTreeMap<String, String>;

pub async fn all(clients: &Clients) -> Result<Vec<Cluster>> {
    let (networks, filesystems, records) = futures::try_join!(networks(clients), filesystems(clients), records(clients))?;
    let found: BTreeMap<String, Cluster> =
        networks.into_iter().chain(filesystems).chain(records).map(|cluster| (cluster.uid.clone(), cluster)).collect();
    Ok(found.into_values().collect())
}

fn cluster(mut tags: Tags) -> Option<Cluster> {
    Some(Cluster { uid: tags.remove(CLUSTER_UID)?, name: tags.remove(CLUSTER_NAME)? })
}

async fn networks(clients: &Clients) -> Result<Vec<Cluster>> {
    let mut found = Vec::new();
    let mut pages = clients.ec2.describe_vpcs().filters(filter("tag-key", [CLUSTER_UID])).into_paginator().send();
    while let Some(page) = pages.next().await {
        found.extend(page.or_failure("look for clusters")?.vpcs().iter().filter_map(|vpc| cluster(of_ec2(vpc.tags()))));
    }
    Ok(found)
}

async fn filesystems(clients: &Clients) -> Result<Vec<Cluster>> {
    let mut found = Vec::new();
    let mut pages = clients.efs.describe_file_systems().into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.or_failure("look for clusters' filesystems")?;
        found.extend(page.file_systems().iter().filter_map(|filesystem| cluster(of_efs(filesystem.tags()))));
    }
    Ok(found)
}

async fn records(clients: &Clients) -> Result<Vec<Cluster>> {
    // One name of each cluster is enough.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut pages = clients.ssm.get_parameters_by_path().path(PARAMETERS).recursive(true).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.or_failure("look for clusters' records")?;
        names.extend(page.parameters().iter().filter_map(|one| Some((uid(one.name()?)?.to_string(), one.name()?.to_string()))));
    }
    let mut found = Vec::new();
    for (uid, name) in names {
        let asked = clients.ssm.list_tags_for_resource().resource_type(ResourceTypeForTagging::Parameter).resource_id(&name);
        let tags = match asked.send().await {
            Ok(answer) => answer.tag_list().iter().map(|tag| (tag.key().to_string(), tag.value().to_string())).collect(),
            Err(error) if error.code() == Some("InvalidResourceId") => continue,
            Err(error) => return Err(failure("read a cluster's record", &error)),
        };
        found.extend(cluster(tags).filter(|cluster| cluster.uid == uid));
    }
    Ok(found)
}

/// `/kprov/<uid>/...`
fn uid(name: &str) -> Option<&str> {
    name.strip_prefix(PARAMETERS)?.strip_prefix('/')?.split_once('/').map(|(uid, _)| uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_its_cluster() {
        assert_eq!(uid("/kprov/0b5e-1/epoch/000000000001"), Some("0b5e-1"));
        assert_eq!((uid("/kprov/0b5e-1"), uid("/kprovs/0b5e-1/epoch")), (None, None));
    }

    #[test]
    fn half_a_mark_is_no_cluster() {
        let tags = |keys: &[&str]| keys.iter().map(|key| (key.to_string(), "x".to_string())).collect::<Tags>();
        assert_eq!(cluster(tags(&[CLUSTER_UID])), None);
        assert_eq!(cluster(tags(&[CLUSTER_UID, CLUSTER_NAME])), Some(Cluster { name: "x".into(), uid: "x".into() }));
    }
}
