//! What of this cluster exists: bulk questions by tag, one family after the other, each reply read into `Observed`.

use super::catalog::filter;
use super::clients::{of_ec2, of_efs, of_elb, of_iam};
use super::failure::{OrFailure, failure, not_ours};
use super::names::*;
use super::resources::by_port;
use super::{Aws, machines};
use crate::engine::{Id, Observed, Phase};
use crate::error::{Kind, Result};
use crate::providers::ownership::{CLUSTER_UID, Mark};
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::types::{AttachmentStatus, Filter, IpPermission, Route, RouteState, VolumeState};
use aws_sdk_efs::types::LifeCycleState;
use aws_sdk_elasticloadbalancingv2::types::ProtocolEnum;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

pub type Tags = BTreeMap<String, String>;

/// Says which network the thing is in.
fn built_in(mut thing: Observed, network: Option<&str>) -> Observed {
    if let Some(network) = network {
        thing.outputs["network"] = json!(network);
    }
    thing
}

pub const KINDS: [&str; 14] =
    [NETWORK, SUBNET, GATEWAY, ROUTES, GROUP, KEY_PAIR, SECRET, ROLE, PROFILE, FILESYSTEM, MOUNT, MACHINE, TARGETS, LOAD_BALANCER];

impl Aws {
    /// All of the cluster, with what each stands on.
    pub(super) async fn look_at_all(&self) -> Result<Vec<Observed>> {
        let looks = futures::future::join_all(KINDS.map(|kind| self.look(kind))).await;
        let mut all = Vec::new();
        for seen in looks {
            all.extend(seen?);
        }
        mark_empty_twins(&mut all);
        mark_strange_routes(&mut all);
        let needs: Vec<Vec<Id>> = all.iter().map(|thing: &Observed| needs(&thing.id, &all)).collect();
        for (thing, needs) in all.iter_mut().zip(needs) {
            thing.needs = needs;
        }
        Ok(all)
    }

    /// All of one kind.
    pub(super) async fn look(&self, kind: &str) -> Result<Vec<Observed>> {
        match kind {
            NETWORK => self.networks().await,
            SUBNET => self.subnets().await,
            GATEWAY => self.gateways().await,
            ROUTES => self.route_tables().await,
            GROUP => self.groups().await,
            KEY_PAIR => self.key_pairs().await,
            SECRET => self.secrets().await,
            ROLE => self.roles().await,
            PROFILE => self.profiles().await,
            FILESYSTEM => self.filesystems().await,
            MOUNT => self.mounts().await,
            MACHINE => self.machines().await,
            TARGETS => self.target_groups().await,
            LOAD_BALANCER => self.balancers().await,
            kind => Err(not_ours(kind)),
        }
    }

    pub(super) fn owned(&self) -> Filter {
        filter(&format!("tag:{CLUSTER_UID}"), [&self.cluster.uid])
    }

    /// A thing that carries our mark.
    pub(super) fn thing(&self, kind: &str, handle: Option<&str>, tags: &Tags, phase: Phase, spec: Value) -> Option<Observed> {
        let mark = self.mark(tags).filter(|mark| mark.id.kind == kind)?;
        let handle = handle?.to_string();
        Some(Observed { id: mark.id, handle, generation: mark.generation, phase, spec, outputs: json!({}), needs: vec![] })
    }

