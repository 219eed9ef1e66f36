"""Proves each patch of moto_strict over the wire: run as `moto_strict.py --self-test`."""

import json
import threading
import time
import urllib.request

import boto3

REGION = "eu-west-1"


class World:
    def __init__(self, port, control, refused):
        self.port, self.control, self.refused = port, control, refused
        self.ec2, self.elb, self.efs, self.ssm, self.iam = (
            boto3.client(name, region_name=REGION, endpoint_url=f"http://127.0.0.1:{port}") for name in ("ec2", "elbv2", "efs", "ssm", "iam"))

    def say(self, path, body=None, method="POST"):
        data = json.dumps(body).encode() if isinstance(body, dict) else (body or "").encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.control}{path}", data=data if method == "POST" else None, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ask(self, path):
        return self.say(path, method="GET")

    def fails(self, code, call, says="", **arguments):
        try:
            call(**arguments)
        except self.refused as error:
            assert error.response["Error"]["Code"] == code and says in str(error), error
            return
        raise AssertionError(f"{code} did not come")

    def network(self):
        number = World.networks = getattr(World, "networks", 0) + 1
        vpc = self.ec2.create_vpc(CidrBlock=f"10.{number}.0.0/16")["Vpc"]["VpcId"]
        subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.{number}.1.0/24", AvailabilityZone=f"{REGION}a")["Subnet"]["SubnetId"]
        self.ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
        return vpc, subnet

    def image(self):
        return self.ec2.describe_images(Owners=["136693071363"], Filters=[{"Name": "name", "Values": ["debian-12-amd64-*"]}])["Images"][0]["ImageId"]

    def launch(self, subnet, token, **more):
        wish = {"ImageId": self.image(), "InstanceType": "t3.medium", "KeyName": "self", "SubnetId": subnet, "MinCount": 1, "MaxCount": 1}
        return self.ec2.run_instances(**{**wish, "ClientToken": token, **more})["Instances"][0]

    def state(self, identity):
        return self.ec2.describe_instances(InstanceIds=[identity])["Reservations"][0]["Instances"][0]["State"]["Name"]


