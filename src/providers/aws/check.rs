//! What can be known before the first create: who we are, what we may do, who may reach the machines. All problems at once.

use super::Aws;
use super::clients::ec2_tags;
use super::failure::{OrFailure, failure};
use super::names::{GROUP, MACHINES};
use crate::engine::{Id, Resource};
use crate::error::{Error, Kind, Result};
use crate::providers::ownership;
use crate::providers::resources::MACHINE;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{InstanceType, ResourceType, TagSpecification};
use serde_json::Value;

impl Aws {
    pub(super) async fn check_all(&self, resources: &[Resource]) -> Result<()> {
        let who = self.clients.sts.get_caller_identity().send().await.or_failure("sign in to AWS").map(drop);
        let mut problems: Vec<Error> = who.err().into_iter().chain(closed(resources)).chain(foreign_processors(resources)).collect();
        // Whoever is nobody is refused everything.
        if problems.is_empty() {
            problems.extend(self.forbidden(resources).await);
        }
        together(problems)
    }

    /// What EC2 says it would not let us make, asked without making it, with the tags that permissions may ask for. The other services
    /// cannot be asked; the looks before this one have met those that let us see nothing.
    async fn forbidden(&self, resources: &[Resource]) -> Vec<Error> {
        let ec2 = &self.clients.ec2;
        let tags = |kind: ResourceType| {
            TagSpecification::builder().resource_type(kind).set_tags(Some(ec2_tags(&ownership::owner(&self.cluster)))).build()
        };
        let vpc = ec2.create_vpc().cidr_block("10.42.0.0/16").tag_specifications(tags(ResourceType::Vpc)).dry_run(true);
        let gateway = ec2.create_internet_gateway().tag_specifications(tags(ResourceType::InternetGateway)).dry_run(true);
        let (vpc, gateway) = futures::join!(vpc.send(), gateway.send());
        let mut found: Vec<Error> =
            [denial("make a network", vpc), denial("make an internet gateway", gateway)].into_iter().flatten().collect();
        for machine in kinds_of_machines(resources) {
            let text = |field: &str| machine[field].as_str().unwrap_or_default();
            let asked = ec2.run_instances().min_count(1).max_count(1).dry_run(true).image_id(text("image"));
            let asked = asked.instance_type(InstanceType::from(text("instanceType"))).tag_specifications(tags(ResourceType::Instance));
            found.extend(denial("start a machine", asked.tag_specifications(tags(ResourceType::Volume)).send().await));
        }
        found
    }
}

/// One machine of each type and image.
fn kinds_of_machines(resources: &[Resource]) -> Vec<&Value> {
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE).map(|machine| &machine.spec);
    let mut kinds: Vec<&Value> = machines.collect();
    let key = |spec: &&Value| (spec["instanceType"].to_string(), spec["image"].to_string());
    kinds.sort_by_key(key);
    kinds.dedup_by_key(|spec| key(spec));
    kinds
}

/// An answer to a question that makes nothing is always an error: "it would have been done", or what stands against it. What else may
/// be wrong with the question (no network of the account's own to ask about) says nothing.
fn denial<T, E>(what: &str, answer: std::result::Result<T, SdkError<E, HttpResponse>>) -> Option<Error>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    const SAYS: [&str; 6] =
        ["UnauthorizedOperation", "OptInRequired", "PendingVerification", "Blocked", "InsufficientInstanceCapacity", "VcpuLimitExceeded"];
    let error = answer.err()?;
    let told = error.code().is_some_and(|code| SAYS.contains(&code));
    told.then(|| failure(what, &error))
}

/// Nothing would be able to reach SSH: kprov itself could not.
fn closed(resources: &[Resource]) -> Option<Error> {
    let group = resources.iter().find(|resource| resource.id == Id::new(GROUP, MACHINES))?;
    let opens_ssh = group.spec["rules"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|rule| rule.starts_with("tcp 22 "));
    (!opens_ssh).then(|| crate::providers::firewall::check(&Default::default()).err()).flatten()
}

/// kprov uploads itself: its own program must run there.
fn foreign_processors(resources: &[Resource]) -> Option<Error> {
    let kinds = resources.iter().filter(|resource| resource.id.kind == MACHINE).filter_map(|machine| machine.spec["instanceType"].as_str());
    let ours = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "x86_64" };
    let other = kinds.map(|kind| (kind, super::sizes::architecture(kind))).find(|(_, architecture)| *architecture != ours)?;
    Some(Error::input(format!("could not use {}: it is {}, and this kprov is built for {ours}", other.0, other.1)))
}

fn together(problems: Vec<Error>) -> Result<()> {
    let mut problems = problems.into_iter();
    let Some(first) = problems.next() else { return Ok(()) };
    let rest: Vec<Error> = problems.collect();
    if rest.is_empty() {
        return Err(first);
    }
    let kind = if first.kind == Kind::Transient { Kind::Provider } else { first.kind };
    let error = Error::new(kind, "could not start: several things are missing").hint(first.chain());
    let hints =
        first.hints().to_vec().into_iter().chain(rest.iter().flat_map(|one| std::iter::once(one.chain()).chain(one.hints().to_vec())));
    Err(hints.fold(error, Error::hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(kind: &str, name: &str, spec: Value) -> Resource {
        Resource { id: Id::new(kind, name), spec, needs: vec![], replace_on: vec![], summary: String::new() }
    }

    #[test]
    fn a_closed_door_and_a_foreign_processor_are_said_together() {
        let resources = [
            resource(GROUP, MACHINES, json!({"rules": ["all from machines"]})),
            resource(
                MACHINE,
                "worker-1",
                json!({"instanceType": if std::env::consts::ARCH == "aarch64" { "m7i.large" } else { "m7g.large" }}),
            ),
        ];
        let problems: Vec<Error> = closed(&resources).into_iter().chain(foreign_processors(&resources)).collect();
        assert_eq!(problems.len(), 2);
        let error = together(problems).expect_err("two problems");
        assert!(error.hints().iter().any(|hint| hint.contains("spec.access.from")), "{:?}", error.hints());
        let open = [resource(GROUP, MACHINES, json!({"rules": ["tcp 22 from 192.0.2.0/24"]}))];
        assert!(closed(&open).is_none());
    }
}
