//! The SDK's clients, with the usual credentials, and tags in each service's own type.

use super::settings::Settings;
use crate::blueprint::providers::AwsEndpoints;
use crate::error::{Error, Result};
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_types::service_config::ServiceConfigKey;
use std::collections::BTreeMap;
use std::time::Duration;

/// The SDK's own tries of one call; the engine tries again beyond that.
const TRIES: u32 = 4;
const CONNECT: Duration = Duration::from_secs(5);
/// AWS answers within seconds; a silent connection is a dead one.
const ANSWER: Duration = Duration::from_secs(20);

pub struct Clients {
    pub region: String,
    /// Those that are called, wherever they were said.
    pub endpoints: AwsEndpoints,
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
        let config = loader.load().await;
        let region = config.region().map(ToString::to_string).ok_or_else(|| {
            Error::input("could not tell which AWS region is meant")
                .hint("write spec.location (e.g. eu-west) or spec.providers.aws.region, or set AWS_REGION")
        })?;
        let said = &settings.endpoints;
        let of = |said: &Option<String>, service: &str| said.clone().or_else(|| configured(&config, service));
        let endpoints = AwsEndpoints {
            ec2: of(&said.ec2, "EC2"),
            elastic_load_balancing: of(&said.elastic_load_balancing, "Elastic Load Balancing v2"),
            efs: of(&said.efs, "EFS"),
            iam: of(&said.iam, "IAM"),
            ssm: of(&said.ssm, "SSM"),
            sts: of(&said.sts, "STS"),
        };
        /// The SDK's client of one service at its endpoint.
        macro_rules! client {
            ($sdk:ident, $endpoint:ident) => {{
                let mut own = $sdk::config::Builder::from(&config);
                own.set_endpoint_url(endpoints.$endpoint.clone());
                $sdk::Client::from_conf(own.build())
            }};
        }
        Ok(Clients {
            region,
            ec2: client!(aws_sdk_ec2, ec2),
            elb: client!(aws_sdk_elasticloadbalancingv2, elastic_load_balancing),
            efs: client!(aws_sdk_efs, efs),
            iam: client!(aws_sdk_iam, iam),
            ssm: client!(aws_sdk_ssm, ssm),
            sts: client!(aws_sdk_sts, sts),
            endpoints,
        })
    }
}

/// As every SDK reads it, by the service's id: AWS_ENDPOINT_URL_EC2 and the profile's service section, then AWS_ENDPOINT_URL and the
/// profile. Read here since the loop inside must call the same, and has neither.
fn configured(config: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    config.service_config().and_then(|found| found.load_config(key)).or_else(|| config.endpoint_url().map(String::from))
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