def images_of_debian_and_ubuntu(world):
    for owner, pattern in (("136693071363", "debian-12-arm64-*"), ("099720109477", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*")):
        found = world.ec2.describe_images(Owners=[owner], Filters=[{"Name": "name", "Values": [pattern]}])["Images"]
        assert len(found) == 2 and found[0]["CreationDate"] != found[1]["CreationDate"], found


def a_client_token_makes_one_instance(world):
    _, subnet = world.network()
    first = world.launch(subnet, "token-1")["InstanceId"]
    assert world.launch(subnet, "token-1")["InstanceId"] == first
    world.fails("IdempotentParameterMismatch", world.launch, subnet=subnet, token="token-1", InstanceType="t3.small")
    assert world.launch(subnet, "token-2")["InstanceId"] != first
    world.ec2.terminate_instances(InstanceIds=[first])
    world.fails("IdempotentInstanceTerminated", world.launch, subnet=subnet, token="token-1")


def a_client_token_makes_one_volume(world):
    def make(size):
        return world.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=size, ClientToken="volume-1")

    first = make(1)["VolumeId"]
    assert make(1)["VolumeId"] == first
    world.fails("IdempotentParameterMismatch", make, size=2)
    world.ec2.delete_volume(VolumeId=first)


def what_is_unknown_is_refused(world):
    _, subnet = world.network()
    world.fails("InvalidAMIID.NotFound", world.launch, subnet=subnet, token="u1", ImageId="ami-0123456789abcdef0")
    world.fails("InvalidKeyPair.NotFound", world.launch, subnet=subnet, token="u2", KeyName="nobody")
    world.fails("InvalidInstanceType.NotFound", world.launch, subnet=subnet, token="u3", InstanceType="x9.enormous")


def a_disk_is_as_large_as_what_its_image_holds(world):
    _, subnet = world.network()
    image = world.ec2.describe_images(Owners=["099720109477"])["Images"][0]
    assert image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 10, image
    disk = lambda size: [{"DeviceName": image["RootDeviceName"], "Ebs": {"VolumeSize": size}}]  # noqa: E731
    world.fails("InvalidBlockDeviceMapping", world.launch, subnet=subnet, token="d1", ImageId=image["ImageId"], BlockDeviceMappings=disk(8))
    made = world.launch(subnet, "d2", ImageId=image["ImageId"], BlockDeviceMappings=disk(10))["InstanceId"]
    world.ec2.terminate_instances(InstanceIds=[made])


def a_route_by_a_gateway_of_no_network_leads_nowhere(world):
    vpc, _ = world.network()
    gateways = [world.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"] for _ in range(2)]
    world.ec2.attach_internet_gateway(InternetGatewayId=gateways[0], VpcId=vpc)
    table = world.ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    route = lambda gateway: {"RouteTableId": table, "DestinationCidrBlock": "0.0.0.0/0", "GatewayId": gateway}  # noqa: E731
    states = lambda: [one["State"] for one in world.ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]]  # noqa: E731
    world.ec2.create_route(**route(gateways[0]))
    assert states() == ["active", "active"]
    world.fails("RouteAlreadyExists", world.ec2.create_route, **route(gateways[0]))
    world.ec2.replace_route(**route(gateways[1]))
    assert "blackhole" in states(), states()
    world.ec2.detach_internet_gateway(InternetGatewayId=gateways[0], VpcId=vpc)
    world.ec2.delete_route_table(RouteTableId=table)
    for gateway in gateways:
        world.ec2.delete_internet_gateway(InternetGatewayId=gateway)


def states_change_when_the_harness_says_so(world):
    _, subnet = world.network()
    world.say("/auto?on=0")
    identity = world.launch(subnet, "states")["InstanceId"]
    assert world.state(identity) == "pending"
    assert not world.ec2.get_console_output(InstanceId=identity).get("Output")
    event = [event for event in world.ask("/events") if event.get("id") == identity][-1]
    assert event["what"] == "launch" and event["keys"][0].startswith("ssh-") and event["public"] and event["address"].endswith(".4"), event
    world.say(f"/ready?id={identity}", "ssh-ed25519 AAAAKEY")
    assert world.state(identity) == "running"
    assert "ssh-ed25519 AAAAKEY" in world.ec2.get_console_output(InstanceId=identity)["Output"]
    for _ in range(2):
        world.ec2.terminate_instances(InstanceIds=[identity])
        assert world.state(identity) == "shutting-down"
    world.fails("DependencyViolation", world.ec2.delete_subnet, SubnetId=subnet)
    world.say(f"/gone?id={identity}")
    assert world.state(identity) == "terminated"
    world.ec2.terminate_instances(InstanceIds=[identity])
    world.say("/auto?on=1")
    world.ec2.delete_subnet(SubnetId=subnet)


def nothing_is_deleted_below_its_user(world):
    vpc, subnet = world.network()
    group = world.ec2.create_security_group(GroupName="used", Description="d", VpcId=vpc)["GroupId"]
    other = world.ec2.create_security_group(GroupName="refers", Description="d", VpcId=vpc)["GroupId"]
    rule = [{"IpProtocol": "tcp", "FromPort": 1, "ToPort": 2, "UserIdGroupPairs": [{"GroupId": group}]}]
    world.ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=rule)
    gateway = world.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    world.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    identity = world.launch(subnet, "deps", SecurityGroupIds=[group])["InstanceId"]
    for code, call, arguments in (
        ("DependencyViolation", world.ec2.delete_subnet, {"SubnetId": subnet}),
        ("DependencyViolation", world.ec2.delete_security_group, {"GroupId": group}),
        ("DependencyViolation", world.ec2.detach_internet_gateway, {"InternetGatewayId": gateway, "VpcId": vpc}),
        ("DependencyViolation", world.ec2.delete_vpc, {"VpcId": vpc}),
    ):
        world.fails(code, call, **arguments)
    world.ec2.terminate_instances(InstanceIds=[identity])
    world.fails("DependencyViolation", world.ec2.delete_security_group, GroupId=group)
    world.ec2.revoke_security_group_ingress(GroupId=other, IpPermissions=rule)
    world.ec2.delete_security_group(GroupId=group)
    world.ec2.delete_subnet(SubnetId=subnet)
    world.fails("DependencyViolation", world.ec2.delete_vpc, VpcId=vpc)
    world.ec2.delete_security_group(GroupId=other)
    world.fails("DependencyViolation", world.ec2.delete_vpc, VpcId=vpc)
    world.ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    world.ec2.delete_internet_gateway(InternetGatewayId=gateway)
    world.ec2.delete_vpc(VpcId=vpc)