    pub(super) fn mark(&self, tags: &Tags) -> Option<Mark> {
        Mark::read(&self.cluster.uid, tags.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    async fn networks(&self) -> Result<Vec<Observed>> {
        let mut found = Vec::new();
        let mut pages = self.clients.ec2.describe_vpcs().filters(self.owned()).into_paginator().send();
        while let Some(page) = pages.next().await {
            for vpc in page.or_failure("list networks")?.vpcs() {
                let Some(handle) = vpc.vpc_id() else { continue };
                let asked = self
                    .clients
                    .ec2
                    .describe_vpc_attribute()
                    .vpc_id(handle)
                    .attribute(aws_sdk_ec2::types::VpcAttributeName::EnableDnsHostnames);
                let names = match asked.send().await {
                    Ok(answer) => answer.enable_dns_hostnames().and_then(|value| value.value()).unwrap_or_default(),
                    Err(error) if error.code().is_some_and(|code| code.contains("NotFound")) => continue,
                    Err(error) => return Err(failure("read a network's attributes", &error)),
                };
                let spec = json!({"cidr": vpc.cidr_block(), "dnsHostnames": names});
                found.extend(self.thing(NETWORK, Some(handle), &of_ec2(vpc.tags()), Phase::Ready, spec));
            }
        }
        Ok(found)
    }

    async fn subnets(&self) -> Result<Vec<Observed>> {
        let mut found = Vec::new();
        let mut pages = self.clients.ec2.describe_subnets().filters(self.owned()).into_paginator().send();
        while let Some(page) = pages.next().await {
            for subnet in page.or_failure("list subnets")?.subnets() {
                let spec = json!({"zone": subnet.availability_zone(), "cidr": subnet.cidr_block()});
                let thing = self.thing(SUBNET, subnet.subnet_id(), &of_ec2(subnet.tags()), Phase::Ready, spec);
                found.extend(thing.map(|thing| built_in(thing, subnet.vpc_id())));
            }
        }
        Ok(found)
    }

    async fn gateways(&self) -> Result<Vec<Observed>> {
        let answer =
            self.clients.ec2.describe_internet_gateways().filters(self.owned()).send().await.or_failure("list internet gateways")?;
        let read = |gateway: &aws_sdk_ec2::types::InternetGateway| {
            let attached = gateway.attachments().iter().any(|one| {
                matches!(one.state(), Some(AttachmentStatus::Attached)) || one.state().is_some_and(|state| state.as_str() == "available")
            });
            let phase = if attached { Phase::Ready } else { Phase::Broken("it is attached to no network".into()) };
            let thing = self.thing(GATEWAY, gateway.internet_gateway_id(), &of_ec2(gateway.tags()), phase, json!({}))?;
            Some(built_in(thing, gateway.attachments().first().and_then(|one| one.vpc_id())))
        };
        Ok(answer.internet_gateways().iter().filter_map(read).collect())
    }

    async fn route_tables(&self) -> Result<Vec<Observed>> {
        let answer = self.clients.ec2.describe_route_tables().filters(self.owned()).send().await.or_failure("list route tables")?;
        if answer.route_tables().is_empty() {
            return Ok(Vec::new());
        }
        let zones: BTreeMap<String, String> = self.subnets().await?.into_iter().map(|subnet| (subnet.handle, subnet.id.name)).collect();
        let read = |table: &aws_sdk_ec2::types::RouteTable| {
            let gateway = table.routes().iter().find_map(way_out);
            let subnets: BTreeSet<&String> = table.associations().iter().filter_map(|one| zones.get(one.subnet_id()?)).collect();
            let spec = json!({"internet": gateway.is_some(), "subnets": subnets});
            let mut thing = self.thing(ROUTES, table.route_table_id(), &of_ec2(table.tags()), Phase::Ready, spec)?;
            thing.outputs = json!({"gateway": gateway});
            Some(thing)
        };
        Ok(answer.route_tables().iter().filter_map(read).collect())
    }

    async fn groups(&self) -> Result<Vec<Observed>> {
        let answer = self.clients.ec2.describe_security_groups().filters(self.owned()).send().await.or_failure("list security groups")?;
        let names: BTreeMap<String, String> = answer
            .security_groups()
            .iter()
            .filter_map(|group| Some((group.group_id()?.to_string(), self.mark(&of_ec2(group.tags()))?.id.name)))
            .collect();
        let read = |group: &aws_sdk_ec2::types::SecurityGroup| {
            let rules: BTreeSet<String> = group.ip_permissions().iter().flat_map(|permission| rule_lines(permission, &names)).collect();
            let thing = self.thing(GROUP, group.group_id(), &of_ec2(group.tags()), Phase::Ready, json!({"rules": rules}))?;
            Some(built_in(thing, group.vpc_id()))
        };
        Ok(answer.security_groups().iter().filter_map(read).collect())
    }

    async fn key_pairs(&self) -> Result<Vec<Observed>> {
        let answer = self.clients.ec2.describe_key_pairs().filters(self.owned()).send().await.or_failure("list key pairs")?;
        let read = |pair: &aws_sdk_ec2::types::KeyPairInfo| {
            let mut thing = self.thing(KEY_PAIR, pair.key_pair_id(), &of_ec2(pair.tags()), Phase::Ready, json!({}))?;
            thing.outputs = json!({"name": pair.key_name()});
            Some(thing)
        };
        Ok(answer.key_pairs().iter().filter_map(read).collect())
    }

    /// One per cluster, found by its path: the path has the cluster's uid in it.
    async fn secrets(&self) -> Result<Vec<Observed>> {
        let name = format!("{}/ssh-key", parameters(&self.cluster));
        let kept = match self.clients.ssm.get_parameter().name(&name).with_decryption(true).send().await {
            Ok(answer) => answer.parameter.and_then(|one| one.value),
            Err(error) if error.code() == Some("ParameterNotFound") => return Ok(Vec::new()),
            Err(error) => return Err(failure("look for the kept SSH key", &error)),
        };
        let asked = self.clients.ssm.list_tags_for_resource().resource_type(aws_sdk_ssm::types::ResourceTypeForTagging::Parameter);
        let tags: Tags = match asked.resource_id(&name).send().await {
            Ok(answer) => answer.tag_list().iter().map(|tag| (tag.key().to_string(), tag.value().to_string())).collect(),
            Err(error) if error.code() == Some("InvalidResourceId") => return Ok(Vec::new()),
            Err(error) => return Err(failure("read the kept SSH key's tags", &error)),
        };
        let other = self.key.lock().as_ref().is_some_and(|ours| kept.is_some_and(|kept| kept != *ours));
        let phase = if other { Phase::Broken("it is another key than this one's".into()) } else { Phase::Ready };
        Ok(self.thing(SECRET, Some(&name), &tags, phase, json!({})).into_iter().collect())
    }

    async fn roles(&self) -> Result<Vec<Observed>> {
        let name = identity(&self.cluster);
        let role = match self.clients.iam.get_role().role_name(&name).send().await {
            Ok(answer) => answer.role,
            Err(error) if error.code() == Some("NoSuchEntity") => None,
            Err(error) => return Err(failure("look for the control plane's role", &error)),
        };
        let Some(role) = role else { return Ok(Vec::new()) };
        let policy = match self.clients.iam.get_role_policy().role_name(&name).policy_name("kprov").send().await {
            Ok(answer) => super::iam::digest_of(&percent_encoding::percent_decode_str(answer.policy_document()).decode_utf8_lossy()),
            Err(error) if error.code() == Some("NoSuchEntity") => String::new(),
            Err(error) => return Err(failure("read the control plane's policy", &error)),
        };
        Ok(self.thing(ROLE, Some(&name), &of_iam(role.tags()), Phase::Ready, json!({"policy": policy})).into_iter().collect())
    }

    async fn profiles(&self) -> Result<Vec<Observed>> {
        let name = identity(&self.cluster);
        let profile = match self.clients.iam.get_instance_profile().instance_profile_name(&name).send().await {
            Ok(answer) => answer.instance_profile,
            Err(error) if error.code() == Some("NoSuchEntity") => None,
            Err(error) => return Err(failure("look for the control plane's instance profile", &error)),
        };
        let Some(profile) = profile else { return Ok(Vec::new()) };
        let phase = if profile.roles().is_empty() { Phase::Broken("it gives no role".into()) } else { Phase::Ready };
        Ok(self.thing(PROFILE, Some(&name), &of_iam(profile.tags()), phase, json!({})).into_iter().collect())
    }

    async fn filesystems(&self) -> Result<Vec<Observed>> {
        let mut found = Vec::new();
        let mut pages = self.clients.efs.describe_file_systems().into_paginator().send();
        while let Some(page) = pages.next().await {
            for filesystem in page.or_failure("list filesystems")?.file_systems() {
                let handle = filesystem.file_system_id();
                let phase = life(filesystem.life_cycle_state());
                let Some(mut thing) = self.thing(FILESYSTEM, Some(handle), &of_efs(filesystem.tags()), phase, json!({})) else { continue };
                let source = format!("{handle}.efs.{}.amazonaws.com:/", self.clients.region);
                thing.outputs = json!({"mount": {"type": "nfs4", "source": source}});
                found.push(thing);
            }
        }
        Ok(found)
    }

    /// They carry no tags: what belongs to our filesystems is ours. A filesystem has one in each zone.
    async fn mounts(&self) -> Result<Vec<Observed>> {
        let mut found = Vec::new();
        for filesystem in self.filesystems().await? {
            let answer = match self.clients.efs.describe_mount_targets().file_system_id(&filesystem.handle).send().await {
                Ok(answer) => answer,
                Err(error) if error.code().is_some_and(|code| code.contains("NotFound")) => continue,
                Err(error) => return Err(failure("list mount targets", &error)),
            };
            for target in answer.mount_targets() {
                let Some(zone) = target.availability_zone_name() else { continue };
                let id = Id::new(MOUNT, format!("{}-{zone}", filesystem.id.name));
                let phase = life(target.life_cycle_state());
                if matches!(target.life_cycle_state(), LifeCycleState::Deleted) {
                    continue;
                }
                let spec = json!({"filesystem": filesystem.id.name, "zone": zone});
                let handle = target.mount_target_id().to_string();
                found.push(Observed { id, handle, generation: 1, phase, spec, outputs: json!({}), needs: vec![] });
            }
        }
        Ok(found)
    }

    async fn machines(&self) -> Result<Vec<Observed>> {
        let mut found = Vec::new();
        let states = filter("instance-state-name", ["pending", "running", "stopping", "stopped", "shutting-down"]);
        let mut pages = self.clients.ec2.describe_instances().filters(self.owned()).filters(states).into_paginator().send();
        while let Some(page) = pages.next().await {
            for instance in page.or_failure("list machines")?.reservations().iter().flat_map(|one| one.instances()) {
                let tags = of_ec2(instance.tags());
                let Some(handle) = instance.instance_id() else { continue };
                let (phase, spec, mut outputs) = machines::read(instance, &tags);
                let Some(mut thing) = self.thing(MACHINE, Some(handle), &tags, phase, spec) else { continue };
                if thing.phase == Phase::Ready {
                    let keys = self.host_keys(handle, &tags).await?;
                    if keys.is_empty() {
                        thing.phase = Phase::Pending;
                    }
                    outputs["hostKeys"] = json!(keys);
                }
                thing.outputs = outputs;
                found.push(thing);
            }
        }
        Ok(found)
    }

    /// The tags of load balancers or target groups; ELB answers for twenty at a time.
    async fn elb_marks(&self, handles: &[String]) -> Result<BTreeMap<String, Tags>> {
        let mut marks = BTreeMap::new();
        for some in handles.chunks(20) {
            match self.clients.elb.describe_tags().set_resource_arns(Some(some.to_vec())).send().await {
                Ok(answer) => marks
                    .extend(answer.tag_descriptions().iter().filter_map(|one| Some((one.resource_arn()?.to_string(), of_elb(one.tags()))))),
                // One of them went meanwhile: asked again, the list is another.
                Err(error) => return Err(failure("read load balancers' tags", &error)),
            }
        }
        Ok(marks)
    }

    async fn target_groups(&self) -> Result<Vec<Observed>> {
        let mut groups = Vec::new();
        let mut pages = self.clients.elb.describe_target_groups().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.or_failure("list target groups")?;
            groups.extend(page.target_groups().iter().filter(|group| group.target_group_name().is_some_and(is_ours)).cloned());
        }
        let handles: Vec<String> = groups.iter().filter_map(|group| group.target_group_arn().map(String::from)).collect();
        let marks = self.elb_marks(&handles).await?;
        let ours: Vec<_> = groups
            .iter()
            .filter_map(|group| Some((group, marks.get(group.target_group_arn()?)?)))
            .filter(|(_, tags)| self.mark(tags).is_some())
            .collect();
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        let machines = self.instance_names().await?;
        let mut found = Vec::new();
        for (group, tags) in ours {
            let asked =
                self.clients.elb.describe_target_health().set_target_group_arn(group.target_group_arn().map(String::from)).send().await;
            let health = match asked {
                Ok(health) => health,
                Err(error) if error.code().is_some_and(|code| code.contains("NotFound")) => continue,
                Err(error) => return Err(failure("read a target group's health", &error)),
            };
            let draining = |state: Option<&str>| matches!(state, Some("draining"));
            let live = health
                .target_health_descriptions()
                .iter()
                .filter(|one| !draining(one.target_health().and_then(|health| health.state()).map(|state| state.as_str())));
            // What it sends to and is no machine of ours any more has no name, and shows as a difference.
            let names: BTreeSet<String> =
                live.filter_map(|one| one.target()?.id()).map(|id| machines.get(id).cloned().unwrap_or_else(|| id.to_string())).collect();
            let protocol = group.protocol().map(|protocol| protocol.as_str().to_string());
            let health = (group.health_check_protocol() == Some(&ProtocolEnum::Http)).then(|| group.health_check_port()).flatten();
            let spec = json!({"protocol": protocol, "port": group.port(), "health": health, "machines": in_order(&names)});
            found.extend(self.thing(TARGETS, group.target_group_arn(), tags, Phase::Ready, spec));
        }
        Ok(found)
    }

    async fn balancers(&self) -> Result<Vec<Observed>> {
        let mut balancers = Vec::new();
        let mut pages = self.clients.elb.describe_load_balancers().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.or_failure("list load balancers")?;
            balancers.extend(page.load_balancers().iter().filter(|one| one.load_balancer_name().is_some_and(is_ours)).cloned());
        }
        let handles: Vec<String> = balancers.iter().filter_map(|one| one.load_balancer_arn().map(String::from)).collect();
        let marks = self.elb_marks(&handles).await?;
        let ours: Vec<_> = balancers
            .iter()
            .filter_map(|one| Some((one, marks.get(one.load_balancer_arn()?)?)))
            .filter(|(_, tags)| self.mark(tags).is_some())
            .collect();
        if ours.is_empty() {
            return Ok(Vec::new());
        }
        let groups: BTreeMap<String, Observed> =
            self.target_groups().await?.into_iter().map(|group| (group.handle.clone(), group)).collect();
        let mut found = Vec::new();
        for (balancer, tags) in ours {
            let handle = balancer.load_balancer_arn().unwrap_or_default();
            let answer = match self.clients.elb.describe_listeners().load_balancer_arn(handle).send().await {
                Ok(answer) => answer,
                Err(error) if error.code().is_some_and(|code| code.contains("NotFound")) => continue,
                Err(error) => return Err(failure("list listeners", &error)),
            };
            let mut listeners: Vec<(Value, Option<&Observed>)> = Vec::new();
            for listener in answer.listeners() {
                let group = listener.default_actions().first().and_then(|action| groups.get(action.target_group_arn()?));
                let value = json!({
                    "port": listener.port(), "protocol": listener.protocol().map(|protocol| protocol.as_str()),
                    "nodePort": group.map_or(Value::Null, |group| group.spec["port"].clone()),
                });
                listeners.push((value, group));
            }
            let state = balancer.state().and_then(|state| state.code()).map(|code| code.as_str());
            let phase = match state {
                Some("active" | "active_impaired") => Phase::Ready,
                Some("failed") => Phase::Broken("AWS could not set it up".into()),
                _ => Phase::Pending,
            };
            let name = self.mark(tags).map(|mark| mark.id.name).unwrap_or_default();
            let machines = listeners.iter().find_map(|(_, group)| group.map(|group| group.spec["machines"].clone()));
            let listeners = by_port(listeners.into_iter().map(|(value, _)| value).collect());
            let spec = json!({"name": name, "listeners": listeners, "machines": machines.unwrap_or_else(|| json!([]))});
            let Some(mut thing) = self.thing(LOAD_BALANCER, Some(handle), tags, phase, spec) else { continue };
            thing.outputs = json!({"address": balancer.dns_name()});
            found.push(thing);
        }
        Ok(found)
    }

