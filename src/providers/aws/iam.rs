//! What kprov needs to be allowed: the operator's policy and the loop's. Pure; `kprov iam aws` prints both.
//!
//! Whatever has an effect is bound to kprov's own tag or name: the operator's to any cluster of kprov's, the loop's to its own cluster.
//! Tags are given at creation only, so nobody can make a foreign thing kprov's and then delete it.

use super::names::{CONTROL_PLANE, identity, identity_start, parameters};
use crate::blueprint::providers::Aws as Section;
use crate::engine::Cluster;
use crate::providers::ownership::{CLUSTER_NAME, CLUSTER_UID};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Only machines take the role.
pub const TRUST: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;

/// Looking: these take no resource, or answer for all. The last four are asked by load balancers and filesystems in our name.
const LOOK: [&str; 24] = [
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstances",
    "ec2:DescribeInternetGateways",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVolumes",
    "ec2:DescribeVpcAttribute",
    "ec2:DescribeVpcs",
    "elasticfilesystem:DescribeFileSystems",
    "elasticfilesystem:DescribeMountTargets",
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeLoadBalancers",
    "elasticloadbalancing:DescribeTags",
    "elasticloadbalancing:DescribeTargetGroups",
    "elasticloadbalancing:DescribeTargetHealth",
    "sts:GetCallerIdentity",
    "ec2:DescribeAccountAttributes",
    "ec2:DescribeAddresses",
    "ec2:DescribeNetworkInterfaces",
    "ec2:GetSecurityGroupsForVpc",
];

/// What is made with the tag in the request: by the loop, and by the operator beside that.
const MAKE: [&str; 4] = [
    "ec2:RunInstances",
    "elasticfilesystem:CreateFileSystem",
    "elasticloadbalancing:CreateLoadBalancer",
    "elasticloadbalancing:CreateTargetGroup",
];
const FOUND: [&str; 6] = [
    "ec2:CreateInternetGateway",
    "ec2:CreateRouteTable",
    "ec2:CreateSecurityGroup",
    "ec2:CreateSubnet",
    "ec2:CreateVpc",
    "ec2:ImportKeyPair",
];
/// What the former are made on or from, where that is a thing of ours, too.
const MADE_ON: [&str; 5] =
    ["ec2:CreateNetworkInterface", "ec2:CreateRouteTable", "ec2:CreateSecurityGroup", "ec2:CreateSubnet", "ec2:RunInstances"];

/// What is done to things that carry the tag.
const KEEP: [&str; 15] = [
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:CreateTags",
    "ec2:GetConsoleOutput",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:StartInstances",
    "ec2:TerminateInstances",
    "elasticfilesystem:CreateMountTarget",
    "elasticfilesystem:DeleteFileSystem",
    "elasticfilesystem:DeleteMountTarget",
    "elasticloadbalancing:CreateListener",
    "elasticloadbalancing:DeleteListener",
    "elasticloadbalancing:DeleteLoadBalancer",
    "elasticloadbalancing:DeleteTargetGroup",
    "elasticloadbalancing:DeregisterTargets",
    "elasticloadbalancing:RegisterTargets",
];
const FOUNDED: [&str; 13] = [
    "ec2:AssociateRouteTable",
    "ec2:AttachInternetGateway",
    "ec2:CreateRoute",
    "ec2:DeleteInternetGateway",
    "ec2:DeleteKeyPair",
    "ec2:DeleteRouteTable",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteSubnet",
    "ec2:DeleteVpc",
    "ec2:DetachInternetGateway",
    "ec2:DisassociateRouteTable",
    "ec2:ModifyVpcAttribute",
    "ec2:ReplaceRoute",
];
/// What in those is about networks of our own.
const NETWORK_ONLY: [&str; 4] = ["Vpc", "Subnet", "InternetGateway", "Route"];
/// Looked for by name: there is one of each.
const IDENTITY: [&str; 3] = ["iam:GetInstanceProfile", "iam:GetRole", "iam:GetRolePolicy"];
const IDENTITY_MADE: [&str; 10] = [
    "iam:AddRoleToInstanceProfile",
    "iam:CreateInstanceProfile",
    "iam:CreateRole",
    "iam:DeleteInstanceProfile",
    "iam:DeleteRole",
    "iam:DeleteRolePolicy",
    "iam:PutRolePolicy",
    "iam:RemoveRoleFromInstanceProfile",
    "iam:TagInstanceProfile",
    "iam:TagRole",
];
/// The writers' records and the kept key.
const RECORDS: [&str; 6] = [
    "ssm:AddTagsToResource",
    "ssm:DeleteParameter",
    "ssm:GetParameter",
    "ssm:GetParametersByPath",
    "ssm:ListTagsForResource",
    "ssm:PutParameter",
];
/// AWS makes these roles of its own at an account's first load balancer or filesystem.
const SERVICES: [&str; 2] = ["elasticfilesystem.amazonaws.com", "elasticloadbalancing.amazonaws.com"];

