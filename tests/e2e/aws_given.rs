//! AWS where something is given: a network that is there already, an image, endpoints. What is wrong with it is said before anything is
//! made, and nothing of it is changed.

use crate::aws::check_stopped;
use crate::aws_cluster::{instance, instances, is_loop, ours, serves};
use crate::harness::{Operated, json, text};
use crate::rig::aws::{Aws, REGION};
use crate::rig::operator::Operator;
use crate::rig::proxy::Entry;
use std::time::Duration;

/// Where nobody listens.
const NOWHERE: &str = "http://198.18.0.1:9";

/// A network somebody else made, and things of theirs in it.
struct Room<'a> {
    rig: &'a Aws,
    vpc: String,
    subnets: [String; 2],
}

impl<'a> Room<'a> {
    fn public(rig: &'a Aws) -> Room<'a> {
        let room = Room::closed(rig);
        let gateway = room.ask("CreateInternetGateway", "internetGatewayId");
        room.ask(&format!("AttachInternetGateway&InternetGatewayId={gateway}&VpcId={}", room.vpc), "");
        room.open(&format!("GatewayId={gateway}"));
        room
    }

    /// Whose subnets lead out by a NAT gateway.
    fn private(rig: &'a Aws) -> Room<'a> {
        let room = Room::closed(rig);
        let address = room.ask("AllocateAddress&Domain=vpc", "allocationId");
        let outside = room.subnet(&room.vpc, "c", 32);
        let nat = room.ask(&format!("CreateNatGateway&SubnetId={outside}&AllocationId={address}"), "natGatewayId");
        room.open(&format!("NatGatewayId={nat}"));
        room
    }

    fn closed(rig: &'a Aws) -> Room<'a> {
        let mut room = Room { rig, vpc: String::new(), subnets: Default::default() };
        room.vpc = room.ask("CreateVpc&CidrBlock=10.60.0.0/16", "vpcId");
        room.ask(&format!("ModifyVpcAttribute&VpcId={}&EnableDnsHostnames.Value=true", room.vpc), "");
        room.subnets = ["a", "b"].map(|zone| room.subnet(&room.vpc, zone, if zone == "a" { 0 } else { 16 }));
        room.ask(&format!("CreateSecurityGroup&GroupName=theirs&GroupDescription=theirs&VpcId={}", room.vpc), "groupId");
        room.ask(&format!("CreateNetworkInterface&SubnetId={}", room.subnets[0]), "networkInterfaceId");
        room
    }

    /// A way out by the network's main table.
    fn open(&self, target: &str) {
        let table = self.ask(&format!("DescribeRouteTables&Filter.1.Name=vpc-id&Filter.1.Value.1={}", self.vpc), "routeTableId");
        self.ask(&format!("CreateRoute&RouteTableId={table}&DestinationCidrBlock=0.0.0.0/0&{target}"), "");
    }

    /// A call of EC2, and the first such thing in its answer.
    fn ask(&self, form: &str, tag: &str) -> String {
        let answer = self.rig.query("ec2", &format!("Version=2016-11-15&Action={form}"));
        let inside =
            answer.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once("</")).map(|(inside, _)| inside.to_string());
        if tag.is_empty() { answer } else { inside.unwrap_or_else(|| panic!("no {tag} in {answer}")) }
    }

    fn subnet(&self, vpc: &str, zone: &str, third: u8) -> String {
        self.ask(&format!("CreateSubnet&VpcId={vpc}&CidrBlock=10.60.{third}.0/20&AvailabilityZone={REGION}{zone}"), "subnetId")
    }

    fn section(&self) -> String {
        format!("vpc: {}, subnets: [{}]", self.vpc, self.subnets.join(", "))
    }
}

/// The example with this in its own section for AWS.
fn example(operator: &Operator, section: &str) -> String {
    let path = operator.example();
    let text = std::fs::read_to_string(&path).expect("the blueprint");
    let changed = text.replace("    ssh:\n", &format!("    aws: {{{section}}}\n    ssh:\n"));
    assert_ne!(changed, text);
    std::fs::write(&path, changed).expect("the blueprint");
    path.display().to_string()
}

/// Its subnets lead out by NAT: everything has addresses of the network only.
#[test]
fn a_cluster_in_a_given_network_serves_repairs_itself_and_leaves_the_network_as_it_was() {
    let rig = Aws::start();
    let room = Room::private(&rig);
    rig.decoys("00000000-0000-4000-8000-000000000000", "shop");
    // What the blueprint says of endpoints comes before the environment, also for the loop inside.
    let operator = rig.operator_told("AKIAOPERATOR", &[("AWS_ENDPOINT_URL", NOWHERE), ("AWS_ENDPOINT_URL_EC2", NOWHERE)]);
    let endpoint = rig.endpoint();
    let file = example(&operator, &format!("endpoint: \"{endpoint}\", image: ubuntu-24.04, {}", room.section()));
    let before = rig.dump();

    rig.policy("AKIAOPERATOR", &operator.ok(&["iam", "aws", &file]));
    let up = json(&operator.ok(&["up", &file, "--yes", "-o", "json"]));
    serves(&operator, &up);
    let made = ours(&rig, &before);
    let kinds = ["vpc", "subnet", "internet-gateway", "route-table"];
    assert!(made.iter().all(|row| !kinds.contains(&row.kind.as_str())), "{made:?}");
    let again = operator.kprov(&["plan", &file, "--exit-code"]);
    assert_eq!(again.status.code(), Some(0), "plan after up is empty: {}", text(&again));

    // A worker that is lost is made again in the given network, by the loop and its role.
    rig.proxy.clear();
    rig.terminate(&instance(&rig, "machine/worker-1"));
    let launched = |entry: &Entry| entry.call.action == "RunInstances" && is_loop(entry) && entry.took_effect();
    assert!(rig.proxy.wait(Duration::from_secs(60), |ledger| ledger.iter().any(launched)), "the loop made no machine");
    operator.ok(&["up", &file, "--yes"]);
    for machine in instances(&rig) {
        let described = room.ask(&format!("DescribeInstances&InstanceId.1={machine}"), "");
        assert!(described.contains("<privateIpAddress>10.60.") && !described.contains("<publicIp>"), "{described}");
    }

    let abroad = example(&operator, &format!("endpoint: \"{endpoint}\", region: us-east-1, {}", room.section()));
    let moving = text(&operator.kprov(&["plan", &abroad]));
    assert!(moving.contains("in region us-east-1 of account") && moving.contains("it is in region eu-west-1 of"), "{moving}");
    let elsewhere = example(&operator, &format!("endpoint: \"{endpoint}\""));
    let moving = text(&operator.kprov(&["plan", &elsewhere]));
    assert!(moving.contains("could not move the cluster from vpc-"), "{moving}");

    rig.policy("AKIAOPERATOR", &operator.ok(&["iam", "aws", operator.name]));
    operator.ok(&["down", operator.name, "--yes"]);
    assert_eq!(rig.refused(), Vec::<String>::new(), "what is done is allowed");
    assert_eq!(rig.dump(), before, "nothing is left, and what was given is untouched");
}

#[test]
fn what_is_wrong_with_what_is_given_is_said_before_the_first_create() {
    let rig = Aws::without_machines();
    let room = Room::public(&rig);
    let operator = rig.operator();
    let other = room.ask("CreateVpc&CidrBlock=10.60.0.0/16", "vpcId");
    let theirs = room.subnet(&other, "c", 0);
    let lonely = room.subnet(&room.vpc, "c", 32);
    let table = room.ask(&format!("CreateRouteTable&VpcId={}", room.vpc), "routeTableId");
    room.ask(&format!("AssociateRouteTable&RouteTableId={table}&SubnetId={lonely}"), "");
    let (vpc, first) = (&room.vpc, &room.subnets[0]);
    let nobody = "0000000000000000a";
    let check = |section: &str, parts: &[&str]| check_stopped(&rig, &operator, &example(&operator, section), parts);
    check(&format!("subnets: [{first}]"), &["subnets are given without their network", "add `vpc: vpc-...`"]);
    check(&format!("vpc: vpc-{nobody}, subnets: [{first}]"), &["could not find network vpc-0", "aws ec2 describe-vpcs"]);
    let several = format!("vpc: {vpc}, subnets: [{theirs}, {lonely}, subnet-{nobody}]");
    check(&several, &[&format!("it is in {other}, not in {vpc}"), "no route of it leads out", "could not find subnet subnet-0"]);
    check(&format!("image: ami-{nobody}"), &["could not find image ami-0", "spec.providers.aws.image names another"]);
    check("image: \"self/golden-*\"", &["could not find image self/golden-*"]);
    rig.deny("ec2:ImportKeyPair ec2:CreateSecurityGroup");
    check(&room.section(), &["ec2:ImportKeyPair", "ec2:CreateSecurityGroup", "kprov iam aws"]);
    rig.deny("");
    room.ask(&format!("ModifyVpcAttribute&VpcId={vpc}&EnableDnsHostnames.Value=false"), "");
    check(&room.section(), &["answers no names", "--enable-dns-hostnames"]);

    // Each service may have an endpoint of its own, as every tool for AWS reads it.
    let endpoint = rig.endpoint();
    let services = ["EC2", "ELASTIC_LOAD_BALANCING_V2", "EFS", "IAM", "SSM", "STS"].map(|service| format!("AWS_ENDPOINT_URL_{service}"));
    let mut endpoints: Vec<(&str, &str)> = services.iter().map(|name| (name.as_str(), endpoint.as_str())).collect();
    endpoints.push(("AWS_ENDPOINT_URL", NOWHERE));
    let told = rig.operator_told("AKIAOPERATOR", &endpoints);
    let plan = told.kprov(&["plan", &told.example().display().to_string(), "--exit-code"]);
    assert_eq!(plan.status.code(), Some(2), "{}", text(&plan));
}