    /// Instances that live, by id.
    pub(super) async fn instance_names(&self) -> Result<BTreeMap<String, String>> {
        let mut names = BTreeMap::new();
        let states = filter("instance-state-name", ["pending", "running", "stopping", "stopped"]);
        let mut pages = self.clients.ec2.describe_instances().filters(self.owned()).filters(states).into_paginator().send();
        while let Some(page) = pages.next().await {
            for instance in page.or_failure("list machines")?.reservations().iter().flat_map(|one| one.instances()) {
                let mark = self.mark(&of_ec2(instance.tags()));
                names.extend(instance.instance_id().map(String::from).zip(mark.map(|mark| mark.id.name)));
            }
        }
        Ok(names)
    }

    /// From the tag that an earlier look left, the memory of this process, or the console, when it is the machine's turn: none is "not yet".
    async fn host_keys(&self, handle: &str, tags: &Tags) -> Result<Vec<String>> {
        if let Some(key) = tags.get(machines::HOST_KEY) {
            self.consoles.lock().tagged(handle);
            return Ok(vec![key.clone()]);
        }
        {
            let mut consoles = self.consoles.lock();
            if let Some(keys) = consoles.keys(handle) {
                return Ok(keys.clone());
            }
            if !consoles.may_ask(handle, Instant::now()) {
                return Ok(Vec::new());
            }
        }
        let keys = match self.clients.ec2.get_console_output().instance_id(handle).latest(true).send().await {
            Ok(answer) => machines::host_keys(answer.output().unwrap_or_default()),
            // Not every type shows its latest output.
            Err(error) if matches!(error.code(), Some("UnsupportedOperation" | "InvalidParameterCombination")) => {
                let answer =
                    self.clients.ec2.get_console_output().instance_id(handle).send().await.or_failure("read a machine's console")?;
                machines::host_keys(answer.output().unwrap_or_default())
            }
            Err(error) if failure("read a machine's console", &error).kind == Kind::Transient => Vec::new(),
            Err(error) => return Err(failure("read a machine's console", &error)),
        };
        self.consoles.lock().said(handle, &keys);
        Ok(keys)
    }

