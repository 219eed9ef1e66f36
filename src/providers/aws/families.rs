//! One function per AWS call that has an effect: what is made, seen to and deleted of each kind.

use super::Aws;
use super::clients::{ec2_tags, efs_tags, elb_tags, iam_tags, ssm_tags};
use super::failure::{OrFailure, failure, is_young_profile, may_have_happened, not_ours};
use super::machines::{DISK, GROUP_TAG, ROLE_TAG, USER_TAG};
use super::names::*;
use super::resources::HEALTH_PATH;
use super::sizes::disk_of;
use crate::engine::{Observed, Phase, Request, Verb};
use crate::error::{Error, Result};
use crate::providers::ownership;
use crate::providers::resources::{FILESYSTEM, LOAD_BALANCER, MACHINE, NETWORK};
use aws_sdk_ec2::error::ProvideErrorMetadata;
use aws_sdk_ec2::primitives::Blob;
use aws_sdk_ec2::types::{
    AttributeBooleanValue, BlockDeviceMapping, EbsBlockDevice, HttpTokensState, IamInstanceProfileSpecification,
    InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification, InstanceType, IpPermission, IpRange, Ipv6Range, Placement,
    ResourceType, TagSpecification, UserIdGroupPair, VolumeType,
};
use aws_sdk_elasticloadbalancingv2::types::{
    Action, ActionTypeEnum, LoadBalancerSchemeEnum, LoadBalancerTypeEnum, ProtocolEnum, TargetDescription, TargetTypeEnum,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(name, id)| Some((name.clone(), id.as_str()?.to_string()))).collect()
}

fn made(id: Option<&str>, what: &str) -> Result<Option<String>> {
    id.map(|id| Some(id.to_string())).ok_or_else(|| Error::transient(format!("could not read which {what} AWS made")))
}

const PROFILE_LIMIT: Duration = Duration::from_secs(30);
/// Each try is a launch of its own, of which EC2 takes two a second for all machines together.
const PROFILE_PAUSE: Duration = Duration::from_secs(2);

/// Port, protocol and target group of a listener.
type Listening = (i32, String, String);

fn has(code: Option<&str>, parts: &[&str]) -> bool {
    code.is_some_and(|code| parts.iter().any(|part| code.contains(part)))
}

impl Aws {
    fn specification(&self, kind: ResourceType, request: &Request) -> TagSpecification {
        TagSpecification::builder().resource_type(kind).set_tags(Some(ec2_tags(&self.tags_of(request)))).build()
    }

    pub(super) async fn tag(&self, handle: &str, tags: &BTreeMap<String, String>) -> Result<()> {
        let sent = self.clients.ec2.create_tags().resources(handle).set_tags(Some(ec2_tags(tags))).send().await;
        sent.or_failure("write tags").map(drop)
    }

