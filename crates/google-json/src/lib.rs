//! JSON of the models of Google's SDK that kprov sends and reads.
//!
//! A crate of its own because of what the compiler makes of it: the models are wide, and so is code that reads or writes them whole. Here it
//! is built once, beside the other dependencies, and not again with every change and for every kind of test.

use google_cloud_compute_v1::model as compute;
use google_cloud_filestore_v1::model as file;
use google_cloud_longrunning::model as longrunning;
use serde::Deserialize;
use serde_json::{Result, Value};

/// What the SDK reads.
pub trait ToJson {
    fn to_json(&self) -> Result<Value>;
}

/// What it is given to send.
pub trait FromJson: Sized {
    fn from_json(body: &Value) -> Result<Self>;
}

macro_rules! to_json {
    ($($model:ty),* $(,)?) => { $(
        impl ToJson for $model {
            fn to_json(&self) -> Result<Value> {
                serde_json::to_value(self)
            }
        }
    )* };
}

macro_rules! from_json {
    ($($model:ty),* $(,)?) => { $(
        impl FromJson for $model {
            fn from_json(body: &Value) -> Result<Self> {
                Self::deserialize(body)
            }
        }
    )* };
}

to_json!(
    compute::Address,
    compute::BackendService,
    compute::Firewall,
    compute::ForwardingRule,
    compute::GuestAttributes,
    compute::HealthCheck,
    compute::Instance,
    compute::InstanceGroup,
    compute::MachineType,
    compute::Network,
    compute::Operation,
    compute::Project,
    compute::Region,
    compute::Subnetwork,
    file::Instance,
    longrunning::Operation,
);

from_json!(
    compute::Address,
    compute::BackendService,
    compute::Firewall,
    compute::ForwardingRule,
    compute::HealthCheck,
    compute::Instance,
    compute::InstanceGroup,
    compute::InstanceGroupsAddInstancesRequest,
    compute::InstanceGroupsListInstancesRequest,
    compute::InstanceGroupsRemoveInstancesRequest,
    compute::Metadata,
    compute::Network,
    compute::Subnetwork,
    file::Instance,
    file::UpdateInstanceRequest,
);
