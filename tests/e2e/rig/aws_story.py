"""A plain AWS client's story, for the rig's own tests: aws_story.py ENDPOINT up|tokens NAME|down"""

import sys
import time

import boto3
from botocore.config import Config
from botocore.parsers import ResponseParserError

REGION = "eu-west-1"
endpoint, verb, *more = sys.argv[1:]
config = Config(retries={"mode": "standard", "max_attempts": 4}, connect_timeout=2, read_timeout=2)
ec2, elb, efs, iam = (
    boto3.client(name, region_name=REGION, endpoint_url=endpoint, config=config, aws_access_key_id="story", aws_secret_access_key="s")
    for name in ("ec2", "elbv2", "efs", "iam"))
TRUST = '{"Version": "2012-10-17", "Statement": []}'
DATA = """#cloud-config
write_files:
- {path: /srv/index.html, content: it serves}
runcmd:
- busybox httpd -p 32000 -h /srv
"""


def wait(what, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def network():
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.1.0/24", AvailabilityZone=f"{REGION}a")["Subnet"]["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=subnet, MapPublicIpOnLaunch={"Value": True})
    return vpc, subnet


def launch(subnet, token, **arguments):
    image = ec2.describe_images(Owners=["136693071363"])["Images"][0]["ImageId"]
    wish = {"ImageId": image, "InstanceType": "t3.small", "KeyName": "story", "SubnetId": subnet, "MinCount": 1, "MaxCount": 1}
    return ec2.run_instances(**wish, ClientToken=token, **arguments)["Instances"][0]["InstanceId"]


if verb == "up":
    vpc, subnet = network()
    ec2.create_key_pair(KeyName="story", KeyType="ed25519")
    iam.create_role(RoleName="story", AssumeRolePolicyDocument=TRUST)
    iam.create_instance_profile(InstanceProfileName="story")
    iam.add_role_to_instance_profile(InstanceProfileName="story", RoleName="story")
    time.sleep(1.1)
    instance = launch(subnet, "story", UserData=DATA, IamInstanceProfile={"Name": "story"})
    running = lambda: [one for one in ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"] if one["State"]["Name"] == "running"]  # noqa: E731
    machine = wait(running)[0]
    assert "ssh-ed25519" in ec2.get_console_output(InstanceId=instance)["Output"]
    balancer = elb.create_load_balancer(Name="story", Type="network", Subnets=[subnet])["LoadBalancers"][0]["LoadBalancerArn"]
    group = elb.create_target_group(Name="story", Protocol="TCP", Port=32000, VpcId=vpc)["TargetGroups"][0]["TargetGroupArn"]
    elb.register_targets(TargetGroupArn=group, Targets=[{"Id": instance}])
    elb.create_listener(LoadBalancerArn=balancer, Protocol="TCP", Port=80, DefaultActions=[{"Type": "forward", "TargetGroupArn": group}])
    health = lambda: elb.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"][0]["TargetHealth"]["State"]  # noqa: E731
    assert health() == "initial"
    wait(lambda: health() == "healthy")
    wait(lambda: elb.describe_load_balancers(LoadBalancerArns=[balancer])["LoadBalancers"][0]["State"]["Code"] == "active")
    interface = ec2.describe_network_interfaces(Filters=[{"Name": "description", "Values": ["ELB net/story/*"]}])["NetworkInterfaces"][0]
    system = efs.create_file_system(CreationToken="story")["FileSystemId"]
    wait(lambda: efs.describe_file_systems(FileSystemId=system)["FileSystems"][0]["LifeCycleState"] == "available")
    target = efs.create_mount_target(FileSystemId=system, SubnetId=subnet)
    print(instance, machine["PrivateIpAddress"], machine["PublicIpAddress"], interface["Association"]["PublicIp"], target["IpAddress"])
elif verb == "tokens":
    subnet = ec2.describe_subnets(Filters=[{"Name": "cidr-block", "Values": ["10.7.1.0/24"]}])["Subnets"][0]["SubnetId"]
    try:
        print(launch(subnet, more[0]))
    except ResponseParserError:
        # This client does not ask again by itself when an answer is cut off.
        print(launch(subnet, more[0]))
elif verb == "down":
    for balancer in elb.describe_load_balancers()["LoadBalancers"]:
        elb.delete_load_balancer(LoadBalancerArn=balancer["LoadBalancerArn"])
    for group in elb.describe_target_groups()["TargetGroups"]:
        elb.delete_target_group(TargetGroupArn=group["TargetGroupArn"])
    for target in efs.describe_mount_targets(FileSystemId=efs.describe_file_systems()["FileSystems"][0]["FileSystemId"])["MountTargets"]:
        efs.delete_mount_target(MountTargetId=target["MountTargetId"])
        wait(lambda: not efs.describe_mount_targets(FileSystemId=target["FileSystemId"])["MountTargets"])
        efs.delete_file_system(FileSystemId=target["FileSystemId"])
    live = lambda: [one["InstanceId"] for many in ec2.describe_instances()["Reservations"] for one in many["Instances"] if one["State"]["Name"] != "terminated"]  # noqa: E731
    ec2.terminate_instances(InstanceIds=live())
    wait(lambda: not live())
    iam.remove_role_from_instance_profile(InstanceProfileName="story", RoleName="story")
    iam.delete_instance_profile(InstanceProfileName="story")
    iam.delete_role(RoleName="story")
    ec2.delete_key_pair(KeyName="story")
    subnet = ec2.describe_subnets(Filters=[{"Name": "cidr-block", "Values": ["10.7.1.0/24"]}])["Subnets"][0]
    wait(lambda: not ec2.describe_network_interfaces(Filters=[{"Name": "subnet-id", "Values": [subnet["SubnetId"]]}])["NetworkInterfaces"])
    ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    ec2.delete_vpc(VpcId=subnet["VpcId"])
