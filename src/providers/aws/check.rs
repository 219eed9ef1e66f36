//! What can be known before the first create: who we are, what we may do, who may reach the machines. All problems at once.

use super::Aws;
use super::clients::ec2_tags;
use super::failure::failure;
use super::names::{GROUP, KEY_PAIR, MACHINES, MAIN, plain};
use super::resources::crossed;
use super::sizes::{self, OURS};
use crate::engine::{Id, Resource};
use crate::error::{Error, Kind, Result};
use crate::providers::resources::{LOAD_BALANCER, MACHINE, NETWORK};
use crate::providers::{Provider, ownership};
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::primitives::Blob;
use aws_sdk_ec2::types::{InstanceType, ResourceType, TagSpecification};
use serde_json::Value;

impl Aws {
    pub(super) async fn check_all(&self, resources: &[Resource]) -> Result<()> {
        // Who says where it is has signed in.
        let mut problems: Vec<Error> = self.place().await.err().into_iter().chain(wrong(resources)).collect();
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
        let wished = |kind: &str| resources.iter().find(|wish| wish.id.kind == kind);
        let mut found = Vec::new();
        if wished(NETWORK).is_some() {
            let vpc = ec2.create_vpc().cidr_block("10.42.0.0/16").tag_specifications(tags(ResourceType::Vpc)).dry_run(true);
            let gateway = ec2.create_internet_gateway().tag_specifications(tags(ResourceType::InternetGateway)).dry_run(true);
            let (vpc, gateway) = futures::join!(vpc.send(), gateway.send());
            found.extend([denial("make a network", vpc), denial("make an internet gateway", gateway)].into_iter().flatten());
        }
        // Only in a network that is there: without one, the question would be about the account's default network.
        if let Some(vpc) = wished(GROUP).and_then(|group| group.spec["vpc"].as_str()) {
            let asked = ec2.create_security_group().vpc_id(vpc).group_name(plain(&self.cluster, MACHINES)).description("kprov");
            found.extend(denial(
                "make a security group",
                asked.tag_specifications(tags(ResourceType::SecurityGroup)).dry_run(true).send().await,
            ));
        }
        if let Some(key) = wished(KEY_PAIR).and_then(|pair| pair.spec["publicKey"].as_str()) {
            let asked = ec2.import_key_pair().key_name(plain(&self.cluster, MAIN)).public_key_material(Blob::new(key));
            found.extend(denial("import the SSH key", asked.tag_specifications(tags(ResourceType::KeyPair)).dry_run(true).send().await));
        }
        for machine in kinds_of_machines(resources) {
            let text = |field: &str| machine[field].as_str().unwrap_or_default();
            let asked = ec2.run_instances().min_count(1).max_count(1).dry_run(true).image_id(text("image"));
            let asked =
                asked.instance_type(InstanceType::from(text("instanceType"))).set_subnet_id(machine["subnet"].as_str().map(String::from));
            let asked = asked.tag_specifications(tags(ResourceType::Instance)).tag_specifications(tags(ResourceType::Volume));
            found.extend(denial("start a machine", asked.send().await).filter(|error| !is_elsewhere(error, text("subnet"))));
        }
        found
    }
}

/// A question that names no group, and no subnet where none is given, is about the account's default ones: what forbids those is nothing
/// to us.
fn is_elsewhere(error: &Error, subnet: &str) -> bool {
    let said = error.chain();
    let about = |kind: &str| said.contains(&format!(":{kind}/"));
    about("security-group") || about("subnet") && (subnet.is_empty() || !said.contains(subnet))
}

/// One machine of each type, image and subnet.
fn kinds_of_machines(resources: &[Resource]) -> Vec<&Value> {
    let machines = resources.iter().filter(|resource| resource.id.kind == MACHINE).map(|machine| &machine.spec);
    let mut kinds: Vec<&Value> = machines.collect();
    let key = |spec: &&Value| ["instanceType", "image", "subnet"].map(|field| spec[field].to_string());
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

/// What is wrong with what is wished for, whatever AWS says.
fn wrong(resources: &[Resource]) -> Vec<Error> {
    let balancers = resources.iter().filter(|resource| resource.id.kind == LOAD_BALANCER);
    let crossed = balancers.filter_map(|balancer| crossed(&balancer.spec));
    closed(resources).into_iter().chain(foreign_processors(resources)).chain(crossed).collect()
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
    let (kind, its) = kinds.map(|kind| (kind, sizes::architecture(kind))).find(|(_, architecture)| *architecture != OURS)?;
    Some(
        Error::input(format!("could not use {kind}: it is {its}, and this kprov is built for {OURS}"))
            .hint(format!("name a type of {OURS} in spec.providers.aws.instanceTypes, or run a kprov that is built for {its}")),
    )
}

pub(super) fn together(problems: Vec<Error>) -> Result<()> {
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
    fn what_forbids_the_accounts_default_network_is_nothing_to_us() {
        let denied = |what: &str| {
            Error::provider("could not start a machine").because(format!("not authorized ... on resource: arn:aws:ec2:eu-west-1:1:{what}"))
        };
        assert!(is_elsewhere(&denied("subnet/subnet-d"), "") && is_elsewhere(&denied("security-group/sg-d"), "subnet-1"));
        assert!(!is_elsewhere(&denied("instance/*"), "") && !is_elsewhere(&denied("subnet/subnet-1"), "subnet-1"));
    }

    #[test]
    fn everything_that_is_wrong_is_said_together() {
        let resources = [
            resource(GROUP, MACHINES, json!({"rules": ["all from machines"]})),
            resource(LOAD_BALANCER, "dns", json!({"name": "dns", "listeners": [{"port": 53}, {"port": 53}]})),
            resource(MACHINE, "worker-1", json!({"instanceType": if OURS == "arm64" { "m7i.large" } else { "m7g.large" }})),
        ];
        let problems = wrong(&resources);
        assert_eq!(problems.len(), 3);
        let error = together(problems).expect_err("three problems");
        assert!(error.hints().iter().any(|hint| hint.contains("spec.access.from")), "{:?}", error.hints());
        let open = [resource(GROUP, MACHINES, json!({"rules": ["tcp 22 from 192.0.2.0/24"]}))];
        assert!(closed(&open).is_none());
    }
}
