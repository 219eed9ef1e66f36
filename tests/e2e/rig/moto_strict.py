"""moto, made as strict as AWS where kprov's crash safety depends on it, with a control port for the machines behind it.

usage: moto_strict.py PORT CONTROL_PORT [--auto]    serves until its stdin ends; says "ready" on stdout
       moto_strict.py --self-test                   proves every patch against this moto

Every patch names the rule of AWS that it restores; `--self-test` breaks when moto changes under one of them.

Control port (plain HTTP, JSON):
  GET  /events?after=N   what happened since event N; waits until there is something
  POST /ready?id=ID      body: the machine's public host key; the instance runs (load balancer, filesystem, mount target: is there)
  POST /gone?id=ID       the instance is terminated (mount target: removed; load balancer: its interfaces are released)
  POST /health           {"targetGroup": ARN, "target": ID, "port": N, "state": "healthy"}
  POST /auto?on=1        instances run and end without anybody's word
  GET  /balancers        network load balancers with their addresses, listeners and targets
  GET  /mounts           mount targets: address and filesystem
  POST /deny             body: actions that nobody may do any more, like ec2:RunInstances
  POST /policy?key=KEY   body: the policy of whoever has this access key; machines have their roles'
  POST /lag?seconds=S    from now on EC2 shows a new thing S seconds after it was made
  POST /stop             body: {"action", "status", "code", "message"}: what it is answered from now on; an empty code ends that
  GET  /refused          who was refused what: "ACCESS-KEY service:Action on RESOURCE"
  GET  /dump             everything that exists, of all services, as one flat list
  POST /decoys           body: {"uid", "name"}: things of a stranger, named and tagged almost like a cluster's own
"""

import base64
import fnmatch
import functools
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as xml
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

ACCOUNT = "123456789012"
PROFILE_SECONDS = 1.0
DEBIAN, CANONICAL = "136693071363", "099720109477"
# What the disks of images hold, by the owner; Canonical's are larger here than what the example wishes for.
IMAGE_GIB = {DEBIAN: 8, CANONICAL: 10}


def images():
    """moto has no Debian and no current Ubuntu."""
    rows = []
    for number, (owner, name, architecture) in enumerate(
        [(DEBIAN, f"debian-12-{short}-{build}", arch) for short, arch in (("amd64", "x86_64"), ("arm64", "arm64"))
         for build in ("20260701-2100", "20261020-2200")]
        + [(CANONICAL, f"ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{short}-server-{build}", arch)
           for short, arch in (("amd64", "x86_64"), ("arm64", "arm64")) for build in ("20260610", "20261001")]
    ):
        debian = owner == DEBIAN
        stamp = name.rsplit("-", 2)[-2] if debian else name.rsplit("-", 1)[-1]
        rows.append({
            "ami_id": f"ami-{number + 1:017x}", "state": "available", "public": True, "owner_id": owner,
            "image_location": f"{owner}/{name}", "sriov": "simple", "root_device_type": "ebs",
            "root_device_name": "/dev/xvda" if debian else "/dev/sda1", "description": name, "image_type": "machine",
            "platform": None, "architecture": architecture, "name": name, "virtualization_type": "hvm", "hypervisor": "xen",
            "creation_date": f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T00:00:00.000Z",
        })
    return rows


