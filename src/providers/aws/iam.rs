//! What kprov needs to be allowed: the operator's policy and the loop's. Pure; `kprov iam aws` prints both.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Only machines take the role.
pub const TRUST: &str =
    r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;

/// Looking: these take no resource, or answer for all.
const READ: [&str; 28] = [
    "ec2:DescribeAvailabilityZones",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstances",
    "ec2:DescribeInternetGateways",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcAttribute",
    "ec2:DescribeVpcs",
    "ec2:GetConsoleOutput",
    "elasticfilesystem:DescribeFileSystems",
    "elasticfilesystem:DescribeMountTargets",
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeLoadBalancers",
    "elasticloadbalancing:DescribeTags",
    "elasticloadbalancing:DescribeTargetGroups",
    "elasticloadbalancing:DescribeTargetHealth",
    "iam:GetInstanceProfile",
    "iam:GetRole",
    "iam:GetRolePolicy",
    "ssm:DescribeParameters",
    "ssm:GetParameter",
    "ssm:GetParametersByPath",
    "ssm:ListTagsForResource",
    "sts:GetCallerIdentity",
    "ec2:DescribeNetworkInterfaces",
];

/// Keeping a blueprint true: machines, ports, load balancers, filesystems, and the writer's record.
const KEEP: [&str; 28] = [
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:CreateTags",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:RunInstances",
    "ec2:StartInstances",
    "ec2:TerminateInstances",
    "elasticfilesystem:CreateFileSystem",
    "elasticfilesystem:CreateMountTarget",
    "elasticfilesystem:DeleteFileSystem",
    "elasticfilesystem:DeleteMountTarget",
    "elasticfilesystem:TagResource",
    "elasticloadbalancing:AddTags",
    "elasticloadbalancing:CreateListener",
    "elasticloadbalancing:CreateLoadBalancer",
    "elasticloadbalancing:CreateTargetGroup",
    "elasticloadbalancing:DeleteListener",
    "elasticloadbalancing:DeleteLoadBalancer",
    "elasticloadbalancing:DeleteTargetGroup",
    "elasticloadbalancing:DeregisterTargets",
    "elasticloadbalancing:RegisterTargets",
    "ec2:DescribeAccountAttributes",
    "ec2:DescribeNetworkInterfaceAttribute",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:ModifyNetworkInterfaceAttribute",
    "ssm:AddTagsToResource",
    "ssm:DeleteParameter",
    "ssm:PutParameter",
];

/// Making and removing what a cluster stands on: only the operator.
const FOUND: [&str; 32] = [
    "ec2:AssociateRouteTable",
    "ec2:AttachInternetGateway",
    "ec2:CreateInternetGateway",
    "ec2:CreateRoute",
    "ec2:CreateRouteTable",
    "ec2:CreateSecurityGroup",
    "ec2:CreateSubnet",
    "ec2:CreateVpc",
    "ec2:DeleteInternetGateway",
    "ec2:DeleteKeyPair",
    "ec2:DeleteRouteTable",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteSubnet",
    "ec2:DeleteVpc",
    "ec2:DetachInternetGateway",
    "ec2:DisassociateRouteTable",
    "ec2:ImportKeyPair",
    "ec2:ModifyVpcAttribute",
    "iam:AddRoleToInstanceProfile",
    "iam:CreateInstanceProfile",
    "iam:CreateRole",
    "iam:CreateServiceLinkedRole",
    "iam:DeleteInstanceProfile",
    "iam:DeleteRole",
    "iam:DeleteRolePolicy",
    "iam:PassRole",
    "iam:PutRolePolicy",
    "iam:RemoveRoleFromInstanceProfile",
    "iam:TagInstanceProfile",
    "iam:TagRole",
    "ssm:DeleteParameters",
    "ssm:GetParameters",
];

fn policy(actions: impl Iterator<Item = &'static str>) -> Value {
    let mut actions: Vec<&str> = actions.collect();
    actions.sort_unstable();
    json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]})
}

pub fn operator_policy() -> String {
    let all = policy(READ.into_iter().chain(KEEP).chain(FOUND));
    serde_json::to_string_pretty(&all).expect("a policy is plain data")
}

pub fn loop_policy() -> String {
    policy(READ.into_iter().chain(KEEP)).to_string()
}

/// Which policy the role has: a later kprov may need another.
pub fn digest() -> String {
    digest_of(&loop_policy())
}

/// Of the policy's meaning: AWS may write it with other spaces.
pub fn digest_of(policy: &str) -> String {
    let value: Value = serde_json::from_str(policy).unwrap_or_default();
    hex::encode(&Sha256::digest(value.to_string())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_may_neither_make_roles_nor_hand_them_out() {
        let policy = loop_policy();
        assert!(!policy.contains("iam:PassRole") && !policy.contains("iam:Put") && !policy.contains("iam:Create"));
        assert!(operator_policy().contains("iam:PassRole"));
    }

    #[test]
    fn a_policy_is_the_same_however_it_is_spaced() {
        let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&loop_policy()).expect("JSON")).expect("text");
        assert_eq!(digest_of(&spaced), digest());
        assert_ne!(digest_of("{}"), digest());
    }
}