/// Which clusters an operator's policy is about.
#[derive(Debug)]
pub enum Whose {
    All,
    /// One that is not there yet, by its name: others of this name are meant, too.
    Named(String),
    One(Cluster),
}

/// `region` is `*` where any is meant: then the account is one of ordinary AWS, since other partitions have another word for `aws`.
pub fn operator_policy(whose: &Whose, region: &str, section: &Section) -> String {
    let partition = partition(region);
    let bound = |place: &str| match whose {
        Whose::All => json!({"Null": {format!("aws:{place}/{CLUSTER_UID}"): "false"}}),
        Whose::Named(name) => json!({"StringEquals": {format!("aws:{place}/{CLUSTER_NAME}"): name}}),
        Whose::One(cluster) => json!({"StringEquals": {format!("aws:{place}/{CLUSTER_UID}"): cluster.uid}}),
    };
    let (named, paths) = match whose {
        Whose::All => ("kprov-*".into(), vec!["/kprov".into(), "/kprov/*".into()]),
        // Twelve letters of the uid, which nobody knows yet.
        Whose::Named(name) => {
            (format!("kprov-{}-????????????-{CONTROL_PLANE}", identity_start(name)), vec!["/kprov".into(), "/kprov/*".into()])
        }
        Whose::One(cluster) => (identity(cluster), vec![format!("{}/*", parameters(cluster))]),
    };
    let records: Vec<String> = paths.iter().map(|path: &String| format!("arn:{partition}:ssm:{region}:*:parameter{path}")).collect();
    let arn = |what: &str| format!("arn:{partition}:iam::*:{what}/{named}");
    let is_of_network = |action: &&str| NETWORK_ONLY.iter().any(|part| action.contains(part));
    let own_network = section.vpc.is_none();
    let some =
        |actions: &[&'static str]| actions.iter().copied().filter(|action| own_network || !is_of_network(action)).collect::<Vec<_>>();
    let (make, keep) = ([&MAKE[..], &some(&FOUND)].concat(), [&KEEP[..], &some(&FOUNDED)].concat());
    let statements = [
        common(partition, &bound("ResourceTag"), &bound("RequestTag"), &make, &keep),
        given(partition, section),
        vec![
            allow(&RECORDS, json!(records), Value::Null),
            allow(&[&IDENTITY[..], &IDENTITY_MADE[..]].concat(), json!([arn("role"), arn("instance-profile")]), Value::Null),
            pass_role(&arn("role")),
        ],
    ];
    serde_json::to_string_pretty(&policy(statements.concat())).expect("a policy is plain data")
}

/// A given network has nobody's tag: it is named itself.
fn given(partition: &str, section: &Section) -> Vec<Value> {
    let Some(vpc) = &section.vpc else { return Vec::new() };
    let subnets = section.subnets.iter().map(|subnet| format!("subnet/{subnet}"));
    let places: Vec<String> =
        std::iter::once(format!("vpc/{vpc}")).chain(subnets).map(|place| format!("arn:{partition}:ec2:*:*:{place}")).collect();
    vec![allow(&["ec2:CreateNetworkInterface", "ec2:CreateSecurityGroup", "ec2:RunInstances"], json!(places), Value::Null)]
}

pub fn loop_policy(cluster: &Cluster, region: &str, section: &Section) -> String {
    let partition = partition(region);
    let own = |place: &str| json!({"StringEquals": {format!("aws:{place}/{CLUSTER_UID}"): cluster.uid}});
    let arn = |what: &str| format!("arn:{partition}:iam::*:{what}/{}", identity(cluster));
    let statements = [
        common(partition, &own("ResourceTag"), &own("RequestTag"), &MAKE, &KEEP),
        given(partition, section),
        vec![
            allow(&RECORDS, json!(format!("arn:{partition}:ssm:{region}:*:parameter{}/*", parameters(cluster))), Value::Null),
            allow(&IDENTITY, json!([arn("role"), arn("instance-profile")]), Value::Null),
            // A control plane that was lost gets the same role again, and no machine gets another.
            pass_role(&arn("role")),
        ],
    ];
    policy(statements.concat()).to_string()
}

/// What the operator's and the loop's have in common, each with its own words for "ours".
fn common(partition: &str, ours: &Value, asked: &Value, make: &[&str], keep: &[&str]) -> Vec<Value> {
    let ec2 = |types: &[&str]| json!(types.iter().map(|kind| format!("arn:{partition}:ec2:*:*:{kind}/*")).collect::<Vec<_>>());
    let at_creation = |service: &str| {
        let of_service = |action: &&str| action.split_once(':').is_some_and(|(its, name)| its == service && made_by(name));
        let makers: BTreeSet<&str> = make.iter().chain(keep).filter(|action| of_service(action)).map(|name| after_colon(name)).collect();
        json!({"StringEquals": {format!("{service}:CreateAction"): makers}})
    };
    let (in_ec2, elsewhere): (Vec<&str>, Vec<&str>) = make.iter().partition(|action| action.starts_with("ec2:"));
    let created = ["instance", "volume", "vpc", "subnet", "internet-gateway", "route-table", "security-group", "key-pair"];
    vec![
        allow(&LOOK, json!("*"), Value::Null),
        allow(&in_ec2, ec2(&created), asked.clone()),
        allow(&elsewhere, json!("*"), asked.clone()),
        allow(&MADE_ON, ec2(&["vpc", "subnet", "security-group", "key-pair"]), ours.clone()),
        // Interfaces come with machines and mount targets, without tags; images are Debian's.
        allow(&["ec2:RunInstances", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface"], ec2(&["network-interface"]), Value::Null),
        allow(&["ec2:RunInstances"], ec2(&["image"]), Value::Null),
        allow(&["ec2:CreateTags"], json!("*"), at_creation("ec2")),
        allow(&["elasticloadbalancing:AddTags"], json!("*"), at_creation("elasticloadbalancing")),
        allow(&["elasticfilesystem:TagResource"], json!("*"), at_creation("elasticfilesystem")),
        allow(keep, json!("*"), ours.clone()),
        allow(&["iam:CreateServiceLinkedRole"], json!("*"), json!({"StringEquals": {"iam:AWSServiceName": SERVICES}})),
    ]
}

/// What may be given tags at its creation; mount targets have none.
fn made_by(name: &str) -> bool {
    ["Create", "Run", "Import"].iter().any(|start| name.starts_with(start))
        && !["CreateTags", "CreateRoute", "CreateMountTarget"].contains(&name)
}

fn after_colon(action: &str) -> &str {
    action.split_once(':').map_or(action, |(_, name)| name)
}

fn pass_role(role: &str) -> Value {
    allow(&["iam:PassRole"], json!(role), json!({"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}))
}

fn allow(actions: &[&str], resource: Value, condition: Value) -> Value {
    let mut actions = actions.to_vec();
    actions.sort_unstable();
    let mut statement = json!({"Effect": "Allow", "Action": actions, "Resource": resource});
    if !condition.is_null() {
        statement["Condition"] = condition;
    }
    statement
}

fn policy(statements: Vec<Value>) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}

/// The second word of names there.
fn partition(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Which policy a role has, by its meaning: AWS may write it with other spaces.
pub fn digest_of(policy: &str) -> String {
    let value: Value = serde_json::from_str(policy).unwrap_or_default();
    hex::encode(&Sha256::digest(value.to_string())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AWS counts no spaces: a managed policy has room for 6144 letters.
    const LONGEST: usize = 6144;

    fn loops() -> Value {
        let cluster = Cluster { name: "shop".into(), uid: "0b5e1d3c-aaaa-4bbb-8ccc-000000000000".into() };
        serde_json::from_str(&loop_policy(&cluster, "eu-west-1", &Section::default())).expect("JSON")
    }

    fn operators() -> Value {
        operators_of(&Whose::All, &Section::default())
    }

    fn operators_of(whose: &Whose, section: &Section) -> Value {
        serde_json::from_str(&operator_policy(whose, "*", section)).expect("JSON")
    }

    fn room() -> Section {
        Section { vpc: Some("vpc-1".into()), subnets: vec!["subnet-1".into()], ..Section::default() }
    }

    #[test]
    fn in_a_given_network_nothing_may_be_done_to_networks_and_only_this_one_is_used() {
        let text = operators_of(&Whose::Named("shop".into()), &room()).to_string();
        for part in [
            "CreateVpc\"",
            "DeleteVpc",
            "ModifyVpcAttribute",
            "CreateSubnet\",\"ec2:CreateVpc",
            "AttachInternetGateway",
            "DeleteRoute",
            "ReplaceRoute",
        ] {
            assert!(!text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("arn:aws:ec2:*:*:vpc/vpc-1") && text.contains("arn:aws:ec2:*:*:subnet/subnet-1"), "{text}");
        let cluster = Cluster { name: "shop".into(), uid: "u-1".into() };
        assert!(loop_policy(&cluster, "eu-west-1", &room()).contains("subnet/subnet-1"));
        assert_ne!(loop_policy(&cluster, "eu-west-1", &room()), loop_policy(&cluster, "eu-west-1", &Section::default()));
    }

    #[test]
    fn a_policy_for_one_cluster_reaches_no_other() {
        let named = operators_of(&Whose::Named("shop".into()), &Section::default()).to_string();
        assert!(
            named.contains(r#""aws:ResourceTag/kprov-cluster-name":"shop""#)
                && named.contains("role/kprov-shop-????????????-control-plane")
        );
        assert!(!named.contains("role/kprov-*"), "{named}");
        let cluster = Cluster { name: "shop".into(), uid: "0b5e1d3c-aaaa-4bbb-8ccc-000000000000".into() };
        let one = operators_of(&Whose::One(cluster), &Section::default()).to_string();
        assert!(one.contains(r#""aws:RequestTag/kprov-cluster-uid":"0b5e1d3c-aaaa"#) && !one.contains("parameter/kprov/*"), "{one}");
    }

    #[test]
    fn a_long_names_policy_is_about_the_role_that_is_made() {
        let cluster = Cluster { name: "a".repeat(40), uid: "0b5e1d3c-aaaa-4bbb-8ccc-000000000000".into() };
        let named = operators_of(&Whose::Named(cluster.name.clone()), &Section::default()).to_string();
        let pattern = identity(&cluster).replace("0b5e1d3caaaa", "????????????");
        assert!(named.contains(&format!("role/{pattern}\"")), "{named}");
        assert!(loop_policy(&cluster, "eu-west-1", &Section::default()).contains(&format!("role/{}\"", identity(&cluster))));
    }

    #[test]
    fn load_balancers_may_be_given_groups() {
        for policy in [loops(), operators()] {
            assert!(policy.to_string().contains("ec2:GetSecurityGroupsForVpc"), "{policy}");
        }
    }

    #[test]
    fn the_loop_hands_out_its_own_role_and_makes_none() {
        let text = loops().to_string();
        assert!(!text.contains("iam:Put") && !text.contains("iam:CreateRole") && !text.contains("iam:Delete"), "{text}");
        let statements = loops()["Statement"].as_array().expect("statements").clone();
        let pass = statements.iter().find(|one| one["Action"] == json!(["iam:PassRole"])).expect("it launches control planes");
        assert_eq!(pass["Resource"], "arn:aws:iam::*:role/kprov-shop-0b5e1d3caaaa-control-plane");
    }

    #[test]
    fn what_has_an_effect_on_everything_is_bound_by_a_condition() {
        for (whose, policy) in [("loop", loops()), ("operator", operators())] {
            for statement in policy["Statement"].as_array().expect("statements") {
                let looks = |action: &Value| action.as_str().is_some_and(|name| name.contains(":Describe") || name.contains(":Get"));
                let only_looks = statement["Action"].as_array().expect("actions").iter().all(looks);
                assert!(only_looks || statement["Resource"] != "*" || statement["Condition"].is_object(), "{whose}: {statement}");
            }
        }
    }

    #[test]
    fn policies_fit_and_the_loops_changes_with_its_cluster_alone() {
        assert!(operators().to_string().len() <= LONGEST, "{}", operators().to_string().len());
        assert!(loops().to_string().len() <= LONGEST, "{}", loops().to_string().len());
        let own = |uid: &str| loop_policy(&Cluster { name: "shop".into(), uid: uid.into() }, "cn-north-1", &Section::default());
        let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&own("u-1")).expect("JSON"));
        assert_eq!(digest_of(&spaced.expect("text")), digest_of(&own("u-1")));
        assert_ne!(digest_of(&own("u-2")), digest_of(&own("u-1")));
        assert!(own("u-1").contains("arn:aws-cn:iam"));
    }
}