def configure():
    """What moto reads from its environment, before it is imported."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(images(), file)
        file.flush()
        os.environ.update({
            "MOTO_AMIS_PATH": file.name, "MOTO_ENABLE_AMI_VALIDATION": "true", "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true", "MOTO_ACCOUNT_ID": ACCOUNT, "AWS_ACCESS_KEY_ID": "rig",
            "AWS_SECRET_ACCESS_KEY": "rig", "AWS_EC2_METADATA_DISABLED": "true",
        })
        import moto.ec2.models.amis  # noqa: F401  reads the file once, now


configure()

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import aws_policy  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from moto.backends import get_backend  # noqa: E402
from moto.core.responses import ActionResult  # noqa: E402
from moto.core.utils import utcnow  # noqa: E402
from moto.ec2.exceptions import DependencyViolationError, EC2ClientError  # noqa: E402
from moto.ec2.models import amis, elastic_block_store, instances, internet_gateways, route_tables, security_groups, subnets, vpcs  # noqa: E402
from moto.ec2.responses.elastic_block_store import ElasticBlockStore  # noqa: E402
from moto.ec2.responses.general import General  # noqa: E402
from moto.ec2.responses.instances import InstanceResponse  # noqa: E402
from moto.efs import models as efs  # noqa: E402
from moto.efs.exceptions import EFSError  # noqa: E402
from moto.elbv2 import models as elbv2  # noqa: E402
from moto.elbv2.exceptions import DuplicateListenerError, DuplicateLoadBalancerName, DuplicateTargetGroupName  # noqa: E402
from moto.iam import models as iam  # noqa: E402
from moto.iam.exceptions import ValidationError  # noqa: E402


class Lag:
    """EC2 is consistent in the end: for a while, whoever names a new thing is told that there is none, and lists leave it out."""

    # What makes a thing, what lists it, the element with its id, and how its absence is told.
    KINDS = [
        ("CreateVpc", "DescribeVpcs", "vpcId", "InvalidVpcID.NotFound"),
        ("CreateSubnet", "DescribeSubnets", "subnetId", "InvalidSubnetID.NotFound"),
        ("CreateSecurityGroup", "DescribeSecurityGroups", "groupId", "InvalidGroup.NotFound"),
        ("CreateInternetGateway", "DescribeInternetGateways", "internetGatewayId", "InvalidInternetGatewayID.NotFound"),
        ("CreateRouteTable", "DescribeRouteTables", "routeTableId", "InvalidRouteTableID.NotFound"),
        ("RunInstances", "DescribeInstances", "instanceId", "InvalidInstanceID.NotFound"),
    ]

    def __init__(self, seconds=0.0):
        self.seconds, self.made = seconds, {}

    def code_of(self, identity):
        """`None` once it shows."""
        moment, code = self.made.get(identity, (0, None))
        return code if time.monotonic() - moment < self.seconds else None

    def refusal(self, call):
        named = [value for key, value in call.form.items() if not key.startswith("Filter.")] if call.service == "ec2" else []
        for identity in named:
            if self.code_of(identity):
                return 400, self.code_of(identity), f"'{identity}' does not exist"
        return None

    def through(self, call, application, environ, start_response):
        rows = [row for row in self.KINDS if call.action in row[:2]] if call.service == "ec2" and self.seconds else []
        if not rows:
            return application(environ, start_response)
        [(create, _, element, code)] = rows
        said = []
        body = b"".join(application(environ, lambda *arguments: said.append(arguments)))
        [(status, headers, *_)] = said
        if call.action == create:
            for identity in re.findall(f"<{element}>([^<]+)</{element}>", body.decode()):
                self.made.setdefault(identity, (time.monotonic(), code))
        else:
            body = self.without_the_new(body, element)
        start_response(status, [(name, value) for name, value in headers if name.lower() != "content-length"] + [("Content-Length", str(len(body)))])
        return [body]

    def without_the_new(self, body, element):
        tree = xml.fromstring(body)
        xml.register_namespace("", tree.tag.partition("}")[0].lstrip("{"))
        for parent in list(tree.iter()):
            for item in list(parent):
                own = [child.text for child in item if child.tag.rpartition("}")[2] == element]
                if item.tag.rpartition("}")[2] == "item" and any(self.code_of(identity) for identity in own):
                    parent.remove(item)
        return xml.tostring(tree)


class Rig:
    """What the control port and the patches share."""

    def __init__(self):
        self.calls = threading.RLock()
        self.changed = threading.Condition()
        self.forget()

    def forget(self):
        self.auto, self.events, self.denied, self.refused = True, [], [], []
        self.policies, self.stops, self.lag = {}, {}, Lag()
        self.host_keys, self.health, self.tokens, self.releasing, self.leaving = {}, {}, {}, {}, {}

    def tell(self, what, **more):
        with self.changed:
            self.events.append({"number": len(self.events) + 1, "what": what, **more})
            self.changed.notify_all()

    def wait(self, after, seconds=20):
        with self.changed:
            self.changed.wait_for(lambda: len(self.events) > after, seconds)
            return self.events[after:]


rig = Rig()


def patch(owner, name):
    """Replaces `owner.name` by the function below, which gets the original first."""
    original = getattr(owner, name)

    def put(function):
        @functools.wraps(original)
        def replaced(*arguments, **named):
            return function(original, *arguments, **named)

        setattr(owner, name, replaced)
        return function

    return put


# Tokens: the same token and the same request is the same thing; another request is refused.


def once(kind, ids_of, alive):
    def replaced(original, self):
        request = {key: value for key, value in self.data.items() if key not in ("ClientToken", "Action", "Version")}
        request = json.dumps(request, sort_keys=True, default=str)
        token = self._get_param("ClientToken")
        key = (kind, self.current_account, self.region, token)
        if token and key in rig.tokens:
            known, ids, answer = rig.tokens[key]
            if known != request:
                raise EC2ClientError("IdempotentParameterMismatch", "The request with this client token had other parameters.")
            if not alive(self, ids):
                raise EC2ClientError("IdempotentInstanceTerminated", "The instance of this client token was terminated.")
            return ActionResult(answer)
        result = original(self)
        rig.tokens[key] = (request, ids_of(result.result), result.result)
        return result

    return replaced


def instances_live(self, ids):
    return all(self.ec2_backend.get_instance(one).state not in ("shutting-down", "terminated") for one in ids)


patch(InstanceResponse, "run_instances")(once("instance", lambda reservation: [one.id for one in reservation.instances], instances_live))
patch(ElasticBlockStore, "create_volume")(once("volume", lambda volume: [volume.id], lambda *_: True))


# Instances: pending until their machine is there, shutting-down until it is gone.


@patch(instances.InstanceBackend, "run_instances")
def run_instances(original, self, *arguments, **named):
    reservation = original(self, *arguments, **named)
    for instance in reservation.instances:
        instance._state = instances.InstanceState("pending", 0)
        # The interface that came with the instance goes with it.
        for nic in instance.nics.values():
            nic.delete_on_termination = True
    return reservation


@patch(InstanceResponse, "run_instances")
def announce(original, self):
    check_profile(self)
    check_disk(self)
    known = set(self.ec2_backend.reservations)
    result = original(self)
    if result.result.id not in known:
        for instance in result.result.instances:
            rig.tell("launch", **describe(instance))
            if rig.auto:
                ready(instance.id, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAUTO")
    return result


def check_disk(request):
    """A disk is at least as large as what the image puts on it."""
    [image] = request.ec2_backend.describe_images(ami_ids=[request._get_param("ImageId")])
    [root] = image.block_device_mappings
    for disk in request._get_param("BlockDeviceMappings", []):
        size, holds = int(disk["Ebs"].get("VolumeSize") or root["Ebs"]["VolumeSize"]), root["Ebs"]["VolumeSize"]
        if disk["DeviceName"] == root["DeviceName"] and size < holds:
            message = f"Volume of size {size}GB is smaller than snapshot '{image.ebs_snapshot.id}', expect size >= {holds}GB"
            raise EC2ClientError("InvalidBlockDeviceMapping", message)


def disks(original):
    def replaced(self):
        [root] = original.fget(self)
        root["Ebs"]["VolumeSize"] = IMAGE_GIB.get(self.owner_id, 8)
        return [root]

    return property(replaced)


amis.Ami.block_device_mappings = disks(amis.Ami.block_device_mappings)


def describe(instance):
    subnet = instance.ec2_backend.get_subnet(instance.subnet_id)
    keys = [pair for pair in instance.ec2_backend.key_pairs.values() if pair.key_name == instance.key_name]
    image = instance.ec2_backend.describe_images(ami_ids=[instance.image_id])[0]
    association = instance.ec2_backend.iam_instance_profile_associations.get(instance.id)
    data = instance.user_data
    [size] = instance.ec2_backend.describe_instance_types(instance_types=[instance.instance_type])
    return {
        "id": instance.id, "address": instance.private_ip, "public": instance.public_ip, "subnet": subnet.cidr_block,
        "vpc": instance.ec2_backend.get_vpc(subnet.vpc_id).cidr_block, "image": image.name, "type": instance.instance_type,
        "vcpus": size["VCpuInfo"]["DefaultVCpus"], "memory_mib": size["MemoryInfo"]["SizeInMiB"],
        "region": instance.region_name, "zone": subnet.availability_zone, "keys": [pair.public_key.strip() for pair in keys],
        "user_data": str(data.as_encoded_string() if hasattr(data, "as_encoded_string") else data or ""),
        "profile": association.iam_instance_profile.roles[0].name if association and association.iam_instance_profile.roles else None,
        "name": instance.get_tags() and {tag["key"]: tag["value"] for tag in instance.get_tags()}.get("Name"),
    }


@patch(instances.Instance, "terminate")
def terminate(original, self):
    """Twice is no error; the machine takes its time."""
    before = instances.InstanceState(self._state.name, self._state.code)
    if self.state in ("shutting-down", "terminated"):
        return before
    self._state = instances.InstanceState("shutting-down", 32)
    self.finish = functools.partial(original, self)
    rig.tell("terminate", id=self.id)
    if rig.auto:
        gone(self.id)
    return before


@patch(General, "get_console_output")
def console(original, self):
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    key = rig.host_keys.get(instance.id)
    # Consoles hold whatever bytes firmware and kernels write.
    text = f"\x1b[2J\udcff cloud-init: \n-----BEGIN SSH HOST KEY KEYS-----\n{key} root@ip\n-----END SSH HOST KEY KEYS-----\n" if key else ""
    output = {"Output": base64.b64encode(text.encode(errors="surrogateescape")).decode()} if key else {}
    return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), **output})


def find_instance(identity):
    for region in get_backend("ec2")[ACCOUNT].values():
        for instance in region.all_instances():
            if instance.id == identity:
                return instance
    return None


def ready(identity, key):
    with rig.calls:
        instance = find_instance(identity)
        if instance and instance.state == "pending":
            rig.host_keys[identity] = key.strip()
            instance._state = instances.InstanceState("running", 16)
        for region in get_backend("elbv2")[ACCOUNT].values():
            if identity in region.load_balancers:
                region.load_balancers[identity].is_ready = True
        for region in get_backend("efs")[ACCOUNT].values():
            for thing in [things[identity] for things in (region.file_systems_by_id, region.mount_targets_by_id) if identity in things]:
                if thing.life_cycle_state == "creating":
                    thing.life_cycle_state = "available"


def gone(identity):
    with rig.calls:
        instance = find_instance(identity)
        if instance and instance.state == "shutting-down":
            instance.finish()
        if identity in rig.leaving:
            rig.leaving.pop(identity)()
            rig.tell("mounts")
        for backend, interfaces in [rig.releasing.pop(identity)] if identity in rig.releasing else []:
            for interface in interfaces:
                interface.delete()


# Dependencies: nothing is deleted below what uses it.


def interfaces_of(backend, matches):
    return [interface.id for interface in backend.enis.values() if matches(interface)]


def refuse(kind, identity, users):
    if users:
        raise DependencyViolationError(f"The {kind} '{identity}' has dependencies and cannot be deleted. ({', '.join(users)})")


@patch(subnets.SubnetBackend, "delete_subnet")
def delete_subnet(original, self, subnet_id):
    refuse("subnet", subnet_id, interfaces_of(self, lambda interface: interface.subnet.id == subnet_id))
    return original(self, subnet_id)


@patch(security_groups.SecurityGroupBackend, "_delete_security_group")
def delete_security_group(original, self, vpc_id, group_id):
    users = interfaces_of(self, lambda interface: group_id in [group.id for group in interface.group_set])
    others = [group for groups in self.groups.values() for group in groups.values() if group.id != group_id]
    users += [
        other.id for other in others
        if any(rule.source_group.get("GroupId") == group_id for rule in other.ingress_rules + other.egress_rules)
    ]
    refuse("security group", group_id, users)
    return original(self, vpc_id, group_id)


@patch(internet_gateways.InternetGatewayBackend, "detach_internet_gateway")
def detach_internet_gateway(original, self, internet_gateway_id, vpc_id):
    users = interfaces_of(self, lambda interface: interface.subnet.vpc_id == vpc_id and interface.public_ip)
    if users:
        raise DependencyViolationError(f"Network {vpc_id} has some mapped public address(es). ({', '.join(users)})")
    return original(self, internet_gateway_id, vpc_id)


@patch(vpcs.VPCBackend, "delete_vpc")
def delete_vpc(original, self, vpc_id):
    users = [gateway.id for gateway in self.internet_gateways.values() if gateway.vpc and gateway.vpc.id == vpc_id]
    users += [group.id for group in self.groups.get(vpc_id, {}).values() if group.name != "default"]
    refuse("vpc", vpc_id, users)
    return original(self, vpc_id)


# Routes: one by a gateway that is gone, or in no network, leads nowhere.


def leads(original):
    def replaced(self):
        gateway = self.gateway
        is_gone = isinstance(gateway, internet_gateways.InternetGateway) and gateway.vpc is None
        return "blackhole" if is_gone else original.fget(self)

    return property(replaced)


route_tables.Route.state = leads(route_tables.Route.state)


# Volumes.


@patch(elastic_block_store.EBSBackend, "attach_volume")
def attach_volume(original, self, volume_id, instance_id, device_path, delete_on_termination=False):
    volume, instance = self.get_volume(volume_id), self.get_instance(instance_id)
    if volume.attachment:
        raise EC2ClientError("VolumeInUse", f"{volume_id} is already attached to an instance")
    if volume.zone.name != instance.availability_zone:
        raise EC2ClientError("InvalidVolume.ZoneMismatch", f"The volume '{volume_id}' is not in the same availability zone")
    return original(self, volume_id, instance_id, device_path, delete_on_termination)


@patch(elastic_block_store.EBSBackend, "delete_volume")
def delete_volume(original, self, volume_id):
    if self.get_volume(volume_id).attachment:
        raise EC2ClientError("VolumeInUse", f"Volume {volume_id} is currently attached")
    return original(self, volume_id)


# Load balancers: names are unique, ports are, they have interfaces with addresses, and targets are as healthy as they are.


@patch(elbv2.ELBv2Backend, "create_load_balancer")
def create_load_balancer(original, self, name, *arguments, **named):
    wish = json.dumps([arguments, {key: value for key, value in named.items() if key != "tags"}], sort_keys=True, default=str)
    for other in self.load_balancers.values():
        if other.name == name:
            if getattr(other, "wish", None) == wish:
                return other
            raise DuplicateLoadBalancerName()
    network = named.get("loadbalancer_type") == "network"
    plain = elbv2.make_arn_for_load_balancer
    if network:
        elbv2.make_arn_for_load_balancer = lambda **parts: plain(**parts).replace("loadbalancer/app/", "loadbalancer/net/")
    try:
        balancer = original(self, name, *arguments, **named)
    finally:
        elbv2.make_arn_for_load_balancer = plain
    balancer.wish, balancer.is_ready, balancer.interfaces = wish, rig.auto, []
    for subnet in balancer.subnets if network else []:
        short = balancer.arn.split("loadbalancer/")[1]
        interface = self.ec2_backend.create_network_interface(
            subnet, subnet.get_available_subnet_ip(balancer), group_ids=list(balancer.security_groups or []), description=f"ELB {short}",
            public_ip_auto_assign=balancer.scheme != "internal")
        interface.requester_managed, interface.status, interface.interface_type = True, "in-use", "network_load_balancer"
        balancer.interfaces.append(interface)
    rig.tell("balancers")
    return balancer


@patch(elbv2.FakeLoadBalancer, "activate")
def activate(original, self):
    if self.is_ready:
        original(self)


@patch(elbv2.ELBv2Backend, "delete_load_balancer")
def delete_load_balancer(original, self, arn):
    """Answered at once; the interfaces go a little later, and their subnet and groups are in use until then."""
    balancer = self.load_balancers.get(arn)
    for group in self.target_groups.values():
        group.load_balancer_arns = [other for other in group.load_balancer_arns if other != arn]
    original(self, arn)
    if balancer:
        rig.releasing[arn] = (self.ec2_backend, balancer.interfaces)
        rig.tell("balancers")
        rig.tell("unbalance", id=arn)
        if rig.auto:
            gone(arn)


@patch(elbv2.ELBv2Backend, "create_target_group")
def create_target_group(original, self, name, **named):
    wish = json.dumps({key: value for key, value in named.items() if key != "tags"}, sort_keys=True, default=str)
    for other in self.target_groups.values():
        if other.name == name:
            if getattr(other, "wish", None) == wish:
                return other
            raise DuplicateTargetGroupName()
    group = original(self, name, **named)
    group.wish = wish
    return group


@patch(elbv2.ELBv2Backend, "create_listener")
def create_listener(original, self, load_balancer_arn, protocol, port, *arguments, **named):
    balancer = self.load_balancers.get(load_balancer_arn)
    wish = json.dumps([protocol, port, arguments, {key: value for key, value in named.items() if key != "tags"}], sort_keys=True, default=str)
    for other in balancer.listeners.values() if balancer else []:
        if str(other.port) == str(port):
            if getattr(other, "wish", None) == wish:
                return other
            raise DuplicateListenerError()
    listener = original(self, load_balancer_arn, protocol, port, *arguments, **named)
    listener.wish = wish
    rig.tell("balancers")
    return listener


for name in ("delete_listener", "modify_listener", "register_targets", "deregister_targets"):

    @patch(elbv2.ELBv2Backend, name)
    def change_targets(original, self, *arguments, **named):
        if original.__name__ == "register_targets":
            check_targets(self, *arguments, **named)
        result = original(self, *arguments, **named)
        rig.tell("balancers")
        return result


def check_targets(backend, target_group_arn, instances, *_):
    """Only instances that run can be registered by their id."""
    for target in instances:
        if target["Id"].startswith("i-"):
            instance = find_instance(target["Id"])
            if instance is None or instance.state != "running":
                raise elbv2.InvalidTargetError()


@patch(elbv2.ELBv2Backend, "describe_target_health")
def describe_target_health(original, self, target_group_arn, targets):
    statuses = original(self, target_group_arn, targets)
    group = self.target_groups[target_group_arn]
    for status in statuses:
        if status.status != "healthy":
            continue
        if not any(arn in self.load_balancers for arn in group.load_balancer_arns):
            status.status, status.reason = "unused", "Target.NotInUse"
            status.description = "Target group is not configured to receive traffic from the load balancer"
        elif not rig.auto:
            state = rig.health.get((target_group_arn, status.instance_id, int(status.port)), "initial")
            status.status = state
            status.reason = {"initial": "Elb.RegistrationInProgress", "unhealthy": "Target.FailedHealthChecks"}.get(state)
    return statuses


# Filesystems: creating until they are there, in use until their mount targets are really gone.


@patch(efs.EFSBackend, "create_file_system")
def create_file_system(original, self, *arguments, **named):
    return settle(original(self, *arguments, **named), "file_system_id")


@patch(efs.EFSBackend, "create_mount_target")
def create_mount_target(original, self, file_system_id, *arguments, **named):
    system = self.file_systems_by_id.get(file_system_id)
    if system and system.life_cycle_state != "available":
        raise IncorrectFileSystemLifeCycleState(file_system_id)
    return settle(original(self, file_system_id, *arguments, **named), "mount_target_id")


def settle(thing, identity):
    if not rig.auto:
        thing.life_cycle_state = "creating"
    rig.tell("mounts")
    rig.tell("settle", id=getattr(thing, identity))
    return thing


class IncorrectFileSystemLifeCycleState(EFSError):
    code = 409

    def __init__(self, identity):
        super().__init__("IncorrectFileSystemLifeCycleState", f"None of the actions are allowed on file system '{identity}' yet.")


@patch(efs.EFSBackend, "delete_mount_target")
def delete_mount_target(original, self, mount_target_id):
    target = self.mount_targets_by_id.get(mount_target_id)
    if target is None or rig.auto:
        original(self, mount_target_id)
    elif target.life_cycle_state != "deleting":
        target.life_cycle_state = "deleting"
        rig.leaving[mount_target_id] = functools.partial(original, self, mount_target_id)
        rig.tell("unmount", id=mount_target_id)
    rig.tell("mounts")


# Identities: an instance profile is known to EC2 a moment after it was made, and the role that it gives after that.


@patch(iam.InstanceProfile, "__init__")
def make_profile(original, self, *arguments, **named):
    original(self, *arguments, **named)
    self.made = time.monotonic()


@patch(iam.IAMBackend, "create_role")
def create_role(original, self, role_name, *arguments, **named):
    if len(role_name) > 64:
        raise ValidationError(f"Value '{role_name}' at 'roleName' failed to satisfy constraint: Member must have length less than or equal to 64")
    return original(self, role_name, *arguments, **named)


def check_profile(request):
    name = request._get_param("IamInstanceProfile.Name") or (request._get_param("IamInstanceProfile.Arn") or "").rsplit("/", 1)[-1]
    for backend in backends("iam"):
        for profile in backend.instance_profiles.values():
            if profile.name == name and not rig.auto and time.monotonic() - profile.made < PROFILE_SECONDS:
                message = f"Value ({name}) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
                if profile.roles:
                    message = f'IAM Instance Profile "{profile.arn}" has no associated IAM Roles'
                raise EC2ClientError("InvalidParameterValue", message)


# Permissions: whoever has a policy (a machine's role, a person who was given one) may do what it says, others everything not denied.

EFS_NOUNS = {"file-systems": "FileSystem", "mount-targets": "MountTarget", "resource-tags": "Resource", "tags": "Tags"}
EFS_VERBS = {"GET": "Describe", "POST": "Create", "DELETE": "Delete", "PUT": "Modify"}
# By access key: what AWS answers those whose credentials are wrong or over; EC2, the other query services, the JSON ones.
NOBODIES = {
    "AKIAWRONG": ("AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"),
    "ASIAEXPIRED": ("RequestExpired", "ExpiredToken", "ExpiredTokenException"),
}


class Call:
    """Who asks for what, as policies name it; `action` is `None` for what is no call of a service."""

    def __init__(self, environ, body):
        scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].split("/")
        self.key, self.service, self.action, self.form = None, None, None, {}
        if len(scope) < 5:
            return
        self.key, region, self.service = scope[0], scope[2], scope[3]
        target = environ.get("HTTP_X_AMZ_TARGET")
        parts = environ["PATH_INFO"].strip("/").split("/")[1:] or [""]
        if target:
            self.action, self.form = target.rpartition(".")[2], {**json.loads(body or b"{}"), "region": region}
        elif self.service != "elasticfilesystem":
            self.form = {key: values[0] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
            self.action = self.form.get("Action")
        else:
            self.action, self.form = efs_action(environ["REQUEST_METHOD"], parts), json.loads(body or b"{}")
            self.form["of"] = filesystem_of(parts[1]) if len(parts) > 1 else None

    def name(self):
        return f"{self.service}:{self.action}"

    def is_dry(self):
        return self.form.get("DryRun") == "true"

    def refusal(self):
        """Status, code and message; `None`: go on."""
        if self.action is None:
            return None
        if self.key in NOBODIES:
            place = 0 if self.service == "ec2" else 2 if self.is_json() else 1
            return 403, NOBODIES[self.key][place], "The credentials are not valid."
        if any(fnmatch.fnmatchcase(self.name(), pattern) for pattern in rig.denied):
            return self.denied(self.name())
        documents = policies_of(self.key)
        if documents is not None:
            statements = [one for document in documents for one in aws_policy.statements(document)]
            for ask in aws_policy.asks(self.service, self.action, self.form, ACCOUNT, tags_by_id):
                if not aws_policy.allowed(statements, ask):
                    rig.refused.append(f"{self.key} {ask.action} on {ask.resource}")
                    return self.denied(ask.action)
        # moto would do some of what it is only asked about.
        if self.is_dry():
            return 412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."
        stop = rig.stops.get(self.action)
        return (int(stop["status"]), stop["code"], stop["message"]) if stop else None

    def denied(self, action):
        code = "UnauthorizedOperation" if self.service == "ec2" else "AccessDeniedException" if self.is_json() else "AccessDenied"
        return 403, code, f"You are not authorized to perform: {action}"

    def is_json(self):
        return self.service in ("ssm", "elasticfilesystem")

    def answer(self, code, message):
        if self.service == "ec2":
            return "text/xml", f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"
        if self.is_json():
            return "application/x-amz-json-1.1", json.dumps({"__type": code, "ErrorCode": code, "message": message, "Message": message})
        return "text/xml", f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"


def efs_action(method, parts):
    verb, noun = EFS_VERBS.get(method, "?"), EFS_NOUNS.get(parts[0], "?")
    if noun == "Resource":
        verb = {"POST": "Tag", "DELETE": "Untag"}.get(method, "ListTagsFor")
    plural = "s" if verb == "Describe" and not noun.endswith("s") else ""
    if len(parts) > 2:
        noun, plural = {"security-groups": "MountTargetSecurityGroups", "lifecycle-configuration": "LifecycleConfiguration"}.get(parts[2], "?"), ""
    return f"{verb}{noun}{plural}"


def filesystem_of(identity):
    targets = [backend.mount_targets_by_id[identity] for backend in backends("efs") if identity in backend.mount_targets_by_id]
    return targets[0].file_system_id if targets else identity


def policies_of(key):
    if key in rig.policies:
        return [rig.policies[key]]
    if not key.startswith("ASIA"):
        return None
    for backend in backends("iam"):
        for role in backend.roles.values():
            if role.name == key[4:]:
                return list(role.policies.values()) + [policy.document for policy in role.managed_policies.values()]
    return []


def tags_by_id(identity):
    found = {}
    for elb in backends("elbv2") if identity.startswith("arn:aws:elasticloadbalancing:") else []:
        found.update({tag["Key"]: tag["Value"] for tag in elb.tagging_service.list_tags_for_resource(identity)["Tags"]})
    for files in backends("efs") if identity.startswith("fs-") else []:
        if identity in files.file_systems_by_id:
            found.update({tag["Key"]: tag["Value"] for tag in files.list_tags_for_resource(identity)})
    for ec2 in backends("ec2"):
        for table in ec2.route_tables.values():
            if identity in table.all_associations_ids:
                identity = table.id
        found.update(ec2.tags.get(identity, {}))
        found.update({key: value for pair in ec2.key_pairs.values() if pair.key_name == identity for key, value in tags_of(pair).items()})
    return found


# What the harness reads.


def backends(service):
    for account in list(get_backend(service).values()):
        yield from account.values()


def balancers():
    found = []
    for backend in backends("elbv2"):
        for balancer in backend.load_balancers.values():
            listeners = []
            for listener in balancer.listeners.values():
                arns = [arn for action in listener.default_actions for arn in backend._get_target_group_arns_from(action_data=action.data)]
                targets = [
                    {"group": arn, "id": target["Id"], "port": int(target.get("Port") or backend.target_groups[arn].port),
                     "check": backend.target_groups[arn].health_check_port, "address": address_of(target["Id"])}
                    for arn in arns if arn in backend.target_groups for target in backend.target_groups[arn].targets.values()
                ]
                listeners.append({"port": int(listener.port), "protocol": listener.protocol, "targets": targets})
            addresses = [{"private": one.private_ip_address, "public": one.public_ip, "subnet": one.subnet.cidr_block}
                         for one in getattr(balancer, "interfaces", [])]
            found.append({"id": balancer.arn, "name": balancer.name, "dns": balancer.dns_name, "addresses": addresses, "listeners": listeners})
    return found


def address_of(target):
    instance = find_instance(target) if target.startswith("i-") else None
    return instance.private_ip if instance else target


def mounts():
    return [
        {"address": target.ip_address, "filesystem": target.file_system_id, "region": backend.region_name}
        for backend in backends("efs") for target in backend.mount_targets_by_id.values()
    ]


def tags_of(thing):
    return {tag["key"]: tag["value"] for tag in thing.get_tags()} if hasattr(thing, "get_tags") else {}


def dump():
    """Everything but terminated instances and what AWS gives every account."""
    rows = []

    def add(kind, identity, tags, **more):
        plain = {(tag.get("Key") or tag.get("key")): tag.get("Value", tag.get("value")) for tag in tags} if isinstance(tags, list) else tags
        rows.append({"kind": kind, "id": identity, "tags": plain or {}, **more})

    for ec2 in backends("ec2"):
        default = {vpc.id for vpc in ec2.vpcs.values() if str(vpc.is_default).lower() == "true"}
        ours = lambda thing: getattr(thing, "vpc_id", None) not in default  # noqa: E731
        for instance in ec2.all_instances():
            if instance.state != "terminated":
                add("instance", instance.id, tags_of(instance), state=instance.state)
        for kind, things in {
            "vpc": [vpc for vpc in ec2.vpcs.values() if vpc.id not in default],
            "subnet": [one for zone in ec2.subnets.values() for one in zone.values() if ours(one)],
            "security-group": [one for groups in ec2.groups.values() for one in groups.values() if ours(one) and one.name != "default"],
            "internet-gateway": ec2.internet_gateways.values(),
            "route-table": [one for one in ec2.route_tables.values() if ours(one)],
            "network-interface": ec2.enis.values(), "volume": ec2.volumes.values(),
        }.items():
            for thing in things:
                add(kind, thing.id, tags_of(thing), detail=detail(kind, thing))
        for pair in ec2.key_pairs.values():
            add("key-pair", pair.key_name, tags_of(pair))
        for address in ec2.addresses:
            add("elastic-ip", address.allocation_id, tags_of(address))
    for elb in backends("elbv2"):
        for kind, arns in {"load-balancer": elb.load_balancers, "target-group": elb.target_groups}.items():
            for arn in arns:
                add(kind, arn, elb.tagging_service.list_tags_for_resource(arn)["Tags"], detail=detail(kind, arns[arn]))
    for files in backends("efs"):
        for identity in files.file_systems_by_id:
            add("filesystem", identity, files.list_tags_for_resource(identity))
        for identity in files.mount_targets_by_id:
            add("mount-target", identity, {})
    for people in backends("iam"):
        for role in people.roles.values():
            add("role", role.name, role.tags)
        for profile in people.instance_profiles.values():
            add("instance-profile", profile.name, profile.tags)
        for policy in people.managed_policies.values():
            if ":aws:policy" not in policy.arn:
                add("policy", policy.arn, {})
    for ssm in backends("ssm"):
        for name in list(ssm._parameters):
            if ssm._parameters[name]:
                tags = ssm.list_tags_for_resource("Parameter", name) if hasattr(ssm, "list_tags_for_resource") else {}
                add("parameter", name, tags)
    return sorted(rows, key=lambda row: (row["kind"], row["id"]))


def detail(kind, thing):
    """What somebody may have changed in it."""
    if kind == "security-group":
        rules = [(rule.is_egress, rule.ip_protocol, rule.from_port, rule.to_port, rule.ip_range, rule.source_group)
                 for rule in thing.ingress_rules + thing.egress_rules]
        return sorted(json.dumps(rule, sort_keys=True, default=str) for rule in rules)
    if kind == "route-table":
        routes = thing.routes.values() if hasattr(thing.routes, "values") else thing.routes
        return sorted(str(getattr(one, "id", one)) for one in routes) + sorted(str(getattr(one, "subnet_id", one)) for one in thing.associations)
    if kind == "load-balancer":
        return sorted(str(listener.port) for listener in thing.listeners.values())
    if kind == "target-group":
        return sorted(thing.targets)
    return []


def decoys(port, region, uid, name):
    """Nothing here may ever be touched: tags that differ by case, by a letter, by the key, or carry the value under a foreign key."""
    import boto3

    def client(service):
        return boto3.client(service, region_name=region, endpoint_url=f"http://127.0.0.1:{port}")

    ec2, elb, efs, ssm, iam = map(client, ("ec2", "elbv2", "efs", "ssm", "iam"))
    nearly = [
        {"kprov-cluster-uid": uid[:-1]}, {"kprov-cluster-uid": uid + "0"}, {"kprov-cluster-uid": uid.upper() + "X"},
        {"Kprov-Cluster-Uid": uid}, {"kprov-cluster-uid-": uid}, {"cluster-uid": uid}, {"kprov-cluster": name}, {"Name": name},
        {"kubernetes.io/cluster/" + name: "owned"}, {},
    ]
    rows = [[{"Key": key, "Value": value} for key, value in tags.items()] for tags in nearly]
    for number, tags in enumerate(rows):
        made = lambda kind: [{"ResourceType": kind, "Tags": tags}] if tags else []  # noqa: E731
        vpc = ec2.create_vpc(CidrBlock=f"10.{200 + number}.0.0/16", TagSpecifications=made("vpc"))["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.{200 + number}.1.0/24", TagSpecifications=made("subnet"))["Subnet"]["SubnetId"]
        ec2.create_security_group(GroupName=f"{name}-{number}", Description="decoy", VpcId=vpc, TagSpecifications=made("security-group"))
        ec2.create_internet_gateway(TagSpecifications=made("internet-gateway"))
        ec2.create_route_table(VpcId=vpc, TagSpecifications=made("route-table"))
        ec2.create_key_pair(KeyName=f"{name}-{number}", TagSpecifications=made("key-pair"))
        ec2.create_volume(AvailabilityZone=f"{region}a", Size=1, TagSpecifications=made("volume"))
        elb.create_load_balancer(Name=f"{name[:20]}-d{number}", Type="network", Subnets=[subnet], **({"Tags": tags} if tags else {}))
        elb.create_target_group(Name=f"{name[:20]}-t{number}", Protocol="TCP", Port=80, VpcId=vpc, **({"Tags": tags} if tags else {}))
        efs.create_file_system(CreationToken=f"{name}-{number}", Tags=tags)
        ssm.put_parameter(Name=f"/kprov/{uid[:-1]}{number}/epoch", Value="1", Type="String", **({"Tags": tags} if tags else {}))
        iam.create_role(RoleName=f"{name}-{number}", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}), Tags=tags)


# Serving.


class Control(BaseHTTPRequestHandler):
    port, region = 0, "eu-west-1"

    def log_message(self, *_):
        pass

    def answer(self, value):
        body = json.dumps(value, default=str).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/events":
            return self.answer(rig.wait(int(query.get("after", 0)), float(query.get("seconds", 20))))
        with rig.calls:
            return self.answer({"/balancers": balancers, "/mounts": mounts, "/dump": dump, "/refused": lambda: rig.refused}[url.path]())

    def do_POST(self):
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if url.path == "/ready":
            ready(query["id"], body)
        elif url.path == "/gone":
            gone(query["id"])
        elif url.path == "/auto":
            rig.auto = query["on"] == "1"
        elif url.path == "/health":
            said = json.loads(body)
            rig.health[(said["targetGroup"], said["target"], int(said["port"]))] = said["state"]
        elif url.path == "/deny":
            rig.denied = [pattern for pattern in body.split() if pattern]
        elif url.path == "/policy":
            rig.policies[query["key"]] = body
        elif url.path == "/lag":
            rig.lag = Lag(float(query["seconds"]))
        elif url.path == "/stop":
            said = json.loads(body)
            rig.stops[said["action"]] = said if said["code"] else None
        elif url.path == "/decoys":
            auto, rig.auto = rig.auto, True
            decoys(self.port, query.get("region", self.region), **json.loads(body))
            rig.auto = auto
        else:
            return self.send_error(404)
        return self.answer({})


def serve(port, control_port, auto):
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)

    def one_at_a_time(environ, start_response):
        """AWS never lets two requests see half of each other; moto's threads do."""
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        environ["wsgi.input"] = io.BytesIO(body)
        with rig.calls:
            call = Call(environ, body)
            refusal = call.refusal() or rig.lag.refusal(call)
            if refusal:
                status, code, message = refusal
                kind, text = call.answer(code, message)
                start_response(f"{status} Refused", [("Content-Type", kind), ("x-amzn-errortype", code)])
                return [text.encode()]
            return rig.lag.through(call, application, environ, start_response)

    class Quiet(MotoRequestHandler):
        def log_request(self, *_):
            pass

    rig.auto = auto
    server = make_server("127.0.0.1", port, one_at_a_time, threaded=True, request_handler=Quiet)
    Control.port = server.server_port
    # A hundred machines may be ready at once.
    ThreadingHTTPServer.request_queue_size = 256
    control = ThreadingHTTPServer(("127.0.0.1", control_port), Control)
    for one in (server, control):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    return server.server_port, control.server_address[1]


def main():
    if sys.argv[1:] == ["--self-test"]:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import moto_strict_test

        return moto_strict_test.main(sys.modules[__name__], ClientError)
    serve(int(sys.argv[1]), int(sys.argv[2]), "--auto" in sys.argv)
    print("ready", flush=True)
    # Its end is the end of whoever started this.
    sys.stdin.read()


if __name__ == "__main__":
    sys.exit(main())
