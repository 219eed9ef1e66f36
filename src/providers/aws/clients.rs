//! The SDK's clients, with the usual credentials, and tags in each service's own type.

use super::settings::Settings;
use crate::error::{Error, Result};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use std::collections::BTreeMap;
use std::time::Duration;

/// The SDK's own tries of one call; the engine tries again beyond that.
const TRIES: u32 = 4;
const CONNECT: Duration = Duration::from_secs(5);
/// AWS answers within seconds; a silent connection is a dead one.
const ANSWER: Duration = Duration::from_secs(20);

pub struct Clients {
    pub region: String,
    pub ec2: aws_sdk_ec2::Client,
    pub elb: aws_sdk_elasticloadbalancingv2::Client,
    pub efs: aws_sdk_efs::Client,
    pub iam: aws_sdk_iam::Client,
    pub ssm: aws_sdk_ssm::Client,
    pub sts: aws_sdk_sts::Client,
}

impl Clients {
    pub async fn connect(settings: &Settings) -> Result<Clients> {
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ANSWER).build();
        let retries = RetryConfig::standard().with_max_attempts(TRIES);
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).retry_config(retries).timeout_config(timeouts);
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &settings.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            Error::input("could not tell which AWS region is meant")
                .hint("write spec.location (e.g. eu-west) or spec.providers.aws.region, or set AWS_REGION")
        })?;
        Ok(Clients {
            region,
            ec2: aws_sdk_ec2::Client::new(&config),
            elb: aws_sdk_elasticloadbalancingv2::Client::new(&config),
            efs: aws_sdk_efs::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&config),
            ssm: aws_sdk_ssm::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
        })
    }
}

/// Tags in a service's own type, from names and values.
macro_rules! tags {
    ($name:ident, $tag:ty, $finish:expr) => {
        pub fn $name(tags: &BTreeMap<String, String>) -> Vec<$tag> {
            tags.iter().map(|(key, value)| $finish(<$tag>::builder().key(key).value(value).build())).collect()
        }
    };
}

tags!(ec2_tags, aws_sdk_ec2::types::Tag, |tag| tag);
tags!(elb_tags, aws_sdk_elasticloadbalancingv2::types::Tag, |tag| tag);
tags!(efs_tags, aws_sdk_efs::types::Tag, whole);
tags!(iam_tags, aws_sdk_iam::types::Tag, whole);
tags!(ssm_tags, aws_sdk_ssm::types::Tag, whole);

fn whole<T, E: std::fmt::Debug>(tag: std::result::Result<T, E>) -> T {
    tag.expect("a key and a value are given")
}

pub fn of_ec2(tags: &[aws_sdk_ec2::types::Tag]) -> BTreeMap<String, String> {
    tags.iter().filter_map(|tag| Some((tag.key()?.to_string(), tag.value()?.to_string()))).collect()
}

pub fn of_elb(tags: &[aws_sdk_elasticloadbalancingv2::types::Tag]) -> BTreeMap<String, String> {
    tags.iter().filter_map(|tag| Some((tag.key()?.to_string(), tag.value()?.to_string()))).collect()
}

pub fn of_efs(tags: &[aws_sdk_efs::types::Tag]) -> BTreeMap<String, String> {
    tags.iter().map(|tag| (tag.key().to_string(), tag.value().to_string())).collect()
}

pub fn of_iam(tags: &[aws_sdk_iam::types::Tag]) -> BTreeMap<String, String> {
    tags.iter().map(|tag| (tag.key().to_string(), tag.value().to_string())).collect()
}