    /// Disks that machines left behind: they go with their machine, a moment after it, but not when somebody said otherwise in the console.
    pub(super) async fn volumes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut pages = self.clients.ec2.describe_volumes().filters(self.owned()).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.or_failure("list volumes")?;
            let ours = page.volumes().iter().filter(|volume| self.mark(&of_ec2(volume.tags())).is_some());
            let stays = ours.filter(|volume| !matches!(volume.state(), Some(VolumeState::Deleting | VolumeState::Deleted)));
            found.extend(stays.filter_map(|volume| volume.volume_id().map(String::from)));
        }
        Ok(found)
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("kprov-")
}

fn life(state: &LifeCycleState) -> Phase {
    match state.as_str() {
        "available" | "updating" => Phase::Ready,
        "creating" => Phase::Pending,
        "error" => Phase::Broken("AWS says that it failed".into()),
        _ => Phase::Deleting,
    }
}

/// As the blueprint counts: worker-2 before worker-10.
pub fn in_order(names: &BTreeSet<String>) -> Vec<&String> {
    let mut names: Vec<&String> = names.iter().collect();
    let key = |name: &str| {
        let (group, number) = name.rsplit_once('-').unwrap_or((name, ""));
        (group.to_string(), number.parse::<u64>().unwrap_or_default())
    };
    names.sort_by_key(|name| key(name));
    names
}

