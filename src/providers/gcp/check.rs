//! What can be known before the first create: credentials, project, region, types, image, quota, access. All problems at once.

use super::Gcp;
use super::api::{Answer, plain};
use super::failure::{Cause, Failure};
use super::resources::{ADDRESS, Catalog, FIREWALL, HEALTH_CHECK};
use super::sizes;
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
                let catalog = self.catalog(&texts(resources, "machineType")).await?;
                problems.extend(quota(&new, &[project, region], &catalog.cores));
                problems.extend(self.types(resources, &catalog));
                problems.extend(self.images(resources, &new).await);
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

    fn types(&self, resources: &[Resource], catalog: &Catalog) -> Vec<Error> {
        let wanted = texts(resources, "machineType");
        let missing = wanted.iter().filter(|kind| !catalog.offers.contains_key(*kind));
        missing
            .map(|kind| {
                Error::input(format!("region {} has no machine type {kind}", self.settings.region))
                    .hint("name another one in spec.providers.gcp.machineTypes, or another region")
            })
            .collect()
    }

    async fn images(&self, resources: &[Resource], new: &[&Resource]) -> Vec<Error> {
        let mut problems = Vec::new();
        for image in texts(resources, "image") {
            let (project, family) = image.split_once('/').unwrap_or_default();
            match self.api.images.get_from_family().set_project(project).set_family(family).send().await {
                Ok(found) => problems.extend(disks(new, &image, found.disk_size_gb.unwrap_or_default().unsigned_abs())),
                Err(error) => {
                    let hint = "name another one in spec.providers.gcp.image, e.g. debian-cloud/debian-12";
                    problems.push(Failure::from(error).error(format!("could not find image family {image}")).hint(hint));
                }
            }
        }
        problems
    }
}

/// An image does not fit onto a smaller disk than its own.
fn disks(new: &[&Resource], image: &str, gib: u64) -> Vec<Error> {
    let machines = new.iter().filter(|wish| wish.id.kind == MACHINE && wish.spec["image"] == image);
    let disk = |wish: &&Resource| Some((wish.spec["group"].as_str()?.to_string(), wish.spec["diskBytes"].as_u64()? >> 30));
    let groups: BTreeMap<String, u64> = machines.filter_map(disk).filter(|(_, disk)| *disk < gib).collect();
    let problem = |(group, disk): (String, u64)| {
        Error::input(format!("image family {image} needs a disk of {gib} GiB, machines of group {group} have {disk}"))
            .hint(format!("write size: {{disk: {gib}Gi}} or more for group {group}"))
    };
    groups.into_iter().map(problem).collect()
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
fn quota(new: &[&Resource], owners: &[Value], cores: &BTreeMap<String, u64>) -> Vec<Error> {
    let count = |kind: &str| new.iter().filter(|wish| wish.id.kind == kind).count() as f64;
    let machines = || new.iter().filter(|wish| wish.id.kind == MACHINE);
    let types = || machines().filter_map(|wish| Some((wish, wish.spec["machineType"].as_str()?)));
    let on_ssds = types().filter(|(_, kind)| sizes::disk_type(kind) != sizes::HYPERDISK);
    let gib: u64 = on_ssds.filter_map(|(wish, _)| wish.spec["diskBytes"].as_u64()).sum::<u64>() >> 30;
    let mut by_series: BTreeMap<String, f64> = BTreeMap::new();
    for (_, kind) in types() {
        // A type that nobody sells is said elsewhere.
        *by_series.entry(sizes::core_quota(kind)).or_default() += cores.get(kind).copied().unwrap_or_default() as f64;
    }
    let listeners = new.iter().filter(|wish| wish.id.kind == LOAD_BALANCER);
    let rules: usize = listeners.map(|wish| wish.spec["listeners"].as_array().map_or(0, Vec::len)).sum();
    let mut wanted = BTreeMap::from([
        ("INSTANCES", count(MACHINE)),
        ("CPUS_ALL_REGIONS", by_series.values().sum::<f64>()),
        ("SSD_TOTAL_GB", gib as f64),
        ("IN_USE_ADDRESSES", count(MACHINE)),
        ("STATIC_ADDRESSES", count(ADDRESS)),
        ("NETWORKS", count(NETWORK)),
        ("FIREWALLS", count(FIREWALL)),
        ("HEALTH_CHECKS", count(HEALTH_CHECK)),
        ("FORWARDING_RULES", rules as f64),
    ]);
    wanted.extend(by_series.iter().map(|(metric, count)| (metric.as_str(), *count)));
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
        let machines =
            [machine("a", "e2-custom-4-8192"), machine("b", "e2-medium"), machine("c", "n2-standard-48"), machine("d", "n4-x-2")];
        let cores = [("e2-custom-4-8192", 4), ("e2-medium", 2), ("n2-standard-48", 48), ("n4-x-2", 2)];
        let cores = cores.map(|(kind, count)| (kind.to_string(), count)).into();
        let quotas: Vec<Value> = left.iter().map(|(metric, left)| json!({"metric": metric, "limit": left + 10.0, "usage": 10.0})).collect();
        let problems = quota(&machines.iter().collect::<Vec<_>>(), &[json!({"quotas": quotas})], &cores);
        assert_eq!(problems.iter().map(Error::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn quota_is_added_up_before_anything_is_made() {
        check(&[("INSTANCES", 4.0), ("CPUS", 6.0), ("N2_CPUS", 48.0), ("SSD_TOTAL_GB", 60.0), ("CPUS_ALL_REGIONS", 56.0)], &[]);
        check(
            &[("INSTANCES", 3.0), ("CPUS", 5.0), ("SSD_TOTAL_GB", 60.0), ("SNAPSHOTS", 0.0), ("CPUS_ALL_REGIONS", 32.0)],
            &[
                "quota INSTANCES: 4 more are needed, 3 are left",
                "quota CPUS: 6 more are needed, 5 are left",
                "quota CPUS_ALL_REGIONS: 56 more are needed, 32 are left",
            ],
        );
    }

    #[test]
    fn an_image_that_is_larger_than_a_disk_is_a_problem_of_the_group() {
        let mut machines = [machine("a", "e2-medium"), machine("b", "e2-medium")];
        for (machine, group) in machines.iter_mut().zip(["small", "large"]) {
            machine.spec["group"] = json!(group);
            machine.spec["image"] = json!("rocky-linux-cloud/rocky-linux-9");
        }
        machines[1].spec["diskBytes"] = json!(50u64 << 30);
        let all: Vec<&Resource> = machines.iter().collect();
        let said = |gib: u64| disks(&all, "rocky-linux-cloud/rocky-linux-9", gib).iter().map(Error::to_string).collect::<Vec<_>>();
        assert_eq!(said(20), Vec::<String>::new());
        assert_eq!(said(21), ["image family rocky-linux-cloud/rocky-linux-9 needs a disk of 21 GiB, machines of group small have 20"]);
        assert!(disks(&all, "debian-cloud/debian-12", 100).is_empty());
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