    /// Makes it; what is seen to afterwards is in `ensure`. `None`: what this token made is gone again.
    pub(super) async fn create(&self, request: &Request) -> Result<Option<String>> {
        let (spec, refs) = (&request.body["spec"], &request.body["refs"]);
        match request.id.kind.as_str() {
            NETWORK => {
                let tags = self.specification(ResourceType::Vpc, request);
                let sent = self.clients.ec2.create_vpc().cidr_block(text(spec, "cidr")).tag_specifications(tags).send().await;
                if let Some(error) = sent.as_ref().err().filter(|error| may_have_happened(error)) {
                    return self.made_unheard(request, failure("make the network", error)).await;
                }
                made(sent.or_failure("make the network")?.vpc().and_then(|vpc| vpc.vpc_id()), "network")
            }
            SUBNET => {
                let asked = self.clients.ec2.create_subnet().vpc_id(text(refs, "network")).cidr_block(text(spec, "cidr"));
                let asked =
                    asked.availability_zone(text(spec, "zone")).tag_specifications(self.specification(ResourceType::Subnet, request));
                match asked.send().await {
                    Ok(answer) => made(answer.subnet().and_then(|subnet| subnet.subnet_id()), "subnet"),
                    // Ours, not yet seen: the next look shows it.
                    Err(error) if has(error.code(), &["InvalidSubnet.Conflict"]) => {
                        Err(Error::transient("could not see the subnet that is there"))
                    }
                    Err(error) => Err(failure("make a subnet", &error)),
                }
            }
            GATEWAY => {
                let tags = self.specification(ResourceType::InternetGateway, request);
                let sent = self.clients.ec2.create_internet_gateway().tag_specifications(tags).send().await;
                if let Some(error) = sent.as_ref().err().filter(|error| may_have_happened(error)) {
                    return self.made_unheard(request, failure("make the internet gateway", error)).await;
                }
                made(sent.or_failure("make the internet gateway")?.internet_gateway().and_then(|one| one.internet_gateway_id()), "gateway")
            }
            ROUTES => {
                let asked = self.clients.ec2.create_route_table().vpc_id(text(refs, "network")).client_token(&request.token);
                let sent = asked.tag_specifications(self.specification(ResourceType::RouteTable, request)).send().await;
                made(sent.or_failure("make the route table")?.route_table().and_then(|table| table.route_table_id()), "route table")
            }
            GROUP => {
                let name = plain(&self.cluster, &request.id.name);
                let asked = self.clients.ec2.create_security_group().vpc_id(text(refs, "network")).group_name(name);
                let asked = asked.description(format!("kprov: {} of cluster {}", request.id.name, self.cluster.name));
                let sent = asked.tag_specifications(self.specification(ResourceType::SecurityGroup, request)).send().await;
                made(sent.or_failure("make a security group")?.group_id(), "security group")
            }
            KEY_PAIR => {
                let asked = self.clients.ec2.import_key_pair().key_name(plain(&self.cluster, MAIN));
                let asked = asked.public_key_material(Blob::new(text(spec, "publicKey")));
                let sent = asked.tag_specifications(self.specification(ResourceType::KeyPair, request)).send().await;
                made(sent.or_failure("import the SSH key")?.key_pair_id(), "key pair")
            }
            SECRET => self.keep_key(request).await,
            ROLE => {
                let name = identity(&self.cluster);
                let asked = self.clients.iam.create_role().role_name(&name).assume_role_policy_document(super::iam::TRUST);
                let sent = asked.set_tags(Some(iam_tags(&self.tags_of(request)))).send().await;
                sent.or_failure("make the control plane's role").map(|_| Some(name))
            }
            PROFILE => {
                let name = identity(&self.cluster);
                let asked = self.clients.iam.create_instance_profile().instance_profile_name(&name);
                let sent = asked.set_tags(Some(iam_tags(&self.tags_of(request)))).send().await;
                sent.or_failure("make the control plane's instance profile").map(|_| Some(name))
            }
            FILESYSTEM => {
                let asked = self.clients.efs.create_file_system().creation_token(&request.token).encrypted(true);
                match asked.set_tags(Some(efs_tags(&self.tags_of(request)))).send().await {
                    Ok(answer) => Ok(Some(answer.file_system_id().to_string())),
                    Err(error) if has(error.code(), &["FileSystemAlreadyExists"]) => {
                        Err(Error::transient("could not see the filesystem that is there"))
                    }
                    Err(error) => Err(failure("make a filesystem", &error)),
                }
            }
            MOUNT => {
                let asked = self.clients.efs.create_mount_target().file_system_id(text(refs, "filesystem")).subnet_id(text(refs, "subnet"));
                match asked.security_groups(text(refs, "group")).send().await {
                    Ok(answer) => Ok(Some(answer.mount_target_id().to_string())),
                    Err(error) if has(error.code(), &["MountTargetConflict"]) => {
                        Err(Error::transient("could not see the mount target that is there"))
                    }
                    Err(error) => Err(failure("make a mount target", &error)),
                }
            }
            MACHINE => self.launch(request).await,
            TARGETS => {
                let port = spec["port"].as_u64().and_then(|port| i32::try_from(port).ok());
                let asked = self.clients.elb.create_target_group().name(name(&self.cluster, &request.id, request.generation));
                let asked = asked.protocol(ProtocolEnum::from(text(spec, "protocol"))).set_port(port).vpc_id(text(refs, "network"));
                let asked = asked.target_type(TargetTypeEnum::Instance);
                let asked = match spec["health"].as_str() {
                    Some(port) => asked.health_check_protocol(ProtocolEnum::Http).health_check_port(port).health_check_path(HEALTH_PATH),
                    None => asked.health_check_protocol(ProtocolEnum::Tcp),
                };
                let sent = asked.set_tags(Some(elb_tags(&self.tags_of(request)))).send().await.or_failure("make a target group")?;
                made(sent.target_groups().first().and_then(|group| group.target_group_arn()), "target group")
            }
            LOAD_BALANCER => {
                let asked = self.clients.elb.create_load_balancer().name(name(&self.cluster, &request.id, request.generation));
                let subnets: Vec<String> = map(&refs["subnets"]).into_values().collect();
                let scheme =
                    if spec["internal"] == true { LoadBalancerSchemeEnum::Internal } else { LoadBalancerSchemeEnum::InternetFacing };
                let asked = asked
                    .r#type(LoadBalancerTypeEnum::Network)
                    .scheme(scheme)
                    .set_subnets(Some(subnets))
                    .security_groups(text(refs, "group"));
                let sent = asked.set_tags(Some(elb_tags(&self.tags_of(request)))).send().await.or_failure("make a load balancer")?;
                made(sent.load_balancers().first().and_then(|one| one.load_balancer_arn()), "load balancer")
            }
            kind => Err(not_ours(kind)),
        }
    }