/// The gateway that a route leads out by. One whose gateway is gone leads nowhere (AWS calls it a blackhole).
fn way_out(route: &Route) -> Option<&str> {
    let leads = route.destination_cidr_block() == Some("0.0.0.0/0") && route.state() == Some(&RouteState::Active);
    route.gateway_id().filter(|gateway| leads && gateway.starts_with("igw-"))
}

/// A permission in the words of `resources`.
fn rule_lines(permission: &IpPermission, names: &BTreeMap<String, String>) -> Vec<String> {
    let ranges = permission.ip_ranges().iter().filter_map(|range| range.cidr_ip().map(String::from));
    let wide = permission.ipv6_ranges().iter().filter_map(|range| range.cidr_ipv6().map(String::from));
    let groups = permission.user_id_group_pairs().iter().filter_map(|pair| pair.group_id());
    let groups = groups.map(|group| names.get(group).cloned().unwrap_or_else(|| group.to_string()));
    let what = match (permission.ip_protocol(), permission.from_port(), permission.to_port()) {
        (Some("-1"), ..) => "all".to_string(),
        (Some(protocol), Some(from), Some(to)) if from == to => format!("{protocol} {from}"),
        (protocol, from, to) => format!("{} {}-{}", protocol.unwrap_or_default(), from.unwrap_or_default(), to.unwrap_or_default()),
    };
    ranges.chain(wide).chain(groups).map(|source| format!("{what} from {source}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_ec2::types::{IpRange, UserIdGroupPair};

    #[test]
    fn rules_read_back_in_the_words_they_are_wished_in() {
        let names = BTreeMap::from([("sg-1".to_string(), MACHINES.to_string())]);
        let ssh = IpPermission::builder()
            .ip_protocol("tcp")
            .from_port(22)
            .to_port(22)
            .ip_ranges(IpRange::builder().cidr_ip("192.0.2.0/24").build());
        assert_eq!(rule_lines(&ssh.build(), &names), ["tcp 22 from 192.0.2.0/24"]);
        let inner = IpPermission::builder().ip_protocol("-1").user_id_group_pairs(UserIdGroupPair::builder().group_id("sg-1").build());
        assert_eq!(rule_lines(&inner.build(), &names), ["all from machines"]);
        let foreign =
            IpPermission::builder().ip_protocol("tcp").from_port(1).to_port(9).ip_ranges(IpRange::builder().cidr_ip("0.0.0.0/0").build());
        assert_eq!(rule_lines(&foreign.build(), &names), ["tcp 1-9 from 0.0.0.0/0"]);
    }

    #[test]
    fn only_a_route_that_works_is_a_way_out() {
        let route = |state| Route::builder().destination_cidr_block("0.0.0.0/0").gateway_id("igw-1").state(state).build();
        assert_eq!(way_out(&route(RouteState::Active)), Some("igw-1"));
        assert_eq!(way_out(&route(RouteState::Blackhole)), None);
        let inner = Route::builder().destination_cidr_block("10.42.0.0/16").gateway_id("local").state(RouteState::Active).build();
        assert_eq!(way_out(&inner), None);
    }

    #[test]
    fn machines_are_ordered_as_the_blueprint_counts() {
        let names: BTreeSet<String> = ["worker-10", "worker-2", "control-1"].map(String::from).into();
        assert_eq!(in_order(&names), ["control-1", "worker-2", "worker-10"]);
    }
}