def volumes_are_attached_once_and_in_their_zone(world):
    _, subnet = world.network()
    identity = world.launch(subnet, "volumes")["InstanceId"]
    here, there = (world.ec2.create_volume(AvailabilityZone=f"{REGION}{zone}", Size=1)["VolumeId"] for zone in "ab")
    world.fails("InvalidVolume.ZoneMismatch", world.ec2.attach_volume, VolumeId=there, InstanceId=identity, Device="/dev/sdf")
    world.ec2.attach_volume(VolumeId=here, InstanceId=identity, Device="/dev/sdf")
    world.fails("VolumeInUse", world.ec2.attach_volume, VolumeId=here, InstanceId=identity, Device="/dev/sdg")
    world.fails("VolumeInUse", world.ec2.delete_volume, VolumeId=here)
    world.ec2.detach_volume(VolumeId=here, InstanceId=identity)
    for volume in (here, there):
        world.ec2.delete_volume(VolumeId=volume)
    world.ec2.terminate_instances(InstanceIds=[identity])
    left = [row for row in world.ask("/dump") if row["kind"] == "network-interface" and row["id"] == identity]
    assert left == []


def load_balancers_are_unique_and_have_addresses(world):
    vpc, subnet = world.network()
    _, elsewhere = world.network()

    def make(subnet):
        return world.elb.create_load_balancer(Name="web", Type="network", Subnets=[subnet])["LoadBalancers"][0]["LoadBalancerArn"]

    world.say("/auto?on=0")
    balancer = make(subnet)
    assert "loadbalancer/net/web" in balancer and make(subnet) == balancer
    world.fails("DuplicateLoadBalancerName", make, subnet=elsewhere)
    state = lambda: world.elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0]["State"]["Code"]  # noqa: E731
    assert state() == "provisioning"
    world.say(f"/ready?id={balancer}")
    assert state() == "active"

    def group(port):
        return world.elb.create_target_group(Name="web", Protocol="TCP", Port=port, VpcId=vpc)["TargetGroups"][0]["TargetGroupArn"]

    target = group(80)
    assert group(80) == target
    world.fails("DuplicateTargetGroupName", group, port=81)

    def listen(port, protocol="TCP"):
        actions = [{"Type": "forward", "TargetGroupArn": target}]
        return world.elb.create_listener(LoadBalancerArn=balancer, Protocol=protocol, Port=port, DefaultActions=actions)["Listeners"][0]["ListenerArn"]

    identity = world.launch(subnet, "targets")["InstanceId"]
    register = {"TargetGroupArn": target, "Targets": [{"Id": identity, "Port": 32000}]}
    world.fails("InvalidTarget", world.elb.register_targets, **register)
    world.say(f"/ready?id={identity}", "ssh-ed25519 AAAA")
    world.elb.register_targets(**register)
    health = lambda: world.elb.describe_target_health(TargetGroupArn=target)["TargetHealthDescriptions"][0]["TargetHealth"]["State"]  # noqa: E731
    assert health() == "unused"
    listener = listen(80)
    assert listen(80) == listener
    world.fails("DuplicateListener", listen, port=80, protocol="UDP")
    assert health() == "initial"
    world.say("/health", {"targetGroup": target, "target": identity, "port": 32000, "state": "unhealthy"})
    assert health() == "unhealthy"
    [known] = [one for one in world.ask("/balancers") if one["id"] == balancer]
    assert known["listeners"][0]["targets"][0]["port"] == 32000 and known["addresses"][0]["public"], known
    interfaces = world.ec2.describe_network_interfaces(Filters=[{"Name": "description", "Values": ["ELB net/web/*"]}])["NetworkInterfaces"]
    assert len(interfaces) == 1 and interfaces[0]["Association"]["PublicIp"] == known["addresses"][0]["public"], interfaces
    world.elb.delete_load_balancer(LoadBalancerArn=balancer)
    world.ec2.terminate_instances(InstanceIds=[identity])
    world.say(f"/gone?id={identity}")
    world.fails("DependencyViolation", world.ec2.delete_subnet, SubnetId=subnet)
    world.say(f"/gone?id={balancer}")
    world.elb.delete_target_group(TargetGroupArn=target)
    world.ec2.delete_subnet(SubnetId=subnet)
    world.say("/auto?on=1")


