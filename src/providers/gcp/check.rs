//! What can be known before the first create: credentials, project, region, types, image, quota, access. All problems at once.

use super::Gcp;
use super::api::{Answer, plain};
use super::failure::{Cause, Failure};
use super::resources::{ADDRESS, FIREWALL, HEALTH_CHECK};
use crate::blueprint::schema::Access;
use crate::engine::{Observed, Resource};
use crate::error::{Error, Result};
use crate::providers::firewall;
use crate::providers::resources::{LOAD_BALANCER, MACHINE, NETWORK};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

impl Gcp {
    pub(super) async fn check_all(&self, resources: &[Resource]) -> Result<()> {
        let mut problems = access(resources);
        match self.project_and_region().await {
            Ok((project, region)) => {
                let existing = self.look_at_all().await?;
                let new: Vec<&Resource> =
                    resources.iter().filter(|wish| !existing.iter().any(|thing: &Observed| thing.id == wish.id)).collect();
                problems.extend(quota(&new, &[project, region]));
                problems.extend(self.types(resources).await?);
                problems.extend(self.images(resources).await);
            }
            // Without an answer to this nothing else can be asked.
            Err(failure) => problems.push(failure.error(format!("could not use project {}", self.settings.project))),
        }
        merged(problems)
    }

    async fn project_and_region(&self) -> Answer<(Value, Value)> {
        let project = plain(self.api.projects.get().set_project(&self.settings.project).send().await?)?;
        let region = self.api.regions.get().set_project(&self.settings.project).set_region(&self.settings.region).send().await;
        match region.map_err(Failure::from) {
            Ok(region) => Ok((project, plain(region)?)),
            Err(failure) if failure.cause == Cause::NotFound => {
                Err(Failure::new(Cause::Refused, format!("there is no region {:?}", self.settings.region)))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn types(&self, resources: &[Resource]) -> Result<Vec<Error>> {
        let wanted: BTreeSet<String> = texts(resources, "machineType");
        let catalog = self.catalog(&wanted).await?;
        let missing = wanted.iter().filter(|kind| !catalog.offers.contains_key(*kind));
        Ok(missing
            .map(|kind| {
                Error::input(format!("region {} has no machine type {kind}", self.settings.region))
                    .hint("name another one in spec.providers.gcp.machineTypes, or another region")
            })
            .collect())
    }

    async fn images(&self, resources: &[Resource]) -> Vec<Error> {
        let mut problems = Vec::new();
        for image in texts(resources, "image") {
            let (project, family) = image.split_once('/').unwrap_or_default();
            if let Err(error) = self.api.images.get_from_family().set_project(project).set_family(family).send().await {
                let hint = "name another one in spec.providers.gcp.image, e.g. debian-cloud/debian-12";
                problems.push(Failure::from(error).error(format!("could not find image family {image}")).hint(hint));
            }
        }
        problems
    }
}

/// Distinct texts of a field over all machines.
fn texts(resources: &[Resource], field: &str) -> BTreeSet<String> {
    let machines = resources.iter().filter(|wish| wish.id.kind == MACHINE);
    machines.filter_map(|wish| wish.spec[field].as_str().map(str::to_string)).collect()
}

/// The rules for SSH and the API are there only when somebody may connect.
fn access(resources: &[Resource]) -> Vec<Error> {
    let is_reachable = resources.iter().any(|wish| wish.id.kind == FIREWALL && wish.id.name == "ssh");
    let needs = resources.iter().any(|wish| wish.id.kind == MACHINE);
    if is_reachable || !needs { Vec::new() } else { firewall::check(&Access::default()).err().into_iter().collect() }
}

/// What is to be made, against what the project and the region have left.
fn quota(new: &[&Resource], owners: &[Value]) -> Vec<Error> {
    let count = |kind: &str| new.iter().filter(|wish| wish.id.kind == kind).count() as f64;
    let machines = || new.iter().filter(|wish| wish.id.kind == MACHINE);
    let gib: u64 = machines().filter_map(|wish| wish.spec["diskBytes"].as_u64()).sum::<u64>() >> 30;
    let cores = |prefix: &str| {
        let of = |kind: &str| kind.strip_prefix(prefix).map(|rest| rest.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(2.0));
        machines().filter_map(|wish| of(wish.spec["machineType"].as_str()?)).sum::<f64>()
    };
    let listeners = new.iter().filter(|wish| wish.id.kind == LOAD_BALANCER);
    let rules: usize = listeners.map(|wish| wish.spec["listeners"].as_array().map_or(0, Vec::len)).sum();
    let wanted = BTreeMap::from([
        ("INSTANCES", count(MACHINE)),
        ("CPUS", cores("e2-")),
        ("N2_CPUS", cores("n2-")),
        ("SSD_TOTAL_GB", gib as f64),
        ("IN_USE_ADDRESSES", count(MACHINE)),
        ("STATIC_ADDRESSES", count(ADDRESS)),
        ("NETWORKS", count(NETWORK)),
        ("FIREWALLS", count(FIREWALL)),
        ("HEALTH_CHECKS", count(HEALTH_CHECK)),
        ("FORWARDING_RULES", rules as f64),
    ]);
    let quotas = owners.iter().flat_map(|owner| owner["quotas"].as_array().into_iter().flatten());
    quotas.filter_map(|quota| short(quota, &wanted)).collect()
}

fn short(quota: &Value, wanted: &BTreeMap<&str, f64>) -> Option<Error> {
    let metric = quota["metric"].as_str()?;
    let wanted = *wanted.get(metric)?;
    let left = quota["limit"].as_f64()? - quota["usage"].as_f64().unwrap_or_default();
    (wanted > left).then(|| {
        Error::provider(format!("quota {metric}: {wanted} more are needed, {left} are left"))
            .hint("ask for more at https://console.cloud.google.com/iam-admin/quotas, or make the blueprint smaller")
    })
}

/// One error that says everything.
fn merged(mut problems: Vec<Error>) -> Result<()> {
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.remove(0)),
        count => {
            let lines: Vec<String> = problems.iter().map(|problem| format!("\n  - {}", problem.chain())).collect();
            let mut error = Error::new(problems[0].kind, format!("could not start, {count} things are wrong:{}", lines.concat()));
            let hints: BTreeSet<&String> = problems.iter().flat_map(Error::hints).collect();
            for hint in hints {
                error = error.hint(hint);
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Id;
    use serde_json::json;

    fn machine(name: &str, kind: &str) -> Resource {
        let spec = json!({"machineType": kind, "diskBytes": 20u64 << 30});
        Resource { id: Id::new(MACHINE, name), spec, needs: vec![], replace_on: vec![], summary: String::new() }
    }

    fn check(left: &[(&str, f64)], expected: &[&str]) {
        let machines = [machine("a", "e2-standard-4"), machine("b", "e2-medium"), machine("c", "n2-standard-48")];
        let quotas: Vec<Value> = left.iter().map(|(metric, left)| json!({"metric": metric, "limit": left + 10.0, "usage": 10.0})).collect();
        let problems = quota(&machines.iter().collect::<Vec<_>>(), &[json!({"quotas": quotas})]);
        assert_eq!(problems.iter().map(Error::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn quota_is_added_up_before_anything_is_made() {
        check(&[("INSTANCES", 3.0), ("CPUS", 6.0), ("N2_CPUS", 48.0), ("SSD_TOTAL_GB", 60.0)], &[]);
        check(
            &[("INSTANCES", 2.0), ("CPUS", 5.0), ("SSD_TOTAL_GB", 60.0), ("SNAPSHOTS", 0.0)],
            &["quota INSTANCES: 3 more are needed, 2 are left", "quota CPUS: 6 more are needed, 5 are left"],
        );
    }

    #[test]
    fn all_problems_come_at_once() {
        let error = merged(vec![Error::input("one").hint("do this"), Error::provider("two").hint("do that")]).expect_err("two problems");
        assert!(error.to_string().contains("one") && error.to_string().contains("two"));
        assert_eq!(error.hints().len(), 2);
    }

    #[test]
    fn machines_that_nobody_may_reach_are_a_problem() {
        assert_eq!(access(&[machine("a", "e2-medium")]).len(), 1);
        assert!(access(&[]).is_empty());
    }
}
