//! What only one provider needs: a section each under `spec.providers`, ignored by the others. Nothing secret belongs here.

use super::schema::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One section per provider; those of other providers may stay when the provider line changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Providers {
    #[serde(skip_serializing_if = "is_default")]
    pub local: Local,
    #[serde(skip_serializing_if = "is_default")]
    pub aws: Aws,
    #[serde(skip_serializing_if = "is_default")]
    pub gcp: Gcp,
    #[serde(skip_serializing_if = "is_default")]
    pub ssh: Ssh,
}

impl Providers {
    pub fn is_empty(&self) -> bool {
        is_default(self)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Machines on this host: nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Local {}

/// Amazon Web Services. Credentials come from where every AWS tool finds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Aws {
    /// e.g. eu-west-1; instead of the blueprint's location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A network that is there already, instead of one of the cluster's own: vpc-...; together with `subnets`. It is left as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vpc: Option<String>,
    /// Where in `vpc` machines and load balancers are: subnet-..., one in each zone that is used. All lead to an internet gateway, or all
    /// lead out another way; then machines and load balancers have addresses of the network only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// Where a network of the cluster's own has subnets, e.g. eu-west-1a; else the first three zones that have every instance type in use.
    /// A zone that has one keeps it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// What new machines boot: debian-12 (unless said otherwise), ubuntu-24.04, an ami-..., or `<owner>/<pattern of names>`, of which the
    /// newest is taken; `{arch}` in it is amd64 or arm64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Who logs in to an image of your own, with sudo; that of Debian's, Ubuntu's and Amazon's images is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Instead of the size's own choice, by machine group: an instance type, e.g. m7i.large.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub instance_types: BTreeMap<String, String>,
    /// One address for all services: an emulator's, or a private endpoint's; else the environment's and the configuration files'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The same for single services.
    #[serde(skip_serializing_if = "is_default")]
    pub endpoints: AwsEndpoints,
}

/// Addresses of AWS's services that differ from AWS's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AwsEndpoints {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ec2: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elastic_load_balancing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub efs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sts: Option<String>,
}

/// Google Cloud. Credentials come from where every Google tool finds them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gcp {
    /// The project's id; else the environment's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// e.g. europe-west1; instead of the blueprint's location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Instead of the size's own choice, by machine group: a machine type, e.g. n2-standard-2.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_types: BTreeMap<String, String>,
    /// `<project>/<image family>` that machines boot; debian-cloud/debian-12 unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What the loop inside acts as on control plane machines: a service account's e-mail; the project's default one unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// One address for all services: an emulator's, or a private endpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Machines that exist already and are reached by SSH.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// The machines that may be claimed, the control plane's first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<SshHost>,
    /// Free addresses of the machines' network for load balancers: single ones or ranges like 192.0.2.40-192.0.2.49. Without any, a load
    /// balancer has the address of one of its machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The machines' network carries pods' addresses, too: no tunnels. For machines on one link that nothing filters (a switch of your own).
    #[serde(skip_serializing_if = "is_default")]
    pub direct: bool,
    /// Which of the hosts keeps which filesystem, by the filesystem's name; the first control plane's host unless said otherwise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub filesystems: BTreeMap<String, String>,
}

/// One machine of yours. Only `address` is needed; the rest is as in your own ssh configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SshHost {
    /// A name or an address that `ssh` reaches.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    /// 22 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Who logs in: root unless said otherwise; anybody else needs sudo without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The path of the private key on this host; else your agent's and your ssh configuration's keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A host to go through: user@host:port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<String>,
    /// The public host key of the host to go through; else your known_hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump_host_key: Option<String>,
    /// The machine's public host key, `ssh-ed25519 AAAA...`; else a fingerprint, else your known_hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The host key's fingerprint, `SHA256:...`, as `ssh-keygen -lf` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Only for machines of this role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Only for machines of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Where the other machines reach it; else its address on the network that SSH reaches it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_address: Option<IpAddr>,
    /// On its Node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}