def a_filesystem_is_in_use_while_it_has_mount_targets(world):
    _, subnet = world.network()
    system = world.efs.create_file_system(CreationToken="media")["FileSystemId"]
    world.fails("FileSystemAlreadyExists", world.efs.create_file_system, CreationToken="media")
    target = world.efs.create_mount_target(FileSystemId=system, SubnetId=subnet)
    assert {"address": target["IpAddress"], "filesystem": system, "region": REGION} in world.ask("/mounts")
    world.fails("FileSystemInUse", world.efs.delete_file_system, FileSystemId=system)
    world.fails("DependencyViolation", world.ec2.delete_subnet, SubnetId=subnet)
    world.efs.delete_mount_target(MountTargetId=target["MountTargetId"])
    world.efs.delete_file_system(FileSystemId=system)
    world.ec2.delete_subnet(SubnetId=subnet)


def filesystems_and_mount_targets_take_their_time(world):
    _, subnet = world.network()
    world.say("/auto?on=0")
    system = world.efs.create_file_system(CreationToken="slow")["FileSystemId"]
    world.fails("IncorrectFileSystemLifeCycleState", world.efs.create_mount_target, FileSystemId=system, SubnetId=subnet)
    world.say(f"/ready?id={system}")
    target = world.efs.create_mount_target(FileSystemId=system, SubnetId=subnet)["MountTargetId"]
    state = lambda: [one["LifeCycleState"] for one in world.efs.describe_mount_targets(FileSystemId=system)["MountTargets"]]  # noqa: E731
    assert state() == ["creating"]
    world.say(f"/ready?id={target}")
    assert state() == ["available"]
    for _ in range(2):
        world.efs.delete_mount_target(MountTargetId=target)
        assert state() == ["deleting"]
    world.fails("FileSystemInUse", world.efs.delete_file_system, FileSystemId=system)
    world.say(f"/gone?id={target}")
    assert state() == []
    world.efs.delete_file_system(FileSystemId=system)
    world.say("/auto?on=1")