    async fn keep_key(&self, request: &Request) -> Result<Option<String>> {
        let Some(key) = self.key.lock().clone() else {
            return Err(Error::provider("could not keep the cluster's SSH key: this command does not have it").hint("kprov up has it"));
        };
        let name = format!("{}/ssh-key", parameters(&self.cluster));
        let asked = self.clients.ssm.put_parameter().name(&name).value(key).r#type(aws_sdk_ssm::types::ParameterType::SecureString);
        match asked.overwrite(false).set_tags(Some(ssm_tags(&self.tags_of(request)))).send().await {
            Ok(_) => Ok(Some(name)),
            Err(error) if has(error.code(), &["ParameterAlreadyExists"]) => {
                Err(Error::transient("could not see the kept key that is there"))
            }
            Err(error) => Err(failure("keep the cluster's SSH key", &error)),
        }
    }

    async fn launch(&self, request: &Request) -> Result<Option<String>> {
        let (spec, refs) = (&request.body["spec"], &request.body["refs"]);
        let disk_bytes = spec["diskBytes"].as_u64().unwrap_or_default();
        let mut tags = self.tags_of(request);
        for (tag, field) in [(ROLE_TAG, "role"), (GROUP_TAG, "group"), (USER_TAG, "user")] {
            tags.insert(tag.into(), text(spec, field).into());
        }
        tags.insert(DISK.into(), disk_bytes.to_string());
        let tagged = |kind| TagSpecification::builder().resource_type(kind).set_tags(Some(ec2_tags(&tags))).build();
        let disk =
            EbsBlockDevice::builder().volume_size(disk_of(spec)).volume_type(VolumeType::Gp3).delete_on_termination(true).encrypted(true);
        let interface = InstanceNetworkInterfaceSpecification::builder()
            .device_index(0)
            .subnet_id(text(refs, "subnet"))
            .groups(text(refs, "group"))
            .associate_public_ip_address(spec["private"] != true)
            .delete_on_termination(true);
        // Only the machine itself reaches its identity: a pod's packet is one hop too far.
        let metadata = InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required).http_put_response_hop_limit(1);
        let profile = refs["profile"].as_str().map(|profile| IamInstanceProfileSpecification::builder().name(profile).build());
        let asked = self.clients.ec2.run_instances().min_count(1).max_count(1).client_token(&request.token).image_id(text(spec, "image"));
        let asked = asked.instance_type(InstanceType::from(text(spec, "instanceType"))).key_name(text(refs, "key"));
        let asked = asked.placement(Placement::builder().availability_zone(text(spec, "zone")).build()).metadata_options(metadata.build());
        let asked =
            asked.block_device_mappings(BlockDeviceMapping::builder().device_name(text(spec, "rootDevice")).ebs(disk.build()).build());
        let asked = asked.network_interfaces(interface.build()).set_iam_instance_profile(profile);
        let asked = asked.tag_specifications(tagged(ResourceType::Instance)).tag_specifications(tagged(ResourceType::Volume));
        match patiently(|| asked.clone().send()).await {
            Ok(answer) => made(answer.instances().first().and_then(|instance| instance.instance_id()), "machine"),
            Err(error) if has(error.code(), &["IdempotentInstanceTerminated"]) => Ok(None),
            Err(error) if has(error.code(), &["IdempotentParameterMismatch"]) => self.made_from_other_bytes(request).await,
            Err(error) => Err(failure("start a machine", &error)),
        }
    }

    /// Everything that belongs to the thing beyond its own creation, in place; safe to repeat.
    pub(super) async fn ensure(&self, request: &Request, handle: &str) -> Result<()> {
        let (spec, refs) = (&request.body["spec"], &request.body["refs"]);
        match request.id.kind.as_str() {
            NETWORK => {
                let yes = AttributeBooleanValue::builder().value(true).build();
                let sent = self.clients.ec2.modify_vpc_attribute().vpc_id(handle).enable_dns_hostnames(yes).send().await;
                sent.or_failure("give the network names").map(drop)
            }
            GATEWAY => {
                match self.clients.ec2.attach_internet_gateway().internet_gateway_id(handle).vpc_id(text(refs, "network")).send().await {
                    Err(error) if !has(error.code(), &["AlreadyAssociated", "AlreadyExists"]) => {
                        Err(failure("attach the internet gateway", &error))
                    }
                    _ => Ok(()),
                }
            }
            ROUTES => self.ensure_routes(handle, refs).await,
            GROUP => self.ensure_rules(request, handle).await,
            ROLE => self.write_policy(handle, spec).await,
            PROFILE => match self.clients.iam.add_role_to_instance_profile().instance_profile_name(handle).role_name(handle).send().await {
                // One role at most: it is this one.
                Err(error) if !has(error.code(), &["LimitExceeded", "EntityAlreadyExists"]) => {
                    Err(failure("give the instance profile its role", &error))
                }
                _ => Ok(()),
            },
            SECRET if request.verb == Verb::Repair => {
                Err(Error::conflict("could not go on with this SSH key: another kprov made the cluster's key meanwhile")
                    .hint("run the same command again: it takes the key that is there"))
            }
            MACHINE if request.verb == Verb::Repair => {
                self.clients.ec2.start_instances().instance_ids(handle).send().await.or_failure("start a machine again").map(drop)
            }
            TARGETS => self.ensure_targets(handle, &map(&refs["machines"])).await,
            LOAD_BALANCER => self.ensure_listeners(handle, spec, &map(&refs["targets"])).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn write_policy(&self, role: &str, spec: &Value) -> Result<()> {
        let asked = self.clients.iam.put_role_policy().role_name(role).policy_name("kprov").policy_document(text(spec, "document"));
        asked.send().await.or_failure("write the control plane's policy").map(drop)
    }

    async fn ensure_routes(&self, handle: &str, refs: &Value) -> Result<()> {
        let asked =
            self.clients.ec2.create_route().route_table_id(handle).destination_cidr_block("0.0.0.0/0").gateway_id(text(refs, "gateway"));
        let stood = match asked.send().await {
            Ok(_) => false,
            Err(error) if has(error.code(), &["RouteAlreadyExists"]) => true,
            Err(error) => return Err(failure("make the route to the internet", &error)),
        };
        let there = self.look(ROUTES).await?.into_iter().find(|table| table.handle == handle);
        // One that leads nowhere, or elsewhere, is in the way of ours.
        if stood && there.as_ref().is_none_or(|table| table.outputs["gateway"] != refs["gateway"]) {
            let asked = self.clients.ec2.replace_route().route_table_id(handle).destination_cidr_block("0.0.0.0/0");
            asked.gateway_id(text(refs, "gateway")).send().await.or_failure("mend the route to the internet")?;
        }
        let joined: BTreeSet<String> =
            there.and_then(|table| serde_json::from_value(table.spec["subnets"].clone()).ok()).unwrap_or_default();
        for (_, subnet) in map(&refs["subnets"]).into_iter().filter(|(zone, _)| !joined.contains(zone)) {
            match self.clients.ec2.associate_route_table().route_table_id(handle).subnet_id(subnet).send().await {
                Err(error) if !has(error.code(), &["AlreadyAssociated"]) => return Err(failure("give a subnet its routes", &error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// What is missing is let in before what is too much is kept out.
    async fn ensure_rules(&self, request: &Request, handle: &str) -> Result<()> {
        let lines = |value: &Value| serde_json::from_value::<BTreeSet<String>>(value.clone()).unwrap_or_default();
        let wanted = lines(&request.body["spec"]["rules"]);
        let there = self
            .look(GROUP)
            .await?
            .into_iter()
            .find(|group| group.handle == handle)
            .map(|group| lines(&group.spec["rules"]))
            .unwrap_or_default();
        let mut groups = map(&request.body["refs"]["groups"]);
        groups.insert(request.id.name.clone(), handle.into());
        for line in wanted.difference(&there) {
            let asked = self.clients.ec2.authorize_security_group_ingress().group_id(handle).ip_permissions(permission(line, &groups));
            match asked.send().await {
                Err(error) if !has(error.code(), &["Duplicate"]) => return Err(failure("open a port", &error)),
                _ => {}
            }
        }
        for line in there.difference(&wanted) {
            let asked = self.clients.ec2.revoke_security_group_ingress().group_id(handle).ip_permissions(permission(line, &groups));
            match asked.send().await {
                Err(error) if !has(error.code(), &["NotFound"]) => return Err(failure("close a port", &error)),
                _ => {}
            }
        }
        Ok(())
    }

    async fn ensure_targets(&self, handle: &str, machines: &BTreeMap<String, String>) -> Result<()> {
        let answer =
            self.clients.elb.describe_target_health().target_group_arn(handle).send().await.or_failure("read a target group's health")?;
        let there: BTreeSet<&str> = answer.target_health_descriptions().iter().filter_map(|one| one.target()?.id()).collect();
        let target = |id: &str| TargetDescription::builder().id(id).build();
        let wanted: BTreeSet<&str> = machines.values().map(String::as_str).collect();
        if !wanted.is_empty() {
            let targets = wanted.iter().map(|id| target(id)).collect();
            let sent = self.clients.elb.register_targets().target_group_arn(handle).set_targets(Some(targets)).send().await;
            sent.or_failure("let a load balancer send to a machine")?;
        }
        let stale: Vec<TargetDescription> = there.difference(&wanted).map(|id| target(id)).collect();
        if !stale.is_empty() {
            let sent = self.clients.elb.deregister_targets().target_group_arn(handle).set_targets(Some(stale)).send().await;
            sent.or_failure("keep a load balancer from sending to a machine")?;
        }
        Ok(())
    }

    /// A listener that is no longer wanted goes first: its port may be wanted with another protocol.
    async fn ensure_listeners(&self, handle: &str, spec: &Value, targets: &BTreeMap<String, String>) -> Result<()> {
        let there = self.listeners(handle).await?;
        let mut wanted: Vec<Listening> = Vec::new();
        for listener in spec["listeners"].as_array().into_iter().flatten() {
            let node_port = listener["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
            let target = targets
                .get(&super::resources::target_name(text(spec, "name"), text(listener, "protocol"), node_port))
                .cloned()
                .unwrap_or_default();
            let port = listener["port"].as_u64().and_then(|port| i32::try_from(port).ok()).unwrap_or_default();
            wanted.push((port, text(listener, "protocol").to_string(), target));
        }
        for (same, listener) in there {
            if let Some(place) = wanted.iter().position(|one| *one == same) {
                wanted.swap_remove(place);
                continue;
            }
            let sent = self.clients.elb.delete_listener().listener_arn(listener).send().await;
            sent.or_failure("remove a listener")?;
        }
        for listener in wanted {
            self.listen(handle, listener).await?;
        }
        Ok(())
    }

    async fn listen(&self, handle: &str, wanted: Listening) -> Result<()> {
        let (port, protocol, target) = &wanted;
        let action = Action::builder().r#type(ActionTypeEnum::Forward).target_group_arn(target).build();
        let asked =
            self.clients.elb.create_listener().load_balancer_arn(handle).port(*port).protocol(ProtocolEnum::from(protocol.as_str()));
        match asked.default_actions(action).set_tags(Some(elb_tags(&ownership::owner(&self.cluster)))).send().await {
            Ok(_) => Ok(()),
            // Ours, when an earlier reply was lost: the look tells. Another one is taken away by the next try.
            Err(error) if has(error.code(), &["DuplicateListener"]) => match self.listeners(handle).await? {
                there if there.iter().any(|(one, _)| *one == wanted) => Ok(()),
                _ => Err(Error::transient(format!("could not listen on port {port} for {protocol}: another listener is there"))),
            },
            Err(error) => Err(failure("make a listener", &error)),
        }
    }

    /// What a load balancer listens to, and each listener's own name.
    async fn listeners(&self, handle: &str) -> Result<Vec<(Listening, String)>> {
        let answer = self.clients.elb.describe_listeners().load_balancer_arn(handle).send().await.or_failure("list listeners")?;
        let read = |listener: &aws_sdk_elasticloadbalancingv2::types::Listener| {
            let target = listener.default_actions().first().and_then(|action| action.target_group_arn()).unwrap_or_default();
            let protocol = listener.protocol().map(|protocol| protocol.as_str()).unwrap_or_default();
            let listening = (listener.port().unwrap_or_default(), protocol.to_string(), target.to_string());
            Some((listening, listener.listener_arn()?.to_string()))
        };
        Ok(answer.listeners().iter().filter_map(read).collect())
    }

    /// A thing that was just seen to carry our tag.
    pub(super) async fn delete(&self, thing: &Observed) -> Result<()> {
        let handle = thing.handle.as_str();
        let (ec2, elb, efs, iam) = (&self.clients.ec2, &self.clients.elb, &self.clients.efs, &self.clients.iam);
        /// Gone already is as good as gone now.
        macro_rules! end {
            ($call:expr, $what:expr) => {
                match $call.send().await {
                    Err(error) if !has(error.code(), &["NotFound", "NoSuchEntity", "NotAttached", "InvalidResourceId"]) => {
                        return Err(failure($what, &error))
                    }
                    _ => {}
                }
            };
        }
        match thing.id.kind.as_str() {
            NETWORK => end!(ec2.delete_vpc().vpc_id(handle), "delete the network"),
            SUBNET => end!(ec2.delete_subnet().subnet_id(handle), "delete a subnet"),
            GATEWAY => {
                let answer =
                    ec2.describe_internet_gateways().internet_gateway_ids(handle).send().await.or_failure("read the internet gateway")?;
                for network in answer.internet_gateways().iter().flat_map(|one| one.attachments()).filter_map(|one| one.vpc_id()) {
                    end!(ec2.detach_internet_gateway().internet_gateway_id(handle).vpc_id(network), "detach the internet gateway");
                }
                end!(ec2.delete_internet_gateway().internet_gateway_id(handle), "delete the internet gateway");
            }
            ROUTES => {
                let answer = ec2.describe_route_tables().route_table_ids(handle).send().await.or_failure("read the route table")?;
                let joined = answer.route_tables().iter().flat_map(|table| table.associations());
                for association in joined.filter_map(|one| one.route_table_association_id()) {
                    end!(ec2.disassociate_route_table().association_id(association), "take a subnet's routes away");
                }
                end!(ec2.delete_route_table().route_table_id(handle), "delete the route table");
            }
            GROUP => end!(ec2.delete_security_group().group_id(handle), "delete a security group"),
            // By its name, which has the cluster's uid in it: not every endpoint takes ids here.
            KEY_PAIR => {
                let name = thing.outputs["name"].as_str().unwrap_or_default();
                end!(ec2.delete_key_pair().key_name(name), "delete the key pair");
            }
            SECRET => end!(self.clients.ssm.delete_parameter().name(handle), "delete the kept SSH key"),
            ROLE => {
                end!(iam.delete_role_policy().role_name(handle).policy_name("kprov"), "delete the control plane's policy");
                end!(iam.delete_role().role_name(handle), "delete the control plane's role");
            }
            PROFILE => {
                // One that gives none any more is half gone: an earlier run was stopped right here.
                if thing.phase == Phase::Ready {
                    let takes = iam.remove_role_from_instance_profile().instance_profile_name(handle).role_name(handle);
                    end!(takes, "take the instance profile's role away");
                }
                end!(iam.delete_instance_profile().instance_profile_name(handle), "delete the instance profile");
            }
            FILESYSTEM => end!(efs.delete_file_system().file_system_id(handle), "delete a filesystem"),
            MOUNT => end!(efs.delete_mount_target().mount_target_id(handle), "delete a mount target"),
            MACHINE => end!(ec2.terminate_instances().instance_ids(handle), "terminate a machine"),
            TARGETS => end!(elb.delete_target_group().target_group_arn(handle), "delete a target group"),
            LOAD_BALANCER => end!(elb.delete_load_balancer().load_balancer_arn(handle), "delete a load balancer"),
            kind => return Err(not_ours(kind)),
        }
        Ok(())
    }
}

/// EC2 hears of an instance profile some seconds after IAM made it; until then it takes the name for a mistake.
async fn patiently<T, E: ProvideErrorMetadata, F: Future<Output = std::result::Result<T, E>>>(
    ask: impl Fn() -> F,
) -> std::result::Result<T, E> {
    let deadline = Instant::now() + PROFILE_LIMIT;
    loop {
        match ask().await {
            Err(error) if is_young_profile(error.message().unwrap_or_default()) && Instant::now() < deadline => {
                tokio::time::sleep(PROFILE_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// The other way round than `look` reads it; "tcp 1-9 from ..." is what others wrote, to be revoked.
fn permission(line: &str, groups: &BTreeMap<String, String>) -> IpPermission {
    let (what, source) = line.split_once(" from ").unwrap_or((line, ""));
    let (protocol, ports) = what.split_once(' ').unwrap_or(("-1", ""));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let builder = IpPermission::builder().ip_protocol(protocol).set_from_port(first.parse().ok()).set_to_port(last.parse().ok());
    let builder = match source {
        wide if wide.contains(':') => builder.ipv6_ranges(Ipv6Range::builder().cidr_ipv6(wide).build()),
        range if range.contains('/') => builder.ip_ranges(IpRange::builder().cidr_ip(range).build()),
        group => builder.user_id_group_pairs(UserIdGroupPair::builder().group_id(groups.get(group).map_or(group, String::as_str)).build()),
    };
    builder.build()
}