def a_new_instance_profile_is_not_known_at_once(world):
    _, subnet = world.network()
    world.iam.create_instance_profile(InstanceProfileName="new")
    world.say("/auto?on=0")
    launch = {"call": world.launch, "subnet": subnet, "token": "profile-new", "IamInstanceProfile": {"Name": "new"}}
    world.fails("InvalidParameterValue", says="Invalid IAM Instance Profile name", **launch)
    world.iam.create_role(RoleName="new", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    world.iam.add_role_to_instance_profile(InstanceProfileName="new", RoleName="new")
    world.fails("InvalidParameterValue", says="has no associated IAM Roles", **launch)
    time.sleep(1.1)
    identity = world.launch(subnet, "profile-new", IamInstanceProfile={"Name": "new"})["InstanceId"]
    world.say("/auto?on=1")
    world.say(f"/ready?id={identity}", "ssh-ed25519 AAAA")
    world.ec2.terminate_instances(InstanceIds=[identity])
    world.iam.remove_role_from_instance_profile(InstanceProfileName="new", RoleName="new")
    world.iam.delete_instance_profile(InstanceProfileName="new")
    world.iam.delete_role(RoleName="new")
    world.fails("ValidationError", world.iam.create_role, RoleName="n" * 65, AssumeRolePolicyDocument="{}")


def parameters_are_exclusive_tagged_and_found_by_path(world):
    tags = [{"Key": "kprov-cluster-uid", "Value": "u1"}]
    wins = []

    def claim(value):
        try:
            world.ssm.put_parameter(Name="/kprov/u1/epoch/7", Value=value, Type="String", Overwrite=False, Tags=tags)
            wins.append(value)
        except world.refused as error:
            assert error.response["Error"]["Code"] == "ParameterAlreadyExists", error

    racers = [threading.Thread(target=claim, args=(f"w{number}",)) for number in range(6)]
    [one.start() for one in racers]
    [one.join() for one in racers]
    assert len(wins) == 1, wins
    world.ssm.put_parameter(Name="/kprov/u1/key", Value="secret", Type="SecureString")
    secret = lambda plain: world.ssm.get_parameter(Name="/kprov/u1/key", WithDecryption=plain)["Parameter"]["Value"]  # noqa: E731
    assert secret(True) == "secret" and secret(False) != "secret"
    found = world.ssm.get_parameters_by_path(Path="/kprov/u1", Recursive=True, WithDecryption=True)["Parameters"]
    assert {one["Name"] for one in found} == {"/kprov/u1/epoch/7", "/kprov/u1/key"}, found
    assert [one for one in world.ask("/dump") if one["kind"] == "parameter" and one["tags"] == {"kprov-cluster-uid": "u1"}]
    world.ssm.delete_parameters(Names=[one["Name"] for one in found])


def an_instance_profile_in_use_is_named_with_its_role(world):
    _, subnet = world.network()
    world.iam.create_role(RoleName="loop", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    world.iam.create_instance_profile(InstanceProfileName="loop")
    world.iam.add_role_to_instance_profile(InstanceProfileName="loop", RoleName="loop")
    world.fails("DeleteConflict", world.iam.delete_role, RoleName="loop")
    identity = world.launch(subnet, "profile", IamInstanceProfile={"Name": "loop"})["InstanceId"]
    assert [event for event in world.ask("/events") if event.get("id") == identity][0]["profile"] == "loop"
    world.ec2.terminate_instances(InstanceIds=[identity])
    world.iam.remove_role_from_instance_profile(InstanceProfileName="loop", RoleName="loop")
    world.iam.delete_instance_profile(InstanceProfileName="loop")
    world.iam.delete_role(RoleName="loop")


def a_role_may_do_what_its_policies_say(world):
    world.iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    statement = {"Effect": "Allow", "Action": ["ec2:Describe*", "elasticfilesystem:DescribeFileSystems"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    world.iam.put_role_policy(RoleName="reader", PolicyName="reads", PolicyDocument=policy)

    def client(name):
        where = f"http://127.0.0.1:{world.port}"
        return boto3.client(name, region_name=REGION, endpoint_url=where, aws_access_key_id="ASIAreader", aws_secret_access_key="s")

    client("ec2").describe_vpcs()
    client("efs").describe_file_systems()
    world.fails("UnauthorizedOperation", client("ec2").create_vpc, CidrBlock="10.0.0.0/16")
    world.fails("AccessDeniedException", client("efs").create_file_system, CreationToken="no")
    world.fails("AccessDenied", client("elbv2").describe_load_balancers)
    world.fails("AccessDeniedException", client("ssm").get_parameters_by_path, Path="/")
    assert any(one.startswith("ASIAreader ec2:CreateVpc on ") for one in world.ask("/refused"))
    world.say("/deny", "ec2:DescribeVpcs")
    world.fails("UnauthorizedOperation", world.ec2.describe_vpcs)
    world.say("/deny", "")
    world.ec2.describe_vpcs()
    world.iam.delete_role_policy(RoleName="reader", PolicyName="reads")
    world.iam.delete_role(RoleName="reader")


def conditions_bind_a_role_to_its_own_things(world):
    """Made with the tag, or carrying it; the tag only at creation; a role only handed to machines."""
    owned = {"StringEquals": {"aws:ResourceTag/owner": "me"}}
    asked = {"StringEquals": {"aws:RequestTag/owner": "me"}}
    creating = {"StringEquals": {"ec2:CreateAction": ["CreateVpc"]}}
    statements = [("ec2:CreateVpc", asked), ("ec2:CreateTags", creating), ("ec2:DeleteVpc", owned), ("ec2:Describe*", {})]
    document = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": [action], "Resource": "*", "Condition": condition} for action, condition in statements]}
    world.say("/policy?key=AKIABOUND", document)
    where = f"http://127.0.0.1:{world.port}"
    ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=where, aws_access_key_id="AKIABOUND", aws_secret_access_key="s")
    tags = lambda owner: [{"ResourceType": "vpc", "Tags": [{"Key": "owner", "Value": owner}]}]  # noqa: E731
    mine = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=tags("me"))["Vpc"]["VpcId"]
    world.fails("UnauthorizedOperation", ec2.create_vpc, CidrBlock="10.1.0.0/16", TagSpecifications=tags("you"))
    world.fails("UnauthorizedOperation", ec2.create_vpc, CidrBlock="10.1.0.0/16")
    theirs = world.ec2.create_vpc(CidrBlock="10.2.0.0/16", TagSpecifications=tags("you"))["Vpc"]["VpcId"]
    world.fails("UnauthorizedOperation", ec2.delete_vpc, VpcId=theirs)
    world.fails("UnauthorizedOperation", ec2.create_tags, Resources=[theirs], Tags=[{"Key": "owner", "Value": "me"}])
    ec2.delete_vpc(VpcId=mine)
    world.ec2.delete_vpc(VpcId=theirs)


def a_role_is_handed_out_by_those_who_may(world):
    _, subnet = world.network()
    world.iam.create_role(RoleName="boss", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    world.iam.create_instance_profile(InstanceProfileName="boss")
    world.iam.add_role_to_instance_profile(InstanceProfileName="boss", RoleName="boss")
    ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=f"http://127.0.0.1:{world.port}", aws_access_key_id="AKIAPASS",
                       aws_secret_access_key="s")
    passes = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/other",
              "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}}
    launches = {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}
    wish = {"ImageId": world.image(), "InstanceType": "t3.small", "SubnetId": subnet, "MinCount": 1, "MaxCount": 1, "IamInstanceProfile": {"Name": "boss"}}
    world.say("/policy?key=AKIAPASS", {"Statement": [launches, passes]})
    world.fails("UnauthorizedOperation", ec2.run_instances, **wish)
    passes["Resource"] = "arn:aws:iam::*:role/boss"
    world.say("/policy?key=AKIAPASS", {"Statement": [launches, passes]})
    made = ec2.run_instances(**wish)["Instances"][0]["InstanceId"]
    ec2.terminate_instances(InstanceIds=[made])
    world.iam.remove_role_from_instance_profile(InstanceProfileName="boss", RoleName="boss")
    world.iam.delete_instance_profile(InstanceProfileName="boss")
    world.iam.delete_role(RoleName="boss")


def a_load_balancer_with_groups_asks_for_those_of_the_network(world):
    vpc, subnet = world.network()
    group = world.ec2.create_security_group(GroupName="outer", Description="d", VpcId=vpc)["GroupId"]
    elb = boto3.client("elbv2", region_name=REGION, endpoint_url=f"http://127.0.0.1:{world.port}", aws_access_key_id="AKIAGROUPS",
                       aws_secret_access_key="s")
    wish = {"Name": "grouped", "Type": "network", "Subnets": [subnet]}
    may = lambda *actions: world.say("/policy?key=AKIAGROUPS", {"Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]})  # noqa: E731
    may("elasticloadbalancing:*")
    world.fails("AccessDenied", elb.create_load_balancer, SecurityGroups=[group], **wish)
    may("elasticloadbalancing:*", "ec2:GetSecurityGroupsForVpc")
    balancer = elb.create_load_balancer(SecurityGroups=[group], **wish)["LoadBalancers"][0]["LoadBalancerArn"]
    elb.delete_load_balancer(LoadBalancerArn=balancer)
    world.ec2.delete_security_group(GroupId=group)


def nobodies_and_limits_are_answered_as_aws_does(world):
    where = f"http://127.0.0.1:{world.port}"
    for key, codes in {"AKIAWRONG": ["AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"],
                       "ASIAEXPIRED": ["RequestExpired", "ExpiredToken", "ExpiredTokenException"]}.items():
        client = lambda name: boto3.client(name, region_name=REGION, endpoint_url=where, aws_access_key_id=key, aws_secret_access_key="s")  # noqa: B023,E731
        calls = [client("ec2").describe_vpcs, client("elbv2").describe_load_balancers, client("efs").describe_file_systems]
        for code, call in zip(codes, calls):
            world.fails(code, call)
    world.say("/stop", {"action": "CreateVpc", "status": 400, "code": "VpcLimitExceeded", "message": "The maximum number of VPCs has been reached."})
    world.fails("DryRunOperation", world.ec2.create_vpc, CidrBlock="10.0.0.0/16", DryRun=True)
    world.fails("VpcLimitExceeded", world.ec2.create_vpc, CidrBlock="10.0.0.0/16")
    world.say("/stop", {"action": "CreateVpc", "code": ""})
    world.ec2.delete_vpc(VpcId=world.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"])


def a_new_thing_is_shown_after_a_while(world):
    world.say("/lag?seconds=0.5")
    vpc = world.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    world.fails("InvalidVpcID.NotFound", world.ec2.describe_vpcs, VpcIds=[vpc])
    world.fails("InvalidVpcID.NotFound", world.ec2.create_subnet, VpcId=vpc, CidrBlock="10.9.1.0/24")
    shown = lambda: vpc in [one["VpcId"] for one in world.ec2.describe_vpcs()["Vpcs"]]  # noqa: E731
    assert not shown()
    time.sleep(0.6)
    assert shown()
    subnet = world.ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24")["Subnet"]["SubnetId"]
    assert subnet not in [one["SubnetId"] for one in world.ec2.describe_subnets()["Subnets"]]
    world.say("/lag?seconds=0")
    assert subnet in [one["SubnetId"] for one in world.ec2.describe_subnets()["Subnets"]]
    world.ec2.delete_subnet(SubnetId=subnet)
    world.ec2.delete_vpc(VpcId=vpc)


def decoys_are_made_and_seen(world):
    before = len(world.ask("/dump"))
    world.say("/decoys", {"uid": "0b1c", "name": "shop"})
    rows = world.ask("/dump")
    assert len(rows) >= before + 100
    assert [row["detail"] for row in rows if row["kind"] == "security-group"][0], "rules are seen"


TESTS = [
    images_of_debian_and_ubuntu, a_client_token_makes_one_instance, a_client_token_makes_one_volume, what_is_unknown_is_refused,
    a_disk_is_as_large_as_what_its_image_holds, a_route_by_a_gateway_of_no_network_leads_nowhere,
    states_change_when_the_harness_says_so, nothing_is_deleted_below_its_user, volumes_are_attached_once_and_in_their_zone,
    load_balancers_are_unique_and_have_addresses, a_filesystem_is_in_use_while_it_has_mount_targets,
    filesystems_and_mount_targets_take_their_time, a_new_instance_profile_is_not_known_at_once,
    parameters_are_exclusive_tagged_and_found_by_path, an_instance_profile_in_use_is_named_with_its_role, a_role_may_do_what_its_policies_say,
    conditions_bind_a_role_to_its_own_things, a_role_is_handed_out_by_those_who_may, a_load_balancer_with_groups_asks_for_those_of_the_network, nobodies_and_limits_are_answered_as_aws_does,
    a_new_thing_is_shown_after_a_while, decoys_are_made_and_seen,
]


def main(strict, refused):
    port, control = strict.serve(0, 0, True)
    world = World(port, control, refused)
    world.ec2.create_key_pair(KeyName="self", KeyType="ed25519")
    failed = 0
    for test in TESTS:
        begin = time.monotonic()
        try:
            test(world)
            print(f"ok {test.__name__} {time.monotonic() - begin:.2f} s", flush=True)
        except Exception as error:
            failed += 1
            import traceback

            traceback.print_exc()
            print(f"FAILED {test.__name__}: {error!r}", flush=True)
        world.say("/auto?on=1")
    return 1 if failed else 0
